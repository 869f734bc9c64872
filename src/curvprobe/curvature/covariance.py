"""Products with the covariance of the examples' gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from curvprobe.curvature.double_backward import double_backward_errors
from curvprobe.curvature.linearisation import derivatives
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.risk.passes import as_memory_allows, on_own_examples


def covariance_product(risk: EmpiricalRisk, vector: Tensor) -> Tensor:
    """``C v`` for v (N,), with C the weighted covariance of the examples' gradients."""
    vector = vector.detach().to(risk.device)
    mean_slope = float(risk.probed.vectors.inner(vector[None], risk.gradient())[0])
    if not risk.ranks.several:
        return (_own_sum(risk, vector, mean_slope) / risk.total_weight).to(risk.dtype)
    total = torch.zeros(risk.probed.held, dtype=torch.float64, device=risk.device)
    with on_own_examples(risk):
        if risk.own is not None:
            total += _own_sum(risk.own, vector, mean_slope)
    if risk.probed.divided is None:  # else each has its rows of the sum over all
        total = risk.ranks.total(total)
    return (total / risk.total_weight).to(risk.dtype)


def _own_sum(risk: EmpiricalRisk, vector: Tensor, mean_slope: float) -> Tensor:
    return as_memory_allows(risk, lambda: _sum(risk, vector, mean_slope))


def _sum(risk: EmpiricalRisk, vector: Tensor, mean_slope: float) -> Tensor:
    """``sum_i w_i g_i <g_i - g, v>`` over the examples, float64 (N,)."""
    model = risk.probed
    total = torch.zeros(model.held, dtype=torch.float64, device=risk.device)
    tangents = list(model.split(vector.contiguous()).values())
    with risk.undisturbed(), double_backward_errors():
        for microbatch in risk.microbatches():
            leaves = model.leaves()
            loss_sum, weight = model.batch_losses(leaves, microbatch)
            losses, parameters = loss_sum / weight, list(leaves.values())
            # J^T u as a graph in u: it is linear in it, and its own derivative along v is J v.
            cotangent = torch.zeros_like(losses).requires_grad_()
            pulled = derivatives([losses], parameters, [cotangent], create_graph=True)
            slopes = derivatives(pulled, [cotangent], tangents)[0]
            weights = risk.weights[microbatch.rows].to(slopes)
            if microbatch.counted is not None:
                weights[microbatch.counted :] = 0.0
            pushed = (weights * (slopes - mean_slope)).to(losses.dtype)
            total += model.flatten(derivatives([losses], parameters, [pushed]))
    return total
