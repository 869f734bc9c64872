r"""Moments and tails of a quadratic form of normal variables, by one contour integral; knows nothing of increments.

.. math:: Q = a + \sum_j ( c_j x_j + b_j x_j^2 / 2 ), \quad x \sim N(0, I_D), \qquad
    E\, Q_+^p = \frac{\Gamma(p + 1)}{2 \pi i} \int_{\gamma - i \infty}^{\gamma + i \infty}
    \frac{E\, e^{s Q}}{s^{p + 1}} \, ds, \quad \gamma > 0

The integrand is smallest on the real axis at its saddle point and falls off from there: nothing cancels, and tails keep
their relative precision. Distribution, exceedance and every moment are this one integral.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALLEST = -700.0
"""Logarithm below which a tail is zero."""

NEGLIGIBLE = -42.0
"""Logarithm of what is left out at the end of the contour, relative to its middle."""

HIGHEST = 1.0
"""Logarithm up to which the integrand may rise along a contour that is taken."""

FARTHEST = 90.0
"""End of the contour's parameter; the distance from the saddle point is its hyperbolic sine."""

BEND = math.tan(math.pi / 6)
"""Slope of the contour's asymptotes against the vertical: a Gaussian factor falls off up to 1."""

PRECISION = 1e-11
"""Relative difference of two steps at which the finer one is taken."""

HALVINGS = 7

ROUNDING = 1e-13
"""A largest value of this size, relative to the terms that it is the difference of, is zero."""

_AT_ONCE = 1 << 21
"""Numbers of a block of the contour."""


