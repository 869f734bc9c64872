"""Which examples join which sample, and by how much each quantity of the risk then moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from curvprobe.criteria.increment import joining_factor
from curvprobe.curvature.matrix import hessian
from curvprobe.risk.displaced import displaced_losses, displaced_values
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk


@dataclass(frozen=True, eq=False)
class Joining:
    """The examples of ``new`` join the sample of ``risk``, all at once or each alone.

    Every increment is ``f (mean over the new examples - mean over the sample)``, by the exact identity.

    Attributes:
        risk: on the k examples.
        new: on the examples that join, of the same model; another one's are refused.
    """

    risk: EmpiricalRisk
    new: EmpiricalRisk

    def __post_init__(self) -> None:
        expect_risk(self.risk)
        expect_risk(self.new)
        self.risk.check_same_model(self.new)

    @cached_property
    def factor(self) -> float:
        """f when all join at once."""
        return joining_factor(self.risk.total_weight, self.new.total_weight)

    @cached_property
    def factors(self) -> Tensor:
        """f when each joins alone, float64 (m,)."""
        return joining_factor(self.risk.total_weight, self.new.weights)

    # ---- what the new examples have beyond the sample; times the factor, the increment's

    def value_gap(self, displacement: Tensor | None = None) -> float:
        """Of the mean loss, at ``w* + displacement``."""
        return self.new.value(displacement) - self.risk.value(displacement)

    def gradient_gap(self) -> Tensor:
        """Of the mean gradient at the solution (N,)."""
        return self.new.gradient() - self.risk.gradient()

    def hessian_gap(self) -> Callable[[Tensor], Tensor]:
        """Of the mean Hessian at the solution, as a product with vectors (N,) or (N, b)."""
        H, H_new = hessian(self.risk), hessian(self.new)
        return lambda vectors: H_new @ vectors - H @ vectors

    # ---- true increments

    def increment_at(self, displacement: Tensor | None = None) -> float:
        """The true increment at ``w* + displacement``, in float64."""
        return self.factor * self.value_gap(displacement)

    def increments(self, block: Tensor) -> Tensor:
        """True increments at displacements (b, N) when all join at once, float64 (b,)."""
        values = displaced_values(self.risk, block)
        return self.factor * (displaced_values(self.new, block) - values)

    def single_increments(self, block: Tensor) -> Tensor:
        """True increments at displacements (b, N) when each of the m joins alone, float64 (b, m)."""
        values = displaced_values(self.risk, block)
        return self.factors * (displaced_losses(self.new, block) - values[:, None])
