"""The largest increment within a ball: the limit of the criteria as their order grows, for a bounded probe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe.criteria.distribution import check_single
from curvprobe.criteria.increment import QuadraticIncrement
from curvprobe.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class WorstCase:
    """The largest magnitude of a quadratic increment over a ball.

    Attributes:
        value: ``max |Q(z)|`` over ``|z| <= radius``, loss units.
        at: coordinates z (D,) at which it is reached.
        radius: of the ball, parameter units.
        bound: ``|a| + radius |c| + radius^2 |B| / 2`` in the spectral norm, which it does not exceed.
    """

    value: float
    at: Tensor
    radius: float
    bound: float


def worst_case(increment: QuadraticIncrement, radius: float) -> WorstCase:
    r"""The largest magnitude of a quadratic increment within a distance of the solution.

    .. math:: \max_{|z| \le r} | a + c^T z + z^T B z / 2 |

    What ``(E |Q|^p)^{1/p}`` tends to as p grows, for every law that fills the ball. Exact: each sign is a trust-region
    problem, whose solution ``(mu I - B) z = c`` is found on its secular equation, the hard case (c without a part along
    the leading eigenvector) included.

    Args:
        increment: level a (), slope c (D,), curvature B (D, D) symmetric; loss units.
        radius: r, parameter units. Draws of a Gaussian probe lie at about ``sigma sqrt(D)``.

    Raises:
        ValueError: for a radius that is not positive and finite, or several increments.

    Source: More & Sorensen (1983), "Computing a trust region step".

    Example:
        >>> import torch, curvprobe as cp
        >>> saddle = cp.QuadraticIncrement(torch.tensor(0.1), torch.zeros(2), torch.diag(torch.tensor([1.0, -2.0])))
        >>> found = cp.worst_case(saddle, radius=1.0)
        >>> round(found.value, 4), found.at.abs().tolist()   # 0.1 - 2 / 2, along the second direction
        (0.9, [0.0, 1.0])
    """
    check_single(increment)
    if not 0 < radius < math.inf:
        raise ArgumentError(f"radius is {radius!r}; expected a positive number in parameter units")
    eigenvalues, vectors = torch.linalg.eigh(increment.curvature)
    slope = vectors.T @ increment.slope
    ends = [_largest(sign * slope, sign * eigenvalues, radius) for sign in (1.0, -1.0)]
    ends = [vectors @ (end * min(1.0, radius / max(radius, float(end.norm())))) for end in ends]  # rounding
    values = increment.at(torch.stack(ends)).abs()
    best = int(values.argmax())
    size = float(eigenvalues.abs().max())
    bound = abs(float(increment.level)) + radius * float(slope.norm()) + radius**2 * size / 2
    return WorstCase(float(values[best]), ends[best], float(radius), max(bound, float(values[best])))


def _largest(slope: Tensor, eigenvalues: Tensor, radius: float) -> Tensor:
    """Where ``slope . x + sum(eigenvalues x^2) / 2`` is largest on the ball, (D,)."""
    from scipy.optimize import brentq

    edge = max(0.0, float(eigenvalues.max()))
    gaps = edge - eigenvalues  # of the multiplier mu = edge + t, which is at least edge
    inner = torch.where(slope == 0, 0.0, slope / gaps)
    if bool(inner.isfinite().all()) and float(inner.norm()) <= radius:
        rest = math.sqrt(max(0.0, radius**2 - float(inner.square().sum())))
        if edge > 0 and rest > 0:  # the hard case: along the leading eigenvector, either way
            inner = inner.clone()
            inner[int(eigenvalues.argmax())] += rest
        return inner
    size = float(slope.norm()) / radius

    def excess(logarithm: float) -> float:
        return math.log(float((slope / (math.exp(logarithm) + gaps)).norm()) / radius)

    high = math.log(size) + 1e-9
    low = high - 1.0
    while excess(low) < 0 and low > -745.0 + 1.0:
        low = max(-745.0 + 1.0, low - (high - low))
    return slope / (math.exp(brentq(excess, low, high, xtol=1e-15, rtol=1e-14)) + gaps)
