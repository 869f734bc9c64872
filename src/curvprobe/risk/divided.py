"""Weights of which each process holds some rows, as torch's ``fully_shard`` leaves them: gathered where they are used.

A process runs the plain module, not the wrapper, whose hooks cut the graph that second derivatives need. A parameter is
whole for one operation; autograd is given the way back to its rows instead (:class:`curvprobe.risk.frozen.Raised`), so
that neither the graph nor its derivative holds a whole one.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from curvprobe.errors import ArgumentError, CannotProbeError
from curvprobe.numerics.linalg import quick_inner
from curvprobe.numerics.space import Space
from curvprobe.runtime.ranks import Ranks

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Divided:
    """The parameters of a model whose rows are divided among processes.

    Attributes:
        shapes: of the whole parameters, by name.
        ranks: the processes; the r-th holds the r-th share of the rows of each.
        summed: whether the processes differentiate other examples each, so that a derivative is the sum of theirs; else
            all do the same, and each keeps its rows of it.
        moved: coordinates (W, D), float64, by which each of W processes moves the parameters along D directions, and
            the rows (..., D) that this one holds of these, by name; None where they stay.
    """

    shapes: Mapping[str, torch.Size]
    ranks: Ranks
    summed: bool = False
    moved: tuple[Tensor, Mapping[str, Tensor]] | None = None

    def summing(self) -> Divided:
        """The same for processes that differentiate other examples each."""
        return replace(self, summed=True)

    def moving(self, z: Tensor, rows: Mapping[str, Tensor]) -> Divided:
        """The same, each process's parameters moved by its own coordinates z (D,) along directions, by their rows.

        All learn of all coordinates here, and inner products with whole directions are summed here: once for a
        derivative, however many parameters there are.
        """

        def told(z: Tensor) -> Tensor:
            return self.ranks.whole(z.movedim(-2, 0), self.ranks.world, "coordinates").movedim(0, -2)

        def summed(parts: Tensor) -> Tensor:
            return self.ranks.share_of_total(parts.movedim(-2, 0), "coordinates").movedim(0, -2)

        return replace(self, moved=(_linear(z[None], told, summed), rows))

    def moves(self, name: str) -> bool:
        """Whether a parameter is moved."""
        return self.moved is not None and name in self.moved[1]

    def rows(self, name: str) -> slice:
        """The rows of a parameter that this process holds."""
        return self.ranks.share(self._count(name))

    def _count(self, name: str) -> int:
        shape = self.shapes[name]
        return shape[0] if shape else 1  # a single number is one row

    def largest(self, names: Sequence[str]) -> int:
        """Numbers of the largest of some parameters, which is whole while it is used."""
        return max(self.shapes[name].numel() for name in names)

    def most(self, names: Sequence[str]) -> int:
        """Numbers of some parameters that the first process holds; no other one holds more."""
        return sum(-(-self._count(name) // self.ranks.world) * self.shapes[name][1:].numel() for name in names)

    def whole(self, shard: Tensor, name: str) -> Tensor:
        """A parameter, or several tensors of its shape (..., D), from the rows that each process holds."""
        columns = shard.shape[max(1, len(self.shapes[name])) :]
        return self.ranks.whole(shard, self._count(name), name).view((*self.shapes[name], *columns))

    def shard(self, whole: Tensor, name: str) -> Tensor:
        """The rows that this process holds of a parameter's derivative."""
        rows = whole.reshape(self._count(name), *whole.shape[1:])
        return self.ranks.share_of_total(rows, name) if self.summed else rows[self.rows(name)].clone()

    def held(self, parameter: Tensor, name: str) -> Tensor:
        """What this process holds of a parameter of the model."""
        if is_divided(parameter):
            return local(parameter)
        if name not in self.shapes:
            return parameter
        return parameter.reshape(self._count(name), *parameter.shape[1:])[self.rows(name)]

    def used(self, shard: Tensor, name: str) -> Tensor:
        """The whole parameter, differentiable in the rows that this process holds, and in z where that moves it."""
        found = _linear(shard, partial(self.whole, name=name), partial(self.shard, name=name))
        return found if self.moved is None or name not in self.moved[1] else found + self._along(*self.moved, name)

    def _along(self, z: Tensor, directions: Mapping[str, Tensor], name: str) -> Tensor:
        """What coordinates (W, D) add to the whole parameter in this process.

        Each process combines its rows of the directions for every other one, and what is exchanged is the combination:
        as many numbers as the parameter has, whatever D is. Derivatives go the same way back.
        """
        shape, columns = self.shapes[name], directions[name].flatten(0, -2)
        count, world = self._count(name), self.ranks.world

        def spread(z: Tensor) -> Tensor:
            """Of all coordinates, or several (..., W, D), what this process's make."""
            lead = z.shape[:-2]
            if not bool(z.any()):  # in none of them: at the start, and nothing is exchanged
                return columns.new_zeros(()).expand(*lead, *shape)
            parts = torch.einsum("na,kwa->wnk", columns, z.to(columns.dtype).reshape(-1, *z.shape[-2:]))
            each = parts.reshape(world, -1, *shape[1:], parts.shape[-1])
            found = self.ranks.from_each(each, count, f"{name}, moved")
            return found.movedim(-1, 0).reshape(*lead, *shape)

        def contract(derivative: Tensor) -> Tensor:
            """What this process's rows make of the inner products (..., W, D), float64, of each one's derivative."""
            lead = derivative.shape[: derivative.dim() - len(shape)]
            rows = derivative.reshape(-1, count, shape[1:].numel()).transpose(0, 1)
            parts = self.ranks.share_of_each(rows, f"derivatives of {name}").transpose(1, 2)
            found = quick_inner(parts.reshape(world * parts.shape[1], -1), columns)
            return found.view(world, -1, found.shape[-1]).transpose(0, 1).reshape(*lead, world, -1)

        return _linear(z, spread, contract)

    def space(self, probed: Sequence[str]) -> Space:
        """The space of vectors of the probed parameters, of which each process holds what it holds of these."""
        parts, places, start = list[slice](), list[tuple[str, int, int]](), 0
        for name in probed:
            size, row = self.shapes[name].numel(), self.shapes[name][1:].numel()
            held = self.rows(name)
            parts.append(slice(start + row * held.start, start + row * held.stop))
            places.append((name, start, start + size))
            start += size

        def gathered(vectors: Tensor) -> Tensor:
            """In the flat order."""
            pieces = torch.split(vectors, [part.stop - part.start for part in parts])
            columns = vectors.shape[1:]
            whole = (
                self.ranks.whole(piece.reshape(-1, self.shapes[name][1:].numel(), *columns), self._count(name), name)
                for (name, _, _), piece in zip(places, pieces, strict=True)
            )
            return torch.cat([part.reshape(-1, *columns) for part in whole])

        def handed_out(vector: Tensor | None) -> Tensor:
            pieces = (
                None if vector is None else vector[begin:end].reshape(self._count(name), -1)
                for name, begin, end in places
            )
            return torch.cat([self.ranks.share_of_firsts(piece).flatten() for piece in pieces])

        total, first = self.ranks.total, self.ranks.of_first
        most = self.most(probed)
        return Space(start, tuple(parts), total, first, gathered, handed_out, stays=True, share=most)

    @cached_property
    def meta(self) -> dict[str, Tensor]:
        """Tensors without numbers that have the whole parameters' shapes."""
        return {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}


