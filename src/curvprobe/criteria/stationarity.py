"""What the gradient at the solution says of its being a minimum."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from curvprobe.criteria.sample import ProjectedSample
from curvprobe.runtime.plain import number

MOVING = 4.0
"""Squared mean gradient, over what the scatter of the gradients explains, above which the point is not stationary."""

REMEDY = "train on, or put what else was trained with (weight decay) into the loss"


@dataclass(frozen=True)
class Stationarity:
    """Distance from a minimiser, in all parameters and in the subspace.

    Attributes:
        gradient_norm: Euclidean norm of the gradient of the risk, loss units per parameter unit.
        projected_gradient_norm: of its part in the subspace.
        newton_decrement: decrease of the loss that a Newton step in the subspace promises, loss units:
            ``c^T (Lambda + damping)^-1 c / 2``; NaN where the damped eigenvalues are not all positive.
        step_decrease: decrease of the loss that a gradient step in all parameters promises, loss units:
            ``|g|^2 / (2 lambda)`` with the largest curvature that is known.
        moving_ratio: squared mean gradient in all parameters over what the examples' scatter explains: about 0 where
            the sample was fitted to the end, 1 at a minimiser of the population's risk, large where training would
            still move the point; NaN where one example leaves nothing to judge by.
        slope_share: ``|U^T g^(k)|^2`` over the mean of ``|U^T (g_j - g^(k))|^2`` over the next examples: how much of
            the slope term is the solution's own gradient, which the paper sets to zero.
        descent: how far the loss itself fell along a few conjugate gradient steps, loss units: training would take off
            more; NaN in a result of an earlier version.
        least_curvature: the smallest that these steps met; below zero the point is a saddle. NaN where nothing was met.
    """

    gradient_norm: float
    projected_gradient_norm: float
    newton_decrement: float
    step_decrease: float
    moving_ratio: float
    slope_share: float
    descent: float = math.nan
    least_curvature: float = math.nan

    @property
    def falls(self) -> float:
        """What is known to be still there to be taken off the loss, loss units."""
        return self.step_decrease if math.isnan(self.descent) else max(self.step_decrease, self.descent)

    @property
    def outside(self) -> float:
        """Share of the squared gradient outside the subspace."""
        if self.gradient_norm == 0:
            return 0.0
        return max(0.0, 1 - (self.projected_gradient_norm / self.gradient_norm) ** 2)

    def refusal(self, tolerance: float | None = None) -> str | None:
        """Why the solution cannot be taken for a minimum, or None.

        Args:
            tolerance: in loss units; a gradient step that takes more than this off the loss is no minimum on its scale.
        """
        where = f"in all parameters ({100 * self.outside:.0f} % of it outside the subspace)"
        found = moving(self.moving_ratio, where)
        if found is None and tolerance is not None and self.step_decrease > tolerance:
            found = (
                f"the point is not stationary: a gradient step would take {self.step_decrease:.2g} off the loss, more "
                f"than the tolerance of {tolerance:g}"
            )
        return None if found is None else f"{found}; {REMEDY}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; JSON knows neither NaN nor infinity, and which of the two the moving ratio is decides."""
        return asdict(self) | {"outside": self.outside, "moving_known": not math.isnan(self.moving_ratio)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Stationarity:
        """What :meth:`to_json` has written; results of schema 3 or before hold the moving ratio of the subspace."""
        known = {"step_decrease": None, "descent": None, "least_curvature": None} | record
        ratio = number(known["moving_ratio"], math.inf if known.get("moving_known") else math.nan)
        names = [field.name for field in fields(cls) if field.name != "moving_ratio"]
        return cls(moving_ratio=ratio, **{name: number(known[name]) for name in names})

    def __str__(self) -> str:
        promised = "is not defined (not all eigenvalues are positive)"
        if not math.isnan(self.newton_decrement):
            promised = f"would take {self.newton_decrement:.2e} off the loss"
        return (
            f"Stationarity: a gradient step would take {self.step_decrease:.2e} off the loss, "
            f"{100 * self.outside:.0f} % of the squared gradient is outside the subspace;\n"
            f"  a Newton step in the subspace {promised}; in the slope's mean square the sample's own gradient is "
            f"{100 * self.slope_share:.2g} %"
            + (
                ""
                if math.isnan(self.descent)
                else f"; a few conjugate gradient steps took {self.descent:.2e} off the loss"
            )
            + (f", and met a curvature of {self.least_curvature:.2g}" if self.least_curvature < 0 else "")
        )


def moving_ratio(sample: ProjectedSample) -> float:
    """Squared mean gradient in the subspace over its expectation at a minimiser of the population's risk."""
    share = sample.weight / sample.weight.sum()
    mean = share @ sample.gradient
    scatter = float((share.square()[:, None] * (sample.gradient - mean).square()).sum())
    return over_scatter(float(torch.sum(mean.square())), scatter, len(sample))


def explained(square: float, norms: Tensor, shares: Tensor) -> float:
    """What the examples' scatter explains of the squared mean gradient, ``sum s_i^2 (|g_i|^2 - |g|^2)``: for equal
    shares s_i, its expectation at a minimiser of the population's risk."""
    return float((shares.cpu().square() * (norms.double().square() - square)).sum())


def over_scatter(square: float, scatter: float, count: int) -> float:
    """A squared mean gradient over what the scatter of ``count`` examples explains; NaN where that cannot be said."""
    if square == 0:
        return 0.0
    if count < 2 or scatter < 0:
        return math.nan
    return square / scatter if scatter > 0 else math.inf


def moving(ratio: float, where: str) -> str | None:
    """Why a squared mean gradient of so many times its noise is not that of a stationary point, or None."""
    if not ratio > MOVING:
        return None
    return (
        f"the point is not stationary: the squared mean gradient {where} is {ratio:.3g} times what the scatter of the "
        f"examples' gradients explains (at most {MOVING:g} is taken for noise)"
    )
