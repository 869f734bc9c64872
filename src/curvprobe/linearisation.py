"""First-order graphs of one microbatch, and their derivatives along vectors: what curvature products are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvprobe.examples import Batch
from curvprobe.losses import split_loss
from curvprobe.risk import EmpiricalRisk

Kind = Literal["hessian", "ggn"]

Linear = Callable[[Tensor], Iterator[Tensor]]
"""Maps a block (N, b) to its b products with the curvature of one microbatch's summed loss, in order."""

Derivative = Callable[[list[Tensor], bool], list[Tensor]]
"""Maps tangents of the parameters' shapes (or, when True, with a leading dimension of tangents) to such products."""

TANGENTS_AT_ONCE = 16
"""Tangents that an accelerator takes through the graph together, at most."""


def linearise(risk: EmpiricalRisk, kind: Kind, batch: Batch, rows: int) -> Linear:
    """The curvature of the batch's summed loss; keeps the graph of its first derivatives alive."""
    return along(risk, {"hessian": _hessian, "ggn": _ggn}[kind](risk, batch, rows), rows)


def along(risk: EmpiricalRisk, derivative: Derivative, rows: int) -> Linear:
    """Products with the columns of a block from derivatives along tangents; ``rows`` examples are behind them."""
    return lambda block: _along_columns(risk, derivative, block, tangents_at_once(risk, rows))


def _hessian(risk: EmpiricalRisk, batch: Batch, rows: int) -> Derivative:
    leaves = risk.leaves()
    loss_sum, weight = risk.batch_losses(leaves, batch, rows)
    gradients = risk.first_order(loss_sum.sum(), leaves, create_graph=True)
    if rows == len(risk):
        risk.remember_pass(loss_sum, weight, gradients)
    return gradient_derivative(leaves, gradients)


def gradient_derivative(leaves: dict[str, Tensor], gradients: list[Tensor]) -> Derivative:
    """Derivative of ``gradients``, a graph in ``leaves``, along tangents; by the symmetry of the Hessian, backwards."""
    return lambda tangents, batched: derivatives(gradients, list(leaves.values()), tangents, batched=batched)


def _ggn(risk: EmpiricalRisk, batch: Batch, rows: int) -> Derivative:
    leaves = risk.leaves()
    reached, free, slopes = output_slopes(risk, leaves, batch, rows)
    if not reached:  # these examples pass the probed parameters by
        return lambda tangents, _: [torch.zeros_like(tangent) for tangent in tangents]
    bend = output_bends(leaves, reached, free, slopes)
    return lambda tangents, batched: derivatives(
        reached, list(leaves.values()), bend(tangents, batched), batched=batched
    )


