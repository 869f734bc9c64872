"""Estimators of the moments of a loss increment under a probing law; each gives a value and a standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe import progress
from curvprobe.displaced import displaced_losses, in_blocks
from curvprobe.increment import QuadraticIncrement, increment
from curvprobe.probes import LaplaceProbe, PointProbe, Probe, SubspaceProbe, check_sigma, in_pairs, mirrored_normal
from curvprobe.projection import mean_projection
from curvprobe.risk import EmpiricalRisk


@dataclass(frozen=True)
class Estimate:
    """An estimated criterion ``E |L_{k+1} - L_k|^p``.

    Attributes:
        value: in loss units to the power p.
        stderr: standard error of ``value``; 0 where the value is exact for what it targets.
        p: the power.
        num_probes: Monte-Carlo draws; 0 for a closed form.
        level, slope, curvature: parts of ``value`` (they sum to it); None where the estimator does not split.
        shape: variance of the increment under the probe: what is left of the criterion when the constant is taken out.
    """

    value: float
    stderr: float
    p: float = 2.0
    num_probes: int = 0
    level: float | None = None
    slope: float | None = None
    curvature: float | None = None
    shape: float | None = None

    @property
    def rms(self) -> float:
        """``value ** (1/p)``, in loss units; NaN where noise has made a controlled estimate negative."""
        return self.value ** (1 / self.p) if self.value >= 0 else math.nan


def moment_parts(increment: QuadraticIncrement, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Level, slope and curvature parts (...) of the Gaussian second moment; ``sigma`` float64 () or (D,)."""
    scale = sigma.expand(increment.dim)
    slope = increment.slope * scale
    bent = increment.curvature * scale[:, None] * scale
    level = increment.level + bent.diagonal(dim1=-2, dim2=-1).sum(-1) / 2
    return level.square(), slope.square().sum(-1), bent.square().sum((-2, -1)) / 2


def gaussian_moment(increment: QuadraticIncrement, *, sigma: float | Tensor) -> Estimate:
    r"""Second moment of a quadratic loss increment under a Gaussian probe, in closed form.

    .. math:: E[(a + c^T z + z^T B z / 2)^2]
        = (a + \sigma^2 \mathrm{tr} B / 2)^2 + \sigma^2 |c|^2 + \sigma^4 |B|_F^2 / 2, \quad z \sim N(0, \sigma^2 I_D)

    Exact for the quadratic model only. A sum of squares: it never cancels, and its terms are the level, slope and
    curvature parts. Costs O(D^2) and no model evaluation.

    Args:
        increment: level a (), slope c (D,), curvature B (D, D) symmetric; loss units.
        sigma: standard deviation of the probe in parameter units, scalar or (D,).

    Returns:
        Value in squared loss units; ``stderr`` is 0.

    Raises:
        ValueError: if sigma is not positive and finite, or the increment holds several.

    Source: Kiselev & Grabovoy (2026), arXiv:2604.14870; sum-of-squares form derived in docs/theory.md.

    Example:
        >>> import torch
        >>> inc = QuadraticIncrement(torch.tensor(1.0), torch.tensor([2.0]), torch.tensor([[2.0]]))
        >>> estimate = gaussian_moment(inc, sigma=1.0)
        >>> estimate.value, estimate.level, estimate.slope, estimate.curvature, estimate.shape
        (10.0, 4.0, 4.0, 2.0, 6.0)
    """
    _check_single(increment)
    level, slope, curvature = (float(part) for part in moment_parts(increment, check_sigma(sigma, increment.dim)))
    return Estimate(
        value=level + slope + curvature,
        stderr=0.0,
        level=level,
        slope=slope,
        curvature=curvature,
        shape=slope + curvature,
    )


