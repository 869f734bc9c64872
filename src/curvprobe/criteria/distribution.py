"""The law of a quadratic increment under a Gaussian probe: moments of every order, tails and quantiles."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe.criteria.draws import check_sigma
from curvprobe.criteria.increment import QuadraticIncrement
from curvprobe.errors import ArgumentError
from curvprobe.numerics.quadratic_form import absolute_moment, upper_moment
from curvprobe.runtime.plain import brief

PRECISION = 1e-8
"""Relative error of the integration above which it is said."""

CANCELLED = 1e4
"""Ratio of a sum's terms to the sum above which it has lost digits."""

WIDTHS = 4.0
"""Standard deviations about the mean in which a quantile is looked for first."""


@dataclass(frozen=True, eq=False)
class IncrementDistribution:
    r"""Law of a quadratic increment under a Gaussian probe.

    .. math:: Q = a + \sum_j ( c_j x_j + b_j x_j^2 / 2 ), \quad x \sim N(0, I_D)

    A generalised chi-square variable. Its integrals are taken to 1e-8 of their value or better, tails included; a
    :class:`RuntimeWarning` says where they are not.

    Attributes:
        level: a, loss units.
        slope: c (D,), along the eigenvectors of the scaled curvature, loss units.
        curvature: b (D,), its eigenvalues, loss units.

    Source: cumulants and characteristic function of a quadratic form, Mathai & Provost (1992), "Quadratic Forms in
    Random Variables"; the integral is derived in docs/theory.md.
    """

    level: float
    slope: Tensor
    curvature: Tensor

    __repr__ = brief

    @property
    def mean(self) -> float:
        """E Q."""
        return self.level + float(self.curvature.sum()) / 2

    @property
    def variance(self) -> float:
        """Variance of Q: the shape criterion."""
        return float(self.slope.square().sum() + self.curvature.square().sum() / 2)

    def moment(self, p: float) -> float:
        """``E |Q|^p`` for any p > 0, loss units to the power p."""
        return float(_moments(*self._form(), _positive(p)))

    def exceedance(self, threshold: float) -> float:
        """Probability that the increment is larger than ``threshold`` in magnitude."""
        if not threshold >= 0:
            raise ArgumentError(f"threshold is {threshold!r}; expected a number in loss units, not negative")
        return self._above(threshold) + self._below(-threshold)

    def cdf(self, value: float) -> float:
        """Probability that the increment is at most ``value``."""
        if self.variance == 0:
            return float(self.level <= value)
        return self._below(value)

    def quantile(self, probability: float) -> float:
        """The value that the increment does not exceed with this probability, between 0 and 1."""
        from scipy.optimize import brentq

        if not 0 < probability < 1:
            raise ArgumentError(f"probability is {probability!r}; expected a number between 0 and 1")
        deviation = math.sqrt(self.variance)
        if deviation == 0:
            return self.level

        def excess(value: float) -> float:  # on the smaller tail: the other has no digits there
            if probability <= 0.5:
                return self.cdf(value) - probability
            return (1 - probability) - self._above(value)

        low, high = (self.mean + sign * WIDTHS * deviation for sign in (-1, 1))
        while excess(low) > 0:
            low -= self.mean - low
        while excess(high) < 0:
            high += high - self.mean
        return float(brentq(excess, low, high, xtol=1e-14 * deviation, rtol=1e-14))

    def _above(self, value: float) -> float:
        level, slope, curvature = self._form()
        return float(_checked(upper_moment(0.0, level - value, slope, curvature)))

    def _below(self, value: float) -> float:
        level, slope, curvature = self._form()
        return float(_checked(upper_moment(0.0, value - level, slope, -curvature)))

    def _form(self) -> tuple[Tensor, Tensor, Tensor]:
        level = torch.tensor([self.level], dtype=torch.float64, device="cpu")
        return level, self.slope[None], self.curvature[None]


