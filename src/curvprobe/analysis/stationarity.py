"""How far the solution is from a minimiser, as the criteria see it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from curvprobe.criteria.sample import ProjectedSample, moving_ratio
from curvprobe.numerics.linalg import norm
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.runtime.plain import number
from curvprobe.subspace.spaces import Eigenspace, Subspace


@dataclass(frozen=True)
class Stationarity:
    """Distance from a minimiser.

    Attributes:
        gradient_norm: Euclidean norm of the gradient of the risk, loss units per parameter unit.
        projected_gradient_norm: of its part in the subspace.
        newton_decrement: decrease of the loss that a Newton step in the subspace promises, loss units:
            ``c^T (Lambda + damping)^-1 c / 2``; NaN where the damped eigenvalues are not all positive.
        moving_ratio: squared mean gradient in the subspace over what the examples' scatter explains: about 0 where
            the sample was fitted to the end, 1 at a minimiser of the population's risk, large where training would
            still move the point.
        slope_share: ``|U^T g^(k)|^2`` over the mean of ``|U^T (g_j - g^(k))|^2`` over the next examples: how much of
            the slope term is the solution's own gradient, which the paper sets to zero.
    """

    gradient_norm: float
    projected_gradient_norm: float
    newton_decrement: float
    moving_ratio: float
    slope_share: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Stationarity:
        """What :meth:`to_json` has written."""
        return cls(**{name: number(value) for name, value in record.items()})

    def __str__(self) -> str:
        promised = "is not defined (not all eigenvalues are positive)"
        if not math.isnan(self.newton_decrement):
            promised = f"would take {self.newton_decrement:.2e} off the loss"
        return (
            f"Stationarity: a Newton step in the subspace {promised};\n"
            f"  in the slope's mean square the sample's own gradient is {100 * self.slope_share:.2g} %"
        )


def stationarity(
    risk: EmpiricalRisk,
    subspace: Subspace,
    sample: ProjectedSample,
    fresh: ProjectedSample | None = None,
    *,
    damping: float = 0.0,
) -> Stationarity:
    """How far the solution is from a minimiser of the risk.

    Args:
        risk: on the k examples.
        subspace: an eigenspace of its Hessian.
        sample: the k examples projected onto it.
        fresh: the next examples projected onto it; None takes the sample's own.
        damping: added to the eigenvalues in the Newton step.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)))
        >>> space = cp.top_eigenspace(risk, dim=1)
        >>> found = cp.stationarity(risk, space, cp.project(risk, space))
        >>> found.gradient_norm, round(found.newton_decrement, 4)   # the loss itself: its minimum is 0
        (5.0, 2.5)
    """
    mean = sample.mean().gradient[0]
    others = sample if fresh is None else fresh
    decrement = math.nan
    if isinstance(subspace, Eigenspace) and bool((subspace.eigenvalues + damping > 0).all()):
        decrement = float((mean.square() / (subspace.eigenvalues + damping)).sum() / 2)
    scatter = float((others.gradient - mean).square().sum(1).mean())
    return Stationarity(
        gradient_norm=norm(risk.gradient()),
        projected_gradient_norm=float(mean.norm()),
        newton_decrement=decrement,
        moving_ratio=moving_ratio(sample),
        slope_share=float(mean.square().sum()) / scatter if scatter > 0 else 0.0,
    )
