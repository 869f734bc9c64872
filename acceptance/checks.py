"""What an analysis found, held against plain autograd in float64 on a copy of the network, without curvprobe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from curvprobe.tasks import Task

AT_ONCE = 8
"""Examples in one pass."""

STEPS = (1e-5, 1e-7, 1e-9)
"""Of the differences, in units of the parameters' norm along a vector of norm 1; the best one counts. Where there are
kinks, only a short step crosses none."""


class _Widened(TorchFunctionMode):
    """Makes float64 of every float32 that a network's own code asks for, as by ``.float()``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function itself, in float64."""
        if func is Tensor.float:
            return args[0].double()
        wide = [torch.float64 if argument is torch.float32 else argument for argument in args]
        named = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return func(*wide, **named)


@contextmanager
def widened() -> Iterator[None]:
    """A block in which what would be float32 is float64, and attention has a second derivative."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widened(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.set_default_dtype(usual)


def doubled(value: Any) -> Any:
    """A copy in float64 of whatever holds tensors: also of objects of a package's own."""
    if isinstance(value, Tensor):
        wide = value.detach().double() if value.is_floating_point() else value
        return wide.requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: doubled(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(doubled(part) for part in value)
    if hasattr(value, "__dict__"):
        made = copy.copy(value)
        vars(made).update(doubled(vars(value)))
        return made
    return value


@dataclass(frozen=True)
class PlainRisk:
    """The mean loss of a task's sample in float64.

    Attributes:
        model: a copy.
        parameters: those that are probed, in the order of the flat vector.
        batches: of the whole sample.
        losses: sum of a batch's losses, and their weight.
    """

    model: nn.Module
    parameters: list[Tensor]
    batches: list[Any]
    losses: Callable[[nn.Module, Any], tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, task: Task, names: list[str]) -> PlainRisk:
        """The task's, with the parameters of these names."""
        with torch.no_grad():
            model = copy.deepcopy(task.model).double()
        named = dict(model.named_parameters(remove_duplicate=False))
        for parameter in named.values():
            parameter.requires_grad_(False)
        chosen = [named[name].requires_grad_() for name in names]
        return cls(model, chosen, [doubled(batch) for batch in _batches(task)], lambda m, b: _losses(task, m, b))

    def gradient(self, displacement: Tensor | None = None) -> Tensor:
        """Of the mean loss at the solution, or beside it."""
        return self._summed(displacement, self._derived)

    def product(self, vector: Tensor) -> Tensor:
        """Of the Hessian with a vector, by differentiating the gradient's product with it."""
        parts = self._parts(vector)

        def twice(total: Tensor) -> tuple[Tensor, ...]:
            first = self._derived(total, create_graph=True)
            return self._derived(sum((a * b).sum() for a, b in zip(first, parts, strict=True)))

        return self._summed(None, twice)

    def difference(self, vector: Tensor, step: float) -> Tensor:
        """The product by central differences of the gradient."""
        return (self.gradient(step * vector) - self.gradient(-step * vector)) / (2 * step)

    def norm(self) -> float:
        """Of all probed parameters together."""
        return float(torch.stack([p.detach().norm() for p in self.parameters]).norm())

    def _derived(self, total: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        found = torch.autograd.grad(total, self.parameters, create_graph=create_graph, allow_unused=True)
        return tuple(torch.zeros_like(p) if g is None else g for g, p in zip(found, self.parameters, strict=True))

    def _parts(self, vector: Tensor) -> list[Tensor]:
        """By parameters; 0 in the padding row of an embedding, which gets no gradient, by torch's design."""
        sizes = [p.numel() for p in self.parameters]
        parts = [part.view_as(p) for part, p in zip(vector.double().clone().split(sizes), self.parameters, strict=True)]
        for module in self.model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                for part in (part for part, p in zip(parts, self.parameters, strict=True) if p is module.weight):
                    part[module.padding_idx] = 0.0
        return parts

    def _summed(self, displacement: Tensor | None, derive: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensor:
        kept = [p.detach().clone() for p in self.parameters]
        try:
            if displacement is not None:
                with torch.no_grad():
                    for parameter, part in zip(self.parameters, self._parts(displacement), strict=True):
                        parameter += part
            summed, weights = torch.zeros(sum(p.numel() for p in kept), dtype=torch.float64), 0.0
            for batch in self.batches:
                with widened():
                    total, weight = self.losses(self.model, batch)
                    found = derive(total)
                summed += torch.cat([part.detach().flatten() for part in found])
                weights += float(weight)
            return summed / weights
        finally:
            with torch.no_grad():
                for parameter, before in zip(self.parameters, kept, strict=True):
                    parameter.copy_(before)


def _batches(task: Task) -> Iterator[Any]:
    data = task.data
    if isinstance(data, list):
        assert task.collate_fn is not None
        yield from (task.collate_fn(data[at : at + AT_ONCE]) for at in range(0, len(data), AT_ONCE))
    elif isinstance(data, dict):
        count = len(next(iter(data.values())))
        yield from ({name: x[at : at + AT_ONCE] for name, x in data.items()} for at in range(0, count, AT_ONCE))
    else:
        yield from (tuple(x[at : at + AT_ONCE] for x in data) for at in range(0, len(data[0]), AT_ONCE))


def _losses(task: Task, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    if task.forward is not None:
        outputs = task.forward(model, batch)
    elif isinstance(batch, dict):
        outputs = model(**{name: x for name, x in batch.items() if name != "labels"})
    else:
        outputs = model(batch[0])
    found = task.loss(outputs, batch)
    losses, weight = found if isinstance(found, tuple) else (found, torch.ones_like(found))
    return losses.sum(), weight.sum()


def apart(one: Tensor, other: Tensor) -> float:
    """Distance of two vectors, relative to the second."""
    return float((one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-300))


def product_error(plain: PlainRisk, vector: Tensor, product: Tensor) -> float:
    """How far a product is from central differences, at the step that comes nearest."""
    unit = vector.double() / vector.double().norm()
    scaled = product.double() / vector.double().norm()
    return min(apart(scaled, plain.difference(unit, step * plain.norm())) for step in STEPS)


def residual(plain: PlainRisk, vector: Tensor, value: float) -> float:
    """Of an eigenpair, relative to its eigenvalue."""
    unit = vector.double() / vector.double().norm()
    return float((plain.product(unit) - value * unit).norm() / abs(value))
