"""The criterion of a finished analysis at other settings, without the model."""

from __future__ import annotations

from collections.abc import Sequence

from curvprobe.analysis.result import Analysis
from curvprobe.criteria.decay import DecayCurve, decay_curve


def sweep(
    analysis: Analysis,
    *,
    sigma: float | Sequence[float] | None = None,
    dims: Sequence[int] | None = None,
    ks: Sequence[int] | None = None,
) -> DecayCurve:
    """The closed form at every sigma, dimension and sample size that is named, averaged over the candidates.

    The solution and the subspace stay as they are. Whether the quadratic model holds at another sigma is in
    ``analysis.validity``.

    Args:
        analysis: computed here, or loaded with the stages that lie beside its result.
        sigma: one or several standard deviations; None is the analysis' own.
        dims: numbers of leading directions; None is all of D.
        ks: sample sizes; None is the whole sample.

    Returns:
        The curve over all of them; its ``to_dataframe()`` has a row for each.

    Raises:
        ValueError: for values out of range, or a result that was read without its projections.

    Example:
        >>> import torch, curvprobe as cp
        >>> x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[::2], x[::2].sin()))
        >>> analysis = cp.analyze(risk, (x[1::2], x[1::2].sin()), dim=3, tol=1e-6, sigma=0.01)
        >>> cp.sweep(analysis, sigma=[1e-3, 1e-2], dims=[1, 3], ks=[5, 10, 20]).value.shape
        torch.Size([3, 2, 2])
    """
    return decay_curve(
        analysis.sample,
        [analysis.k] if ks is None else ks,
        analysis.sigma if sigma is None else sigma,
        dims,
        fresh=analysis.fresh,
    )
