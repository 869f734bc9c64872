"""Moments of a quadratic loss increment under a Gaussian probe, and how draws are summarised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from curvprobe.criteria.draws import check_sigma, in_pairs, mirrored_normal
from curvprobe.criteria.increment import QuadraticIncrement
from curvprobe.errors import ArgumentError
from curvprobe.numerics.intervals import standard_error
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

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("value", "stderr", "rms", "p", "num_probes", "level", "slope", "curvature", "shape")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Estimate:
        """What :meth:`to_json` has written; a number that is not finite comes back as NaN."""
        parts = {name: record[name] for name in ("p", "num_probes", "level", "slope", "curvature", "shape")}
        return cls(number(record["value"]), number(record["stderr"]), **parts)


def moment_parts(increment: QuadraticIncrement, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Level, slope and curvature parts (...) of the Gaussian second moment; ``sigma`` float64 () or (D,)."""
    scale = sigma.expand(increment.dim)
    slope = increment.slope * scale
    scaled = increment.curvature * scale[:, None] * scale
    level = increment.level + scaled.diagonal(dim1=-2, dim2=-1).sum(-1) / 2
    return level.square(), slope.square().sum(-1), scaled.square().sum((-2, -1)) / 2


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
    # x^2 - y^2 as a product: the squares agree to many digits.
    excess = (true - surrogate) * (true + surrogate)
    stderr = math.hypot(standard_error(independent(excess)), moment.stderr)
    return Estimate(moment.value + float(excess.mean()), stderr, num_probes=len(excess))


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
    )


def independent(values: Tensor) -> Tensor:
    """What is independent among values at antithetic draws: means (S / 2,) over pairs, or the values themselves."""
    return values.view(-1, 2).mean(1) if in_pairs(len(values)) else values


def check_draws(num_probes: int, p: float = 2.0) -> None:
    """Refuse a number of draws, or a power, that makes no sense."""
    if not isinstance(num_probes, int) or num_probes < 2:
        raise ArgumentError(f"num_probes is {num_probes!r}; expected a whole number of draws, at least 2")
    if not p >= 1:
        raise ArgumentError(f"p is {p!r}; expected at least 1")


def _check_single(increment: QuadraticIncrement) -> None:
    if increment.level.dim():
        raise ArgumentError(f"{tuple(increment.level.shape)} increments came; expected a single one")