def quadratic_monte_carlo(
    increment: QuadraticIncrement, *, sigma: float | Tensor, num_probes: int = 64, seed: int = 0, p: float = 2.0
) -> Estimate:
    r"""Monte-Carlo moment of a quadratic loss increment under a Gaussian probe.

    .. math:: \frac1S \sum_s |a + c^T z_s + z_s^T B z_s / 2|^p

    Args:
        increment: one increment.
        sigma: standard deviation in parameter units, scalar or (D,).
        num_probes: draws S, at least 2; an even number from 4 on comes in pairs of mirror images.
        seed: of the draws; the same seed gives the draws of :func:`direct_monte_carlo` in the same subspace.
        p: power, at least 1.

    Source: Kiselev & Grabovoy (2026), arXiv:2604.14870.

    Example:
        >>> import torch
        >>> inc = QuadraticIncrement(torch.tensor(1.0), torch.tensor([0.0]), torch.tensor([[0.0]]))
        >>> quadratic_monte_carlo(inc, sigma=1.0, num_probes=8).value
        1.0
    """
    _check_single(increment)
    _check_draws(num_probes, p)
    scale = check_sigma(sigma, increment.dim)
    return summarise(increment.at(mirrored_normal(num_probes, increment.dim, seed) * scale), p, antithetic=True)


def direct_monte_carlo(
    risk: EmpiricalRisk, new: EmpiricalRisk, law: Probe, *, num_probes: int = 64, seed: int = 0, p: float = 2.0
) -> Estimate:
    r"""Monte-Carlo moment of the true loss increment when ``new`` joins the sample of ``risk``.

    .. math:: \frac1S \sum_s | f (\bar l_{new}(w_s) - L_k(w_s)) |^p, \quad w_s \sim q

    One forward pass per example and draw, by the exact identity.

    Args:
        risk: on the k examples.
        new: on the examples that join, of the same model (``risk.on(data)``).
        law: a probing law.
        num_probes: draws S, at least 2; an even number from 4 on comes in pairs of mirror images.
        seed: of the draws.
        p: power, at least 1.

    Raises:
        ValueError: for sizes that make no sense, or a loss that is not finite at a probe.

    Source: Kiselev & Grabovoy (2026), arXiv:2604.14870; any p and law.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0]]), torch.zeros(1, 1)))
        >>> new = risk.on((torch.tensor([[3.0]]), torch.zeros(1, 1)))
        >>> cp.direct_monte_carlo(risk, new, cp.PointProbe()).value
        16.0
    """
    _check_draws(num_probes, p)
    if isinstance(law, PointProbe):
        level = increment_at(risk, new, None)
        return Estimate(abs(level) ** p, 0.0, p=p, shape=0.0)
    true = probe_increments(risk, new, law, num_probes, seed)
    return summarise(true, p, antithetic=getattr(law, "antithetic", False))


def controlled_monte_carlo(
    risk: EmpiricalRisk,
    new: EmpiricalRisk,
    law: SubspaceProbe | LaplaceProbe,
    *,
    num_probes: int = 64,
    seed: int = 0,
) -> Estimate:
    r"""Second moment of the true loss increment, with its quadratic model as control variate on the same draws.

    .. math:: GM + \frac1S \sum_s (\Delta_s^2 - \hat\Delta_s^2)

    Unbiased for the true criterion, with a variance that is smaller than direct Monte Carlo's by orders of magnitude
    where the quadratic model is good; where it is invalid, compare the standard errors. ``value - GM`` with the
    standard error measures how wrong the model is.

    Args:
        risk: on the k examples.
        new: on the examples that join.
        law: Gaussian in a subspace: :class:`SubspaceProbe` or :class:`LaplaceProbe`.
        num_probes: draws S, at least 2; an even number from 4 on comes in pairs of mirror images.
        seed: of the draws, the same as direct Monte Carlo's.

    Raises:
        TypeError: for a law without a subspace.

    Source: control variates; the surrogate is that of :func:`gaussian_moment`.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0]]), torch.zeros(1, 1)))
        >>> new = risk.on((torch.tensor([[3.0]]), torch.zeros(1, 1)))
        >>> law = cp.SubspaceProbe(cp.Subspace.from_basis(torch.eye(1)), sigma=0.5)
        >>> estimate = cp.controlled_monte_carlo(risk, new, law, num_probes=8)
        >>> round(estimate.value, 4), estimate.stderr < 1e-5   # 16 E (1 + z)^4, the loss being quadratic
        (43.0, True)
    """
    _check_draws(num_probes, 2.0)
    if not isinstance(law, SubspaceProbe | LaplaceProbe):
        raise TypeError(
            f"the law is a {type(law).__name__}; expected one that is Gaussian in a subspace (SubspaceProbe, "
            "LaplaceProbe); use direct_monte_carlo for others"
        )
    model = quadratic_increment(risk, new, law)
    moment = gaussian_moment(model, sigma=law.scale)
    true = probe_increments(risk, new, law, num_probes, seed)
    return control(moment, model, true, law.coordinates(num_probes, seed))


