"""How many examples it takes until one more moves the landscape by no more than a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from curvprobe.criteria.drawn import DrawnError
from curvprobe.criteria.draws import check_sigma
from curvprobe.criteria.expectation import FEWEST, check_fresh, pool_dispersion, squared_mean
from curvprobe.criteria.features import features
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.criteria.stationarity import Stationarity, moving, moving_ratio
from curvprobe.criteria.verdicts import QuadraticValidity
from curvprobe.errors import ArgumentError
from curvprobe.numerics.intervals import FARTHEST, ShiftAndSpread, mean_interval
from curvprobe.runtime.plain import number

Of = Literal["total", "shape"]


@dataclass(frozen=True)
class RequiredSampleSize:
    """How many examples it takes until one more moves the landscape by no more than a tolerance.

    Attributes:
        value: the smallest sample size, or None where the data do not support an answer that is bounded above.
        at_least: a size that it is not below, with 97.5 % confidence; None where there is no answer at all.
        observed: the size at which the candidates' own mean square meets the tolerance, without regard to what they may
            have missed; None where there is no answer at all.
        interval: 95 % confidence interval of the size; infinite above where the data set no bound.
        tolerance: on the RMS increment, in loss units.
        verdict: "supported"; "at least", where only the lower end is; or why there is no answer.
        assumptions: what the number rests on.
        of: "total", or "shape" where the constant part was left out.
        unseen: share of the population that a kind of examples may have and still be absent from one set of candidates
            in twenty: the answer says nothing of rarer ones.
    """

    value: int | None
    at_least: int | None
    observed: int | None
    interval: tuple[float, float]
    tolerance: float
    verdict: str
    assumptions: str
    unseen: float
    of: Of = "total"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> RequiredSampleSize:
        """What :meth:`to_json` has written."""
        low, high = record["interval"]
        # A result of schema 3 or before: its answers were bounded above from any number of candidates on.
        earlier = {"at_least": None, "observed": record["value"], "unseen": math.nan}
        return cls(**earlier | record | {"interval": (number(low), number(high, math.inf))})

    def __str__(self) -> str:
        first = f"Sample size for an rms of {self.tolerance:g} loss units{' of the shape' * (self.of == 'shape')}: "
        if self.at_least is None:
            return first + f"no answer; {self.verdict}"
        low, high = self.interval
        size = f"{self.value} [{low:.0f}, {high:.0f}]"
        if self.value is None:
            size = f"at least {self.at_least} (97.5 %); no upper end, the candidates themselves give {self.observed}"
        rare = ""
        if self.unseen > 0:  # results of earlier versions do not tell
            rare = f"; a kind of examples rarer than 1 in {1 / self.unseen:.0f} may have been missed"
        return first + f"{size}\n  (if {self.assumptions}{rare})"


ASSUMPTIONS = (
    "the solution and the subspace stay as they are; examples to come are drawn like the candidates; the quadratic "
    "model holds at this sigma"
)

OF_MEAN_WEIGHT = "examples of unequal weight are counted at the candidates' mean weight"

SUBSPACE_ONLY = "the gradient vanishes outside the subspace, which was not looked at"

LARGEST = 1e18
"""No sample is larger."""

GRID = 81

MISSED = 3.0
"""Expected number of examples of a kind that is absent once in twenty: exp(-3) = 5 %."""


def required_sample_size(
    sample: ProjectedSample,
    fresh: ProjectedSample | None,
    sigma: float | Tensor,
    tolerance: float,
    *,
    of: Of = "total",
    validity: QuadraticValidity | None = None,
    stationarity: Stationarity | None = None,
    allow_overlap: bool = False,
) -> RequiredSampleSize:
    r"""The smallest k at which one more example moves the landscape by no more than ``tolerance``.

    .. math:: \min \{ \kappa : R(\kappa) \le \tau \}, \quad R^2(\kappa) = \frac{1}{(\kappa + 1)^2}
        \Big( \big(\tfrac{k}{\kappa}\big)^2 |\mu - \bar\psi_k|^2 + \mathrm{tr}\,\Sigma
        \big(1 + \tfrac{\kappa - k}{\kappa^2}\big) \Big)

    for :math:`\kappa \ge k`: by then the examples that have joined pull the sample's mean towards the candidates'.
    Below k the sample's mean is taken as it is. Examples of unequal weight are counted at the candidates' mean weight.
    Without candidates
    :math:`R^2(\kappa) = \mathrm{tr}\,\Sigma / (\kappa (\kappa + 1))`.

    Args:
        sample: the k examples that define the risk.
        fresh: candidates outside the sample, or None.
        sigma: standard deviation in parameter units, scalar or (D,).
        tolerance: tau, on the root mean square of the increment, in loss units.
        of: "total"; or "shape", the increment without its constant part, which training does not notice.
        validity: of the quadratic model; an answer is refused where the model is not valid at sigma (one sigma for
            all directions: a grid says nothing of several).
        stationarity: of the solution in all parameters; an answer is refused where it is not a minimum. Without it the
            gradient is judged in the subspace alone, and the answer says so.
        allow_overlap: take candidates that the sample holds too.

    Returns:
        The size with a 95 % interval (bootstrap over the examples). Fewer than 250 examples bound it from below only,
        and so do more where a few of them carry the mean square. How wide the interval is decides nothing: the samples
        that have missed the large increments are those with narrow ones.

    Raises:
        ValueError: for a tolerance that is not positive, or candidates in the sample.

    Source: derived in docs/theory.md.

    Example:
        >>> import torch
        >>> from curvprobe.criteria.sample import ProjectedSample
        >>> def flat(n):
        ...     losses = torch.linspace(0, 1, n, dtype=torch.float64)
        ...     return ProjectedSample(losses, torch.ones(n), torch.zeros(n, 1), torch.zeros(n, 1, 1))
        >>> size = required_sample_size(flat(400), None, sigma=0.1, tolerance=1e-3)
        >>> size.value, size.at_least, size.verdict
        (290, 276, 'supported')
        >>> size = required_sample_size(flat(40), None, sigma=0.1, tolerance=1e-3)
        >>> size.value, size.at_least, size.verdict
        (None, 253, 'at least')
    """
    check_request(tolerance, len(sample if fresh is None else fresh))
    if fresh is None:
        dispersion = pool_dispersion(sample, sigma)[:, _first_part(of) :].sum(1)
        size, *ends = (_size_of(v, tolerance) for v in (float(dispersion.mean()), *mean_interval(dispersion)))
        interval = (ends[0], ends[1])
    else:
        check_fresh(sample, fresh, allow_overlap=allow_overlap)
        size, interval = size_with(sample, fresh, sigma, tolerance, of)
    refused = _refusal(sample, sigma, tolerance, validity, stationarity)
    bounded = not refused and math.isfinite(interval[1])
    observed = math.ceil(size - 1e-9) if math.isfinite(size) else None
    unequal = _unequal(sample, sample if fresh is None else fresh)
    parts = [ASSUMPTIONS, *([OF_MEAN_WEIGHT] if unequal else []), *([SUBSPACE_ONLY] if stationarity is None else [])]
    return RequiredSampleSize(
        value=observed if bounded else None,
        at_least=None if refused else max(1, math.ceil(interval[0] - 1e-9)),
        observed=None if refused else observed,
        interval=interval,
        tolerance=tolerance,
        verdict=refused or ("supported" if bounded else "at least"),
        assumptions="; ".join(parts),
        unseen=MISSED / len(sample if fresh is None else fresh),
        of=of,
    )


def _unequal(sample: ProjectedSample, others: ProjectedSample) -> bool:
    """Whether the examples' weights differ; drawn ones stand for others too, each for as many."""
    own, one = sample.weight * (len(sample) / sample.size), others.weight[0]
    return bool((others.weight != one).any()) or bool(((own - one).abs() > 1e-9 * one).any())