def increment_distribution(increment: QuadraticIncrement, sigma: float | Tensor) -> IncrementDistribution:
    r"""The law of a quadratic increment at ``z ~ N(0, diag(sigma^2))``.

    Args:
        increment: level a (), slope c (D,), curvature B (D, D) symmetric; loss units.
        sigma: standard deviation of the probe in parameter units, scalar or (D,).

    Raises:
        ValueError: if sigma is not positive and finite, or the increment holds several.

    Example:
        >>> import torch, curvprobe as cp
        >>> inc = cp.QuadraticIncrement(torch.tensor(0.0), torch.tensor([2.0]), torch.tensor([[0.0]]))
        >>> law = cp.increment_distribution(inc, sigma=0.5)   # a standard normal variable
        >>> round(law.moment(1), 6), round(law.exceedance(1.96), 4), round(law.quantile(0.975), 4)
        (0.797885, 0.05, 1.96)
    """
    check_single(increment)
    level, slope, curvature = _diagonal(increment, check_sigma(sigma, increment.dim))
    return IncrementDistribution(float(level), slope, curvature)


def absolute_moments(increment: QuadraticIncrement, sigma: Tensor, p: float) -> Tensor:
    """``E |Q|^p`` of one or several increments (...), for p > 0; ``sigma`` float64 () or (D,)."""
    level, slope, curvature = _diagonal(increment, sigma)
    flat = (level.reshape(-1), slope.reshape(-1, increment.dim), curvature.reshape(-1, increment.dim))
    return _moments(*flat, _positive(p)).view(level.shape)


def check_single(increment: QuadraticIncrement) -> None:
    """Refuse an increment that holds several."""
    if increment.level.dim():
        raise ArgumentError(f"{tuple(increment.level.shape)} increments came; expected a single one")


def _positive(p: float) -> float:
    if not 0 < p < math.inf:
        raise ArgumentError(
            f"p is {p!r}; expected a positive number: a Gaussian probe has no finite moment of infinite order; for the "
            "largest increment within a ball use worst_case"
        )
    return float(p)


def _diagonal(increment: QuadraticIncrement, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Level (...), slope and curvature (..., D) in the coordinates in which the scaled curvature is diagonal."""
    scale = sigma.expand(increment.dim)
    eigenvalues, vectors = torch.linalg.eigh(increment.curvature * scale[:, None] * scale)
    return increment.level, torch.einsum("...d,...de->...e", increment.slope * scale, vectors), eigenvalues


def _moments(level: Tensor, slope: Tensor, curvature: Tensor, p: float) -> Tensor:
    """``E |Q|^p`` (n,): from the cumulants for even p, by integration for others and where the cumulants cancel."""
    value = torch.full_like(level, math.nan)
    lost = torch.ones_like(level, dtype=torch.bool)
    if p % 2 == 0:
        value, size = _even_moment(level, slope, curvature, int(p))
        lost = size > CANCELLED * value
    if bool(lost.any()):
        value = value.clone()
        value[lost] = _checked(absolute_moment(p, level[lost], slope[lost], curvature[lost]))
    return value


def _even_moment(level: Tensor, slope: Tensor, curvature: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """``E Q^p`` (n,) by its recursion in the cumulants, and the sum of the magnitudes of its terms."""
    cumulants = [level + curvature.sum(1) / 2]
    for r in range(2, p + 1):
        straight = math.factorial(r - 1) / 2 * curvature.pow(r).sum(1)
        mixed = math.factorial(r) / 2 * (curvature.pow(r - 2) * slope.square()).sum(1)
        cumulants.append(straight + mixed)
    moments, sizes = [torch.ones_like(level)], [torch.ones_like(level)]
    for n in range(1, p + 1):
        terms = [(math.comb(n - 1, j), cumulants[n - 1 - j], j) for j in range(n)]
        moments.append(torch.stack([times * one * moments[j] for times, one, j in terms]).sum(0))
        sizes.append(torch.stack([times * one.abs() * sizes[j] for times, one, j in terms]).sum(0))
    return moments[p], sizes[p]


def _checked(found: tuple[Tensor, Tensor]) -> Tensor:
    """The value of an integral; a warning where its error is not small."""
    value, error = found
    worst = float((error / value.clamp_min(torch.finfo(torch.float64).tiny)).max())
    if worst > PRECISION:
        warnings.warn(f"an integral over the increment's law has a relative error of {worst:.1e}", stacklevel=3)
    return value