class _Linear(torch.autograd.Function):
    """A linear map, whose derivative is its transpose, whose derivative is the map again.

    Within vmap it is given all values at once, in a leading dimension.
    """

    @staticmethod
    def forward(value: Tensor, there: Map, _: Map) -> Tensor:
        return there(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Map, Map], _: Tensor) -> None:
        ctx.maps = inputs[2], inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _linear(gradient, *ctx.maps), None, None

    @staticmethod
    def vmap(_: Any, in_dims: tuple[int, None, None], value: Tensor, there: Map, back: Map) -> tuple[Tensor, int]:
        return _linear(value.movedim(in_dims[0], 0), there, back), 0


def _linear(value: Tensor, there: Map, back: Map) -> Tensor:
    found: Tensor = _Linear.apply(value, there, back)  # type: ignore[no-untyped-call]
    return found


def of_model(module: nn.Module, probed: Sequence[str], ranks: Ranks) -> Divided | None:
    """What is divided of a model, and of others what is ``probed``; None where every process has all of it.

    Raises:
        ArgumentError: where the processes are not those of the group.
        CannotProbeError: where parameters are divided in another way than by rows.
    """
    for part in module.modules():
        reshard = getattr(part, "reshard", None)
        if callable(reshard) and _is_fully_sharded(part):
            reshard()  # a forward pass leaves the outermost module's own parameters whole
    found = {name: p for name, p in module.named_parameters() if is_divided(p)}
    if not found:
        return None
    for name, parameter in found.items():
        _check(name, parameter, ranks)
    if not ranks.several:  # one process holds all rows
        return None
    params = dict(module.named_parameters())
    return Divided({name: p.shape for name, p in params.items() if name in found or name in probed}, ranks)


def is_divided(parameter: Tensor) -> bool:
    """Whether a tensor is one of torch's that are spread over processes."""
    return hasattr(parameter, "device_mesh") and hasattr(parameter, "placements")


def local(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter."""
    found: Tensor = parameter.to_local() if is_divided(parameter) else parameter  # type: ignore[attr-defined]
    return found


def _check(name: str, parameter: Any, ranks: Ranks) -> None:
    mesh, placements = parameter.device_mesh, tuple(parameter.placements)
    if mesh.ndim != 1 or not placements[0].is_shard(0):
        raise CannotProbeError(
            f"{name} is divided among processes as {placements} over a mesh of {mesh.ndim} dimensions; expected rows "
            "over one, as fully_shard(module) makes them: tensor parallel and hybrid layouts are not taken"
        )
    members = dist.get_process_group_ranks(mesh.get_group())
    mine = [dist.get_rank()] if ranks.group is None else dist.get_process_group_ranks(ranks.group)
    if members != mine:
        raise ArgumentError(
            f"the model's weights are divided among the processes {members}, and group= has "
            f"{'none' if ranks.group is None else mine}; expected the same: "
            "EmpiricalRisk(..., group=torch.distributed.group.WORLD)"
        )


def _is_fully_sharded(part: nn.Module) -> bool:
    return type(part).__module__.startswith("torch.distributed.fsdp") or any(
        base.__name__ == "FSDPModule" for base in type(part).__mro__
    )


def without_hooks(part: nn.Module) -> None:
    """Take out the hooks by which a wrapper gathers a module's parameters, and cuts the graph."""
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = getattr(part, kind)
        if any(map(_is_wrappers, hooks.values())):
            left = itertools.filterfalse(lambda entry: _is_wrappers(entry[1]), hooks.items())
            setattr(part, kind, OrderedDict(left))


def _is_wrappers(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp")
