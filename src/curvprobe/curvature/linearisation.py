"""First-order graphs of one microbatch, and their derivatives along vectors: what curvature products are made of."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvprobe.errors import CannotProbeError, CannotProbeTypeError
from curvprobe.risk.fast_paths import Compared
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Microbatch
from curvprobe.unprojected import Unprojected

Kind = Literal["hessian", "ggn"]

Derivative = Callable[[list[Tensor], bool], list[Tensor]]
"""Maps tangents of the parameters' shapes (or, when True, with a leading dimension of tangents) to products with the
curvature of one microbatch's summed loss."""

FirstOrder = tuple[Tensor, Tensor, list[Tensor]]
"""Summed losses and weights (n,) of a microbatch, and the gradient of their sum by parameter."""


@dataclass(frozen=True)
class Linearisation:
    """The curvature of one microbatch's summed loss, by the graph of its first derivatives, which is kept alive.

    Attributes:
        model: whose parameters the tangents are of.
        name: of the way to the products, for the comparison of many tangents with one.
        kind: type and shapes of the examples.
        derivative: along tangents.
        first_order: what the pass has shown on the way; None where it goes another way.
    """

    model: ProbedModel
    name: str
    kind: Hashable
    derivative: Derivative
    first_order: FirstOrder | None = None

    def products(self, block: Tensor, at_once: int = 1) -> Iterator[Tensor]:
        """Products (N,) with the columns of ``block`` (N, b) in order, ``at_once`` of them together if that works."""
        fast_paths, name = self.model.fast_paths, f"tangents together, {self.name}"
        start = 0
        while start < block.shape[1]:
            chunk = block[:, start : start + at_once]
            if chunk.shape[1] == 1:
                yield self._alone(chunk[:, 0])
            elif fast_paths.hold(name, self.kind, partial(self._compare, chunk[:, :2])):
                try:
                    products = self._together(chunk)
                except RuntimeError:  # another microbatch may bring another operation
                    fast_paths.give_up(name)
                    continue
                yield from products
            else:
                at_once = 1
                continue
            start += chunk.shape[1]

    def _compare(self, two: Tensor) -> Compared:
        return self._together(two)[0], self._alone(two[:, 0])

    def _alone(self, column: Tensor) -> Tensor:
        return self.model.flatten(self.derivative(list(self.model.split(column.contiguous()).values()), False))

    def _together(self, chunk: Tensor) -> Tensor:
        """Products (b, N) of the columns of ``chunk`` (N, b), in one batched pass."""
        rows = [list(self.model.split(column.contiguous()).values()) for column in chunk.T]
        parts = self.derivative([torch.stack(pieces) for pieces in zip(*rows, strict=True)], True)
        return torch.cat([part.detach().reshape(len(rows), -1) for part in parts], dim=1)


def kind_of(model: ProbedModel, microbatch: Microbatch) -> Hashable:
    """Type, shapes and place in the sample, by which a model may go another way."""
    return model.dtype, len(microbatch), microbatch.kind, microbatch.rows.start


def linearise(model: ProbedModel, kind: Kind, microbatch: Microbatch) -> Linearisation:
    """The curvature of the microbatch's summed loss."""
    return {"hessian": _hessian, "ggn": _ggn}[kind](model, microbatch)


def _hessian(model: ProbedModel, microbatch: Microbatch) -> Linearisation:
    leaves = model.leaves()
    loss_sum, weight = model.batch_losses(leaves, microbatch)
    gradients = model.first_order(microbatch.total(loss_sum), leaves, create_graph=True)
    derivative = gradient_derivative(leaves, gradients)
    return Linearisation(model, "hessian", kind_of(model, microbatch), derivative, (loss_sum, weight, gradients))


def gradient_derivative(leaves: dict[str, Tensor], gradients: list[Tensor]) -> Derivative:
    """Derivative of ``gradients``, a graph in ``leaves``, along tangents; by the symmetry of the Hessian, backwards."""
    return lambda tangents, batched: derivatives(gradients, list(leaves.values()), tangents, batched=batched)


def _ggn(model: ProbedModel, microbatch: Microbatch) -> Linearisation:
    leaves, kind = model.leaves(), kind_of(model, microbatch)
    reached, free, slopes = output_slopes(model, leaves, microbatch)
    if not reached:  # these examples pass the probed parameters by
        return Linearisation(
            model, "ggn", kind, lambda tangents, _: [torch.zeros_like(tangent) for tangent in tangents]
        )
    pull = output_hessian_product(leaves, reached, free, slopes)
    return Linearisation(
        model,
        "ggn",
        kind,
        lambda tangents, batched: derivatives(reached, list(leaves.values()), pull(tangents, batched), batched=batched),
    )


def output_slopes(
    model: ProbedModel, leaves: dict[str, Tensor], microbatch: Microbatch
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The model's output tensors as graphs in the parameters, the same detached, and the loss's gradient in these."""
    batch = microbatch.batch
    outputs = _output_tensors(model.outputs(leaves, batch))
    at = [i for i, z in enumerate(outputs.tensors) if z.requires_grad]
    free = [outputs.tensors[i].detach().requires_grad_() for i in at]
    given = {i: z.clone() for i, z in zip(at, free, strict=True)}  # a loss may change them in place
    losses = model.losses_of_outputs(leaves, outputs.rebuild(given), batch, len(microbatch))
    loss_sum = microbatch.total(losses if microbatch.scale is None else losses * microbatch.scale.to(losses))
    if loss_sum.requires_grad and any(t is not None for t in _reached(loss_sum, list(leaves.values()))):
        raise CannotProbeError(
            "the loss reaches parameters of the model other than through its outputs, such as by a penalty over "
            "model.parameters(); the Gauss-Newton matrix is that of a function of the outputs: use the Hessian, or "
            "take the term out of the loss"
        )
    slopes = derivatives([loss_sum], free, create_graph=True)
    return [outputs.tensors[i] for i in at], free, slopes


def output_hessian_product(
    leaves: dict[str, Tensor], reached: list[Tensor], free: list[Tensor], slopes: list[Tensor]
) -> Derivative:
    """The loss's Hessian in the outputs, times the outputs' derivative along tangents."""
    # J^T u as a graph in the cotangents u: it is linear in them, and its own derivative along v is J v.
    cotangents = [torch.zeros_like(z).requires_grad_() for z in free]
    pulled = derivatives(reached, list(leaves.values()), cotangents, create_graph=True)

    def product(tangents: list[Tensor], batched: bool) -> list[Tensor]:
        pushed = derivatives(pulled, cotangents, tangents, batched=batched)
        return derivatives(slopes, free, pushed, batched=batched)

    return product


def _reached(scalar: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(scalar, leaves, retain_graph=True, allow_unused=True)


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
    if isinstance(outputs, Unprojected):
        raise CannotProbeTypeError(
            "the Gauss-Newton matrix is that of a function of the logits, which are not made as a whole here; "
            "leave out forward=before_head"
        )
    leaves, structure = pytree.tree_flatten(outputs)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not places:
        raise CannotProbeTypeError(
            f"the model returned {type(outputs).__name__}, in which no floating-point tensor was found; "
            "the Gauss-Newton matrix needs tensors, or containers of them, as outputs"
        )
    return _Outputs(leaves, places, structure)