def absolute_moment(p: float, a: Tensor, c: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``E |Q|^p`` and its error, (n,) each, for p > 0."""
    above, below = upper_moment(p, a, c, b), upper_moment(p, -a, c, -b)
    return above[0] + below[0], above[1] + below[1]


def upper_moment(p: float, a: Tensor, c: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``E Q_+^p`` for p > 0, the probability that Q is positive for p = 0; with the error of the integration.

    Args:
        p: power, not negative.
        a: float64 (n,).
        c, b: float64 (n, D).

    Returns:
        Value and error, (n,) each.

    Source: Laplace inversion along a path through the saddle point; for p = 0 it is the exact form of the approximation
    of Lugannani & Rice (1980), "Saddle point approximation for the distribution of the sum of independent random
    variables".

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> value, _ = upper_moment(0, torch.tensor([-1.96], dtype=torch.float64), one, 0 * one)
        >>> round(float(value), 4)   # P(x > 1.96)
        0.025
    """
    scale = (c.square().sum(1) + b.square().sum(1) / 2 + (a + b.sum(1) / 2).square()).sqrt()
    known = torch.where(a > 0, a.clamp_min(0) ** p, 0.0)  # where Q is a constant
    value, error = known.clone(), torch.zeros_like(known)
    random = (c != 0).any(1) | (b != 0).any(1)
    value = torch.where(random, 0.0, value)
    rows = (random & (_supremum(a, c, b) > 0)).nonzero().flatten()
    for some in torch.split(rows, max(1, _AT_ONCE // (c.shape[1] * 400))):
        unit = scale[some]
        found, off = _integral(p, a[some] / unit, c[some] / unit[:, None], b[some] / unit[:, None])
        value[some], error[some] = found * unit**p, off * unit**p
    return value, error


def _supremum(a: Tensor, c: Tensor, b: Tensor) -> Tensor:
    """The largest value of Q (n,)."""
    free = ((b > 0) | ((b == 0) & (c != 0))).any(1)
    bend = torch.where(b < 0, c.square() / (-2 * b), 0.0).sum(1)
    top = torch.where((a + bend).abs() <= ROUNDING * (a.abs() + bend), 0.0, a + bend)
    return torch.where(free, math.inf, top)


def _integral(p: float, a: Tensor, c: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    saddle = _Saddle(p, a, c, b)
    turn = saddle.direction()
    step, before = 0.2, None
    found, error = a, torch.full_like(a, math.inf)
    for _ in range(HALVINGS):
        found = saddle.along(turn, step)
        if before is not None:
            error = (found - before).abs()
            if bool((error <= PRECISION * found.abs()).all()):
                break
        step, before = step / 2, found
    size = (saddle.height + math.lgamma(p + 1)).clamp_max(700.0).exp()
    gone = saddle.height < SMALLEST
    return torch.where(gone, 0.0, size * found), torch.where(gone, 0.0, size * error)


class _Saddle:
    """The saddle point of ``log E exp(s Q) - (p + 1) log s`` for n forms, and the integrand around it."""

    def __init__(self, p: float, a: Tensor, c: Tensor, b: Tensor) -> None:
        self.p, self.a, self.c, self.b = p, a[:, None], c, b
        self.point, self.left = self._found()
        s, w = self.point[:, 0], self.left
        self.height = (  # of the integrand's logarithm
            a * s + (c.square() * s[:, None] ** 2 / (2 * w) - w.log() / 2).sum(1) - (p + 1) * s.log()
        )
        second = (c.square() / w**3 + b.square() / (2 * w**2)).sum(1) + (p + 1) / s**2
        self.width = second.rsqrt()[:, None]
        self.third = (3 * b * c.square() / w**4 + b**3 / w**3).sum(1) - 2 * (p + 1) / s**3

    def _found(self) -> tuple[Tensor, Tensor]:
        """The point s (n, 1), and ``1 - b s`` (n, D) without cancellation, by bisection of the rising derivative.

        Where the largest b is positive, s ends before its inverse and is looked for on a logistic scale.
        """
        largest = self.b.max(1, keepdim=True).values
        bounded = largest > 0
        unit = torch.where(bounded, largest, 1.0)

        def at(v: Tensor) -> tuple[Tensor, Tensor]:
            part, rest = v.sigmoid(), (-v).sigmoid()
            s = torch.where(bounded, part / unit, v.exp())
            left = torch.where(bounded, rest + (1 - self.b / unit) * part, 1 - self.b * s)
            return s, left

        low, high = (torch.full_like(self.a, end) for end in (-SMALLEST / -2, -SMALLEST / 2))
        for _ in range(80):
            v = (low + high) / 2
            s, w = at(v)
            bend = self.c.square() * s * (2 - self.b * s) / (2 * w**2) + self.b / (2 * w)
            rising = s * self.a + (s * bend).sum(1, keepdim=True) - (self.p + 1) > 0
            low, high = torch.where(rising, low, v), torch.where(rising, v, high)
        return at(low)

    def log_integrand(self, shift: Tensor) -> Tensor:
        """Its logarithm at the point plus complex shifts (n, u), less that at the point."""
        s, w = self.point, self.left
        total = self.a * shift - (self.p + 1) * torch.log1p(shift / s)
        for j in range(self.b.shape[1]):
            b, before = self.b[:, j, None], w[:, j, None]
            after = before - b * shift
            bend = shift * ((2 * s + shift) * before + s**2 * b) / (after * before)
            total = total + self.c[:, j, None].square() / 2 * bend - torch.log1p(-b * shift / before) / 2
        return total

    def path(self, turn: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Shifts (n, u) along a hyperbola that leaves the real axis upright and bends by ``turn`` (n,), and their
        derivative."""
        tilt = BEND * turn[:, None]
        shift = torch.complex(self.width * tilt * (u.cosh() - 1), self.width * u.sinh())
        return shift, torch.complex(self.width * tilt * u.sinh(), self.width * u.cosh())

    def direction(self) -> Tensor:
        """Which way the path bends (n,), so that the integrand falls off without a rise: as the steepest descent does,
        or else the other way, or not at all."""
        first = self.third.sign()
        falls = self._falls(first)
        if bool(falls.all()):
            return first
        return torch.where(falls, first, torch.where(self._falls(-first), -first, 0.0))

    def _falls(self, turn: Tensor) -> Tensor:
        """Whether the integrand falls off along the path without a rise (n,)."""
        ended, rises = (torch.zeros_like(turn, dtype=torch.bool) for _ in range(2))
        for first in torch.arange(0.0, FARTHEST, 4.0, dtype=torch.float64, device="cpu"):
            if bool((ended | rises).all()):
                break
            u = first + torch.arange(0.0, 4.0, 0.25, dtype=torch.float64, device="cpu")
            shift, slope = self.path(turn, u)
            size = self.log_integrand(shift).real + slope.abs().log() - self.width.log()
            size = size.nan_to_num(nan=math.inf)
            small = (size < NEGLIGIBLE).cummax(1).values | ended[:, None]
            rises |= ((size > HIGHEST) & ~small).any(1)
            ended = small[:, -1]
        return ended & ~rises

    def along(self, turn: Tensor, step: float) -> Tensor:
        """The integral over the path by the trapezoidal rule, relative to the integrand at the point; (n,)."""
        total = torch.zeros_like(self.third)
        ended = torch.zeros_like(total, dtype=torch.bool)
        count, first = 32, 0
        while first * step < FARTHEST and not bool(ended.all()):
            u = step * torch.arange(first, first + count, dtype=torch.float64, device="cpu")
            shift, slope = self.path(turn, u)
            terms = self.log_integrand(shift).exp() * slope
            size = terms.abs() / self.width
            small = (size < math.exp(NEGLIGIBLE)).cummax(1).values | ended[:, None]
            weighted = torch.where(small, 0.0, terms.imag)
            total = total + weighted.sum(1) - (weighted[:, 0] / 2 if first == 0 else 0.0)
            ended = small[:, -1]
            first += count
        return step * total / math.pi