def check_request(tolerance: float, examples: int) -> None:
    """Refuse a tolerance that makes no sense, and too few examples to judge by."""
    if not 0 < tolerance < math.inf:
        raise ArgumentError(f"tolerance is {tolerance!r}; expected a positive number in loss units")
    if examples < FEWEST:
        raise ArgumentError(f"{examples} examples came to judge by; a required size needs at least {FEWEST}")


def _first_part(of: Of) -> int:
    """The first of the columns (of features, or of parts) that count: the level is column 0."""
    if of not in ("total", "shape"):
        raise ArgumentError(f"of is {of!r}; expected 'total' or 'shape'")
    return int(of == "shape")


def _size_of(dispersion: float, tolerance: float) -> float:
    """The size of at least 1 at which ``dispersion / (size (size + 1))`` is the squared tolerance."""
    return max(1.0, (math.sqrt(1 + 4 * dispersion / tolerance**2) - 1) / 2)


def size_with(
    sample: ProjectedSample, fresh: ProjectedSample, sigma: float | Tensor, tolerance: float, of: Of = "total"
) -> tuple[float, tuple[float, float]]:
    """The size that the tolerance needs when candidates join, and the sizes at which the mean square's ends meet it."""
    share, k, first = sample.weight / sample.weight.sum(), sample.size, _first_part(of)
    distance, factor = features(fresh, sigma) - share @ features(sample, sigma), fresh.weight / fresh.weight.mean()
    moves = factor[:, None] * distance[:, first:]
    shift, spread = float(squared_mean(moves).sum()), float(moves.var(0).sum())
    bounds: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = ShiftAndSpread(moves).intervals
    if sample.design is not None:
        error = DrawnError.of(sample, sigma, factor, factor[:, None] * distance).from_feature(first)
        bounds = error.widening(bounds, shift, spread)
        shift, spread = shift - float(error.bias_of_shift.sum()), spread - float(error.bias_of_spread.sum())

    def weights(sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Of the squared shift and of the spread, in the mean square at these sizes."""
        joined = (sizes - k).clamp_min(0.0)
        alpha = (k / sizes).clamp_max(1.0) ** 2 / (sizes + 1) ** 2
        return alpha, (1 + joined / sizes**2) / (sizes + 1) ** 2

    def mean_square(size: float) -> float:
        alpha, beta = weights(torch.tensor(size, dtype=torch.float64, device="cpu"))
        return float(alpha * shift + beta * spread)

    size = _first_below(mean_square, tolerance**2)
    sizes = torch.logspace(
        math.log10(max(1.0, size / FARTHEST)),
        math.log10(min(LARGEST, size * FARTHEST)),
        GRID,
        dtype=torch.float64,
        device="cpu",
    )
    low, high = (
        float(numpy.exp(numpy.interp(-2 * math.log(tolerance), -end.log(), sizes.log(), left=0.0, right=math.inf)))
        for end in bounds(*weights(sizes))
    )
    return size, (low, high)


def _first_below(falling: Callable[[float], float], bound: float) -> float:
    """The size of at least 1 from which on a falling function is at most ``bound``, to 1e-9 of itself."""
    low, high = 0.0, math.log(LARGEST)
    if falling(1.0) <= bound:
        return 1.0
    if falling(LARGEST) > bound:
        return math.inf
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if falling(math.exp(middle)) <= bound else (middle, high)
    return math.exp(high)


def _refusal(
    sample: ProjectedSample,
    sigma: float | Tensor,
    tolerance: float,
    validity: QuadraticValidity | None,
    stationarity: Stationarity | None,
) -> str | None:
    """Why the data do not support an answer, or None."""
    scale = check_sigma(sigma, sample.dim)
    if validity is not None and not scale.dim() and validity.verdict(float(scale)) != "valid":
        return f"the quadratic model is {validity.verdict(float(scale))} at sigma = {float(scale):g}"
    if stationarity is not None:
        return stationarity.refusal(tolerance)
    return moving(moving_ratio(sample), "in the subspace")