def tangents_at_once(risk: EmpiricalRisk, rows: int) -> int:
    """How many tangents to take through a graph of ``rows`` examples together: by rule, so that it repeats.

    One on a CPU, where a batch of tangents takes as long as one after the other; elsewhere as many as the budget
    for a microbatch has room for.
    """
    if risk.device.type == "cpu":
        return 1
    return max(1, min(TANGENTS_AT_ONCE, risk.memory_budget // 2 // (risk.footprint.example * rows)))


def _along_columns(risk: EmpiricalRisk, derivative: Derivative, block: Tensor, at_once: int) -> Iterator[Tensor]:
    """Products (N,) for the columns of ``block`` (N, b), ``at_once`` of them together where that works."""
    start = 0
    while start < block.shape[1]:
        chunk = block[:, start : start + at_once]
        if chunk.shape[1] > 1:
            try:
                products = _together(risk, derivative, chunk)
            except RuntimeError:  # an operation without a batching rule
                at_once = 1
                continue
            if start == 0 and not agree(products[0], _alone(risk, derivative, chunk[:, 0])):
                at_once = 1  # a wrong batching rule
                continue
            yield from products
        else:
            yield _alone(risk, derivative, chunk[:, 0])
        start += chunk.shape[1]


def _alone(risk: EmpiricalRisk, derivative: Derivative, column: Tensor) -> Tensor:
    return risk.flatten(derivative(list(risk.split(column.contiguous()).values()), False))


def _together(risk: EmpiricalRisk, derivative: Derivative, chunk: Tensor) -> Tensor:
    """Products (b, N) of the columns of ``chunk`` (N, b), in one batched pass."""
    rows = [list(risk.split(column.contiguous()).values()) for column in chunk.T]
    parts = derivative([torch.stack(pieces) for pieces in zip(*rows, strict=True)], True)
    return torch.cat([part.detach().reshape(len(rows), -1) for part in parts], dim=1)


def agree(product: Tensor, reference: Tensor) -> bool:
    """Whether two ways to the same product differ by rounding only."""
    tolerance = 1e-3 if reference.dtype == torch.float32 else 1e-8
    return float((product - reference).norm()) <= tolerance * float(reference.norm())


def output_slopes(
    risk: EmpiricalRisk, leaves: dict[str, Tensor], batch: Batch, rows: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The model's output tensors as graphs in the parameters, the same detached, and the loss's gradient in these."""
    outputs = _output_tensors(risk.outputs(leaves, batch))
    at = [i for i, z in enumerate(outputs.tensors) if z.requires_grad]
    free = [outputs.tensors[i].detach().requires_grad_() for i in at]
    loss_sum, _ = split_loss(risk.loss(outputs.rebuild(dict(zip(at, free, strict=True))), batch), rows)
    slopes = derivatives([loss_sum.sum()], free, create_graph=True)
    return [outputs.tensors[i] for i in at], free, slopes


def output_bends(
    leaves: dict[str, Tensor], reached: list[Tensor], free: list[Tensor], slopes: list[Tensor]
) -> Derivative:
    """The loss's Hessian in the outputs, times the outputs' derivative along tangents."""
    # J^T u as a graph in the cotangents u: it is linear in them, and its own derivative along v is J v.
    cotangents = [torch.zeros_like(z).requires_grad_() for z in free]
    pulled = derivatives(reached, list(leaves.values()), cotangents, create_graph=True)

    def bend(tangents: list[Tensor], batched: bool) -> list[Tensor]:
        pushed = derivatives(pulled, cotangents, tangents, batched=batched)
        return derivatives(slopes, free, pushed, batched=batched)

    return bend


def derivatives(
    outputs: list[Tensor],
    inputs: list[Tensor],
    along: list[Tensor] | None = None,
    *,
    batched: bool = False,
    create_graph: bool = False,
) -> list[Tensor]:
    """``torch.autograd.grad`` that keeps the graph, and is zero where an output does not depend on an input."""
    reached = [i for i, output in enumerate(outputs) if output.requires_grad]
    grads: tuple[Tensor | None, ...] = (None,) * len(inputs)
    if reached:
        grads = torch.autograd.grad(
            [outputs[i] for i in reached],
            inputs,
            None if along is None else [along[i] for i in reached],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            is_grads_batched=batched,
        )
    lead = (along[0].shape[0],) if batched and along else ()
    return [x.new_zeros((*lead, *x.shape)) if g is None else g for g, x in zip(grads, inputs, strict=True)]


@dataclass(frozen=True)
class _Outputs:
    leaves: list[Any]
    places: list[int]
    structure: Any

    @property
    def tensors(self) -> list[Tensor]:
        return [self.leaves[i] for i in self.places]

    def rebuild(self, replaced: dict[int, Tensor]) -> Any:
        leaves = list(self.leaves)
        for position, tensor in replaced.items():
            leaves[self.places[position]] = tensor
        return pytree.tree_unflatten(leaves, self.structure)


def _output_tensors(outputs: Any) -> _Outputs:
    leaves, structure = pytree.tree_flatten(outputs)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not places:
        raise TypeError(
            f"the model returned {type(outputs).__name__}, in which no floating-point tensor was found; "
            "the Gauss-Newton matrix needs tensors, or containers of them, as outputs"
        )
    return _Outputs(leaves, places, structure)
