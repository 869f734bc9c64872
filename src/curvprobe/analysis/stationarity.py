"""How far the solution is from a minimiser: the gradient in all parameters, and in the subspace."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe.criteria.sample import ProjectedSample
from curvprobe.criteria.stationarity import MOVING, Stationarity, explained, over_scatter
from curvprobe.curvature.matrix import hessian
from curvprobe.numerics.strata import deviations, errors, reaches
from curvprobe.risk.displaced import displaced_losses, in_blocks
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.subspace.gradients import gradient_norms
from curvprobe.subspace.spaces import Eigenspace, Subspace

DESCENT_STEPS = 5
"""Conjugate gradient steps by which it is seen how far the loss would still fall; a Hessian product each."""

SCALES = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
"""Multiples of what they find at which the loss is evaluated."""

ROUNDING = 10
"""Units of rounding of the loss that a fall may be without being one."""

FLAT = 1e-6
"""Part of the largest curvature below which a direction is taken for flat, or bent down."""


def stationarity(
    risk: EmpiricalRisk,
    subspace: Subspace,
    sample: ProjectedSample,
    fresh: ProjectedSample | None = None,
    *,
    damping: float = 0.0,
    steps: EmpiricalRisk | None = None,
) -> Stationarity:
    """How far the solution is from a minimiser of the risk.

    Costs one gradient of every example, :data:`DESCENT_STEPS` Hessian products and some passes over the sample.

    Args:
        risk: on the k examples.
        subspace: an eigenspace of its Hessian.
        sample: the k examples projected onto it.
        fresh: the next examples projected onto it; None takes the sample's own.
        damping: added to the eigenvalues in the Newton step.
        steps: where the k examples were drawn of a larger sample, others, drawn independently, on which the steps are
            taken: along steps of their own the loss of few examples falls where that of all does not. What is told to
            be left to fall is then what stands out of the noise of the draw.

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
    squares = (slope.square() - errors(sample.deviations(sample.gradient)).square()).clamp_min(0.0)
    others = sample if fresh is None else fresh
    decrement = math.nan
    if isinstance(subspace, Eigenspace) and bool((subspace.eigenvalues + damping > 0).all()):
        decrement = float((squares / (subspace.eigenvalues + damping)).sum() / 2)
    scatter = float((others.gradient - slope).square().sum(1).mean())
    length = risk.probed.vectors.norm(risk.gradient())
    noise = explained(square := length**2, gradient_norms(risk), risk.shares)
    found = _descend(risk if steps is None else steps, mean.hessian[0], judged=risk)
    told = square if steps is None else max(0.0, square - MOVING * noise)
    return Stationarity(
        gradient_norm=length,
        projected_gradient_norm=float(slope.norm()),
        newton_decrement=decrement,
        step_decrease=_promised(told, found.steepest),
        moving_ratio=over_scatter(square, noise, len(sample)),
        slope_share=float(squares.sum()) / scatter if scatter > 0 else 0.0,
        descent=found.descent,
        least_curvature=found.least_curvature,
    )


@dataclass(frozen=True)
class _Descent:
    """The largest curvature that is known, what a few steps took off the loss, and the least curvature they met."""

    steepest: float
    descent: float
    least_curvature: float


def _descend(risk: EmpiricalRisk, projected: Tensor, *, judged: EmpiricalRisk) -> _Descent:
    """Follow conjugate gradients for a few steps, and see how far the loss that is judged falls along what they find.

    The gradient alone does not tell: on a plateau, or where valleys are flat, it is within the examples' scatter and
    training would take much off the loss. A curvature below zero ends the steps, and is followed too. Where the
    gradient is zero the steps explore from a random vector: a saddle has none either.
    """
    gradient, norm, inner = risk.gradient(), risk.probed.vectors.norm, risk.probed.vectors.inner
    still = norm(gradient) == 0
    if still:
        gradient = risk.probed.draw(torch.Generator().manual_seed(0))
    square = norm(gradient) ** 2
    matrix, largest, least = hessian(risk), float(torch.linalg.eigvalsh(projected).abs().max()), math.inf
    step, residual, along = torch.zeros_like(gradient), -gradient, -gradient
    directions, left = [], square
    for index in range(DESCENT_STEPS):
        image = matrix @ along
        curvature = float(inner(along[None], image)[0]) / norm(along) ** 2
        least = min(least, curvature)
        if index == 0:  # it may be larger than those of an eigenspace that is not the top one
            largest = max(largest, abs(curvature))
            if not still:
                directions.append(-gradient / largest if largest > 0 else -gradient)
        if curvature <= FLAT * largest:
            # Where no gradient gives a length: as far as the bend changes the loss by itself, about.
            bent = 2 * abs(risk.value()) / max(abs(curvature), FLAT * largest, 1e-300)
            length = math.sqrt(bent) if still else norm(directions[0])
            directions.append(along * (length / norm(along)))
            break
        length = left / (curvature * norm(along) ** 2)
        step = step + length * along
        residual = residual - length * image
        before, left = left, norm(residual) ** 2
        if left <= torch.finfo(risk.dtype).eps * square:  # at the minimum of the quadratic model
            break
        along = residual + (left / before) * along
    if not still:
        directions.append(step)
    bends_down = least < -FLAT * largest  # by more than rounding
    fall = _fall(judged, directions) if directions else 0.0
    return _Descent(largest, fall, least if bends_down else max(least, 0.0))


def _fall(risk: EmpiricalRisk, directions: list[Tensor]) -> float:
    """The most that the loss falls along these directions, at several lengths; 0 where rounding may have made it, or
    the draw of the examples."""
    points = (scale * direction for direction in directions for scale in SCALES)
    falls = torch.cat([_falls(risk, displaced_losses(risk, block, finite=False)) for block in in_blocks(points, risk)])
    value, most = risk.value(), float(falls.nan_to_num(nan=0.0, neginf=0.0).max())
    return most if most > ROUNDING * torch.finfo(risk.dtype).eps * abs(value) else 0.0


def _falls(risk: EmpiricalRisk, losses: Tensor) -> Tensor:
    """How far the risk falls at points (b,), by the examples' losses there (b, n)."""
    falls = risk.value() - (losses @ risk.shares + risk.sample.offset)
    if risk.sample.design is None:
        return falls
    own = deviations((risk.losses() - losses).T, risk.weights, risk.sample.design)
    return falls - reaches(own)


def _promised(square: float, curvature: float) -> float:
    """What a gradient step of this squared length takes off the loss where it bends so."""
    if square == 0:
        return 0.0
    return square / (2 * curvature) if curvature > 0 else math.inf
