"""How far the solution is from a minimiser: the gradient in all parameters, and in the subspace."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvprobe.criteria.sample import ProjectedSample
from curvprobe.criteria.stationarity import Stationarity, over_scatter
from curvprobe.curvature.matrix import hessian
from curvprobe.numerics.linalg import inner, norm
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.subspace.gradients import gradient_norms
from curvprobe.subspace.spaces import Eigenspace, Subspace


def stationarity(
    risk: EmpiricalRisk,
    subspace: Subspace,
    sample: ProjectedSample,
    fresh: ProjectedSample | None = None,
    *,
    damping: float = 0.0,
) -> Stationarity:
    """How far the solution is from a minimiser of the risk.

    Costs one gradient of every example and one Hessian product.

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
        >>> found.gradient_norm, round(found.newton_decrement, 4), round(found.step_decrease, 4)   # the minimum is 0
        (5.0, 2.5, 2.5)
    """
    expect_risk(risk)
    mean = sample.mean()
    slope = mean.gradient[0]
    others = sample if fresh is None else fresh
    decrement = math.nan
    if isinstance(subspace, Eigenspace) and bool((subspace.eigenvalues + damping > 0).all()):
        decrement = float((slope.square() / (subspace.eigenvalues + damping)).sum() / 2)
    scatter = float((others.gradient - slope).square().sum(1).mean())
    gradient = risk.gradient()
    return Stationarity(
        gradient_norm=norm(gradient),
        projected_gradient_norm=float(slope.norm()),
        newton_decrement=decrement,
        step_decrease=_step_decrease(risk, gradient, mean.hessian[0]),
        moving_ratio=_moving_ratio(norm(gradient) ** 2, gradient_norms(risk), risk.shares),
        slope_share=float(slope.square().sum()) / scatter if scatter > 0 else 0.0,
    )


def _step_decrease(risk: EmpiricalRisk, gradient: Tensor, projected: Tensor) -> float:
    """What a gradient step of the inverse of the largest curvature takes off the loss: of the eigenspace's curvatures
    and that along the gradient itself, which may be larger where the eigenspace is not the top one."""
    square = norm(gradient) ** 2
    if square == 0:
        return 0.0
    along = abs(float(inner(gradient[None], hessian(risk) @ gradient)[0])) / square
    largest = max(along, float(torch.linalg.eigvalsh(projected).abs().max()))
    return square / (2 * largest) if largest > 0 else math.inf


def _moving_ratio(square: float, norms: Tensor, shares: Tensor) -> float:
    """The squared mean gradient over ``sum s_i^2 (|g_i|^2 - |g|^2)``: for equal shares s_i, its expectation at a
    minimiser of the population's risk."""
    scatter = float((shares.cpu().square() * (norms.double().square() - square)).sum())
    return over_scatter(square, scatter, len(norms))
