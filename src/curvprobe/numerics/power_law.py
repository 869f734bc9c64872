"""A power law through values on logarithmic scales."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from curvprobe.numerics.intervals import student_reach


@dataclass(frozen=True)
class PowerLaw:
    """A fit of ``V = c k^exponent`` by least squares on logarithmic scales.

    Attributes:
        exponent: of k.
        interval: its 95 % confidence interval, for independent errors of one size; infinite for fewer than 3 points.
        at_one: c.
    """

    exponent: float
    interval: tuple[float, float]
    at_one: float


def power_law(ks: Tensor, values: Tensor) -> PowerLaw:
    """Least squares through ``log values`` (K,) over ``log ks`` (K,)."""
    x, y = ks.double().log(), values.log()
    spread = (x - x.mean()).square().sum()
    if not float(spread) > 0:
        return PowerLaw(math.nan, (-math.inf, math.inf), math.nan)
    exponent = float(((x - x.mean()) * (y - y.mean())).sum() / spread)
    at_one = float(y.mean() - exponent * x.mean())
    reach, freedom = math.inf, len(x) - 2
    if freedom > 0:
        left = (y - at_one - exponent * x).square().sum()
        reach = student_reach(math.sqrt(float(left / spread) / freedom), freedom)
    return PowerLaw(exponent, (exponent - reach, exponent + reach), math.exp(at_one))
