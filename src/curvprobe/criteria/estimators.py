"""Moments of a quadratic loss increment under a Gaussian probe, and how draws are summarised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvprobe.criteria.distribution import absolute_moments, check_single
from curvprobe.criteria.draws import check_sigma, in_pairs, mirrored_normal
from curvprobe.criteria.increment import QuadraticIncrement
from curvprobe.errors import ArgumentError
from curvprobe.numerics.intervals import freedom, standard_error, student_reach
from curvprobe.runtime.plain import number


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
        freedom: degrees of freedom of ``stderr``: few where a few draws make it.
    """

    value: float
    stderr: float
    p: float = 2.0
    num_probes: int = 0
    level: float | None = None
    slope: float | None = None
    curvature: float | None = None
    shape: float | None = None
    freedom: float = math.inf

    @property
    def reach(self) -> float:
        """Half the width of a 95 % interval about ``value``: Student's."""
        return student_reach(self.stderr, self.freedom)

    @property
    def rms(self) -> float:
        """``value ** (1/p)``, in loss units; NaN where noise has made a controlled estimate negative."""
        return self.value ** (1 / self.p) if self.value >= 0 else math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("value", "stderr", "reach", "rms", "p", "num_probes", "level", "slope", "curvature", "shape")
        return {name: getattr(self, name) for name in names} | {
            "freedom": self.freedom if math.isfinite(self.freedom) else None
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Estimate:
        """What :meth:`to_json` has written; a number that is not finite comes back as NaN."""
        parts = {name: record[name] for name in ("p", "num_probes", "level", "slope", "curvature", "shape")}
        few = number(record.get("freedom"), math.inf)
        return cls(number(record["value"]), number(record["stderr"]), **parts, freedom=few)


def moment_parts(increment: QuadraticIncrement, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Level, slope and curvature parts (...) of the Gaussian second moment; ``sigma`` float64 () or (D,)."""
    scale = sigma.expand(increment.dim)
    slope = increment.slope * scale
    scaled = increment.curvature * scale[:, None] * scale
    level = increment.level + scaled.diagonal(dim1=-2, dim2=-1).sum(-1) / 2
    return level.square(), slope.square().sum(-1), scaled.square().sum((-2, -1)) / 2


def gaussian_moment(increment: QuadraticIncrement, *, sigma: float | Tensor, p: float = 2.0) -> Estimate:
    r"""Moment of a quadratic loss increment under a Gaussian probe, in closed form.

    .. math:: E[(a + c^T z + z^T B z / 2)^2]
        = (a + \sigma^2 \mathrm{tr} B / 2)^2 + \sigma^2 |c|^2 + \sigma^4 |B|_F^2 / 2, \quad z \sim N(0, \sigma^2 I_D)

    Exact for the quadratic model only. A sum of squares: it never cancels, and its terms are the level, slope and
    curvature parts. Costs O(D^2) and no model evaluation. Other p take an eigendecomposition and, where p is not even,
    an integral over one variable, to 1e-8 or better: see :func:`increment_distribution`.

    Args:
        increment: level a (), slope c (D,), curvature B (D, D) symmetric; loss units.
        sigma: standard deviation of the probe in parameter units, scalar or (D,).
        p: power, at least 1.

    Returns:
        Value in loss units to the power p; ``stderr`` is 0. The parts are those of the second moment, for p = 2 only.

    Raises:
        ValueError: if sigma is not positive and finite, p is below 1 or infinite, or the increment holds several.

    Source: Kiselev & Grabovoy (2026), arXiv:2604.14870; sum-of-squares form derived in docs/theory.md.

    Example:
        >>> import torch
        >>> inc = QuadraticIncrement(torch.tensor(1.0), torch.tensor([2.0]), torch.tensor([[2.0]]))
        >>> estimate = gaussian_moment(inc, sigma=1.0)
        >>> estimate.value, estimate.level, estimate.slope, estimate.curvature, estimate.shape
        (10.0, 4.0, 4.0, 2.0, 6.0)
    """
    check_single(increment)
    check_power(p)
    scale = check_sigma(sigma, increment.dim)
    level, slope, curvature = (float(part) for part in moment_parts(increment, scale))
    if p != 2:
        return Estimate(float(absolute_moments(increment, scale, p)), 0.0, p=p, shape=slope + curvature)
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
    check_single(increment)
    check_draws(num_probes, p)
    scale = check_sigma(sigma, increment.dim)
    return summarise(increment.at(mirrored_normal(num_probes, increment.dim, seed) * scale), p, antithetic=True)


def control(moment: Estimate, model: QuadraticIncrement, true: Tensor, coordinates: Tensor) -> Estimate:
    """Controlled estimate from the closed form and the true increments (S,) at the coordinates (S, D)."""
    return corrected(moment, true, model.at(coordinates))


def model_error(true: Tensor, model: QuadraticIncrement, coordinates: Tensor) -> float:
    """Root mean square error of the model of the increment's change at coordinates (S, D), relative to the change."""
    change = (true - model.level).square().mean().sqrt()
    return float((true - model.at(coordinates)).square().mean().sqrt() / change)


def corrected(moment: Estimate, true: Tensor, surrogate: Tensor) -> Estimate:
    """The moment of the quadratic model, corrected by what the true increments (S,) have beyond the model's."""
    excess = power_excess(true, surrogate, moment.p)
    terms = independent(excess)
    stderr = math.hypot(standard_error(terms), moment.stderr)
    # Welch and Satterthwaite, of the two errors together.
    few = freedom(terms)
    if moment.stderr and stderr:
        few = stderr**4 / (standard_error(terms) ** 4 / few + moment.stderr**4 / moment.freedom)
    return Estimate(
        moment.value + float(excess.mean()), stderr, p=moment.p, num_probes=len(excess), freedom=max(1.0, few)
    )


def power_excess(true: Tensor, surrogate: Tensor, p: float) -> Tensor:
    """``|x|^p - |y|^p`` without cancellation where the two agree to many digits."""
    if p == 2:
        return (true - surrogate) * (true + surrogate)
    x, y = true.abs(), surrogate.abs()
    close = (x - y).abs() < y / 2
    ratio = torch.where(close, (x - y) / torch.where(close, y, 1.0), 0.0)
    return torch.where(close, y**p * torch.expm1(p * torch.log1p(ratio)), x**p - y**p)


def summarise(increments: Tensor, p: float = 2.0, *, antithetic: bool = False) -> Estimate:
    """Plain Monte-Carlo estimate from increments (S,) at independent draws, or at draws and their mirror images."""
    powers, values = increments.abs() ** p, increments
    if antithetic:
        powers, values = independent(powers), independent(increments)
    # Of the square of the sample mean, the part that is the mean's own variance.
    noise = float(values.var()) / len(values)
    return Estimate(
        value=float(powers.mean()),
        stderr=standard_error(powers),
        p=p,
        num_probes=len(increments),
        shape=float((increments - increments.mean()).square().mean()) + noise,
        freedom=freedom(powers),
    )


def independent(values: Tensor) -> Tensor:
    """What is independent among values at antithetic draws: means (S / 2,) over pairs, or the values themselves."""
    return values.view(-1, 2).mean(1) if in_pairs(len(values)) else values


def check_draws(num_probes: int, p: float = 2.0) -> None:
    """Refuse a number of draws, or a power, that makes no sense."""
    if not isinstance(num_probes, int) or num_probes < 2:
        raise ArgumentError(f"num_probes is {num_probes!r}; expected a whole number of draws, at least 2")
    check_power(p)


def check_power(p: float) -> None:
    """Refuse an order that makes no sense."""
    if not 1 <= p < math.inf:
        raise ArgumentError(
            f"p is {p!r}; expected a finite number, at least 1 (for the largest increment within a ball, the limit of "
            "large p under a bounded law, use worst_case)"
        )
