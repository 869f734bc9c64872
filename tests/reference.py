"""Naive dense float64 implementations: what the package computes, written as plainly as possible.

Double backward row by row, loops and ``eigh``; no torch.func (its nested transforms are wrong for LayerNorm).
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def trainable(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


@sdpa_kernel(SDPBackend.MATH)
def example_losses(model, loss, batches) -> tuple[list[Tensor], list[float]]:
    """Mean loss (with graph) and weight of each one-example batch."""
    values, weights = [], []
    for batch in batches:
        if isinstance(batch, dict):
            outputs = model(**{k: v for k, v in batch.items() if k not in ("labels", "targets")})
        else:
            outputs = model(batch[0] if isinstance(batch, tuple) else batch)
        result = loss(outputs, batch)
        if isinstance(result, tuple):
            values.append(result[0].sum() / result[1].sum())
            weights.append(float(result[1].sum()))
        else:
            values.append(result.sum())
            weights.append(1.0)
    return values, weights


def risk_value(model, loss, batches) -> Tensor:
    values, weights = example_losses(model, loss, batches)
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def gradient(scalar: Tensor, params: list[Tensor], *, create_graph: bool = False) -> Tensor:
    parts = torch.autograd.grad(
        scalar, params, create_graph=create_graph, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([p.reshape(-1) for p in parts])


def dense_hessian(scalar: Tensor, params: list[Tensor]) -> Tensor:
    """Row by row, by double backward."""
    flat = gradient(scalar, params, create_graph=True)
    rows = [gradient(entry, params) if entry.requires_grad else torch.zeros_like(flat) for entry in flat]
    return torch.stack(rows).detach()


def finite_difference_product(model, loss, batches, vector: Tensor, step: float = 1e-5) -> Tensor:
    """``H v`` by central differences of the gradient at displaced weights."""
    sides = []
    for sign in (1.0, -1.0):
        moved = copy.deepcopy(model)
        params, at = trainable(moved), 0
        with torch.no_grad():
            for p in params:
                p += sign * step * vector[at : at + p.numel()].view(p.shape)
                at += p.numel()
        sides.append(gradient(risk_value(moved, loss, batches), params).detach())
    return (sides[0] - sides[1]) / (2 * step)


def gaussian_moment(a: float, c: Tensor, B: Tensor, sigma: float) -> float:
    """The paper's expanded form, E (a + c'z + z'Bz/2)^2."""
    trace = float(B.trace())
    return a**2 + a * sigma**2 * trace + sigma**2 * float(c @ c) + sigma**4 / 4 * (2 * float((B * B).sum()) + trace**2)