def control(moment: Estimate, model: QuadraticIncrement, true: Tensor, coordinates: Tensor) -> Estimate:
    """Controlled estimate from the closed form and the true increments (S,) at the coordinates (S, D)."""
    surrogate = model.at(coordinates)
    # x^2 - y^2 as a product: the squares agree to many digits.
    excess = (true - surrogate) * (true + surrogate)
    return Estimate(moment.value + float(excess.mean()), _stderr(_independent(excess)), num_probes=len(excess))


def quadratic_increment(
    risk: EmpiricalRisk, new: EmpiricalRisk, law: SubspaceProbe | LaplaceProbe
) -> QuadraticIncrement:
    """The quadratic model of the increment in the law's subspace: D Hessian-vector products on ``new`` alone, plus
    as many on ``risk`` where its projected Hessian is not known from the eigenvalues."""
    return increment(mean_projection(risk, law.subspace), mean_projection(new, law.subspace))


def increment_at(risk: EmpiricalRisk, new: EmpiricalRisk, displacement: Tensor | None) -> float:
    """The true increment at ``w* + displacement``, by the exact identity, in float64."""
    risk.check_same_model(new)
    factor = new.total_weight / (risk.total_weight + new.total_weight)
    return factor * (new.value(displacement) - risk.value(displacement))


def probe_increments(risk: EmpiricalRisk, new: EmpiricalRisk, law: Probe, num_probes: int, seed: int) -> Tensor:
    """True increments at the law's draws, float64 (S,)."""
    if not isinstance(law, Probe):
        raise TypeError(f"the law is a {type(law).__name__}; expected a probing law such as SubspaceProbe(U, sigma)")
    risk.check_same_model(new)
    factor = new.total_weight / (risk.total_weight + new.total_weight)
    old_share, new_share = (r.weights / r.total_weight for r in (risk, new))
    increments = []
    with progress.bar("Monte Carlo (draws)", num_probes) as advance:
        for block in in_blocks(risk, law.displacements(risk, num_probes, seed)):
            old, added = (displaced_losses(r, block) for r in (risk, new))
            increments.append(factor * (added @ new_share - old @ old_share))
            advance(len(block))
    return torch.cat(increments)


def summarise(increments: Tensor, p: float = 2.0, *, antithetic: bool = False) -> Estimate:
    """Plain Monte-Carlo estimate from increments (S,) at independent draws, or at draws and their mirror images."""
    powers, values = increments.abs() ** p, increments
    if antithetic:
        powers, values = _independent(powers), _independent(increments)
    # Of the square of the sample mean, the part that is the mean's own variance.
    noise = float(values.var()) / len(values)
    return Estimate(
        value=float(powers.mean()),
        stderr=_stderr(powers),
        p=p,
        num_probes=len(increments),
        shape=float((increments - increments.mean()).square().mean()) + noise,
    )


def _independent(values: Tensor) -> Tensor:
    """What is independent among values at antithetic draws: means (S / 2,) over pairs, or the values themselves."""
    return values.view(-1, 2).mean(1) if in_pairs(len(values)) else values


def _stderr(independent: Tensor) -> float:
    return float(independent.std() / math.sqrt(len(independent)))


def _check_draws(num_probes: int, p: float) -> None:
    if not isinstance(num_probes, int) or num_probes < 2:
        raise ValueError(f"num_probes is {num_probes!r}; expected a whole number of draws, at least 2")
    if not p >= 1:
        raise ValueError(f"p is {p!r}; expected at least 1")


def _check_single(increment: QuadraticIncrement) -> None:
    if increment.level.dim():
        raise ValueError(f"{tuple(increment.level.shape)} increments came; expected a single one")
