"""Values forward, adjoints backward, tangents forward: a program at many examples, and all directions, at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from curvprobe.curvature.nodewise.local import Local, Pair, Pushed
from curvprobe.curvature.nodewise.operations import RULES
from curvprobe.curvature.nodewise.recording import Program, Step, filled, moved
from curvprobe.numerics.linalg import inner_of_pieces, multiplies_exactly

TANGENTS_IN_FLIGHT = 3
"""Sets of D tangents of the largest result that a rule holds beside those that are still wanted."""

Values = dict[int, Any]
"""By slot."""

Found = tuple[Tensor, Tensor, Tensor]
"""Losses (n,), slopes (n, D) and curvatures (n, D, D) of the examples, float64; the loss of one that takes another
branch than what was recorded is NaN."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """A program at given parameters, and the directions that it is pushed along.

    Attributes:
        program: of the loss of one example.
        values: of the parameters, and of what depends on them alone and does not bend.
        tangents: of these, (D, *shape).
        dim: D.
    """

    program: Program
    values: Values
    tangents: dict[int, Tensor]
    dim: int

    @classmethod
    def along(cls, program: Program, params: dict[str, Tensor], directions: dict[str, Tensor], dim: int) -> Sweep:
        """Prepare what all examples share: ``directions`` (D, *shape) by the names of the parameters."""
        values: Values = {program.params[name]: p for name, p in params.items()}
        tangents = {program.params[name]: t for name, t in directions.items()}
        found = cls(program, values, tangents, dim)
        for step in program.steps:
            if step in found._shared:
                found._run(step, values)
                if program.active.intersection(step.outputs):
                    found._push(step, values, tangents)
        return found

    @cached_property
    def _shared(self) -> frozenset[Step]:
        """Steps of the parameters alone, up to those that bend."""
        known, steps = set(self.program.params.values()), set()
        for step in self.program.steps:
            if not step.bends and known.issuperset(step.inputs) and self.program.active.intersection(step.inputs):
                known.update(slot for slot in step.outputs if slot is not None)
                steps.add(step)
        return frozenset(steps)

    @cached_property
    def _own(self) -> tuple[Step, ...]:
        """Steps that each example takes by itself."""
        return tuple(step for step in self.program.steps if step not in self._shared)

    @cached_property
    def _bent(self) -> tuple[int, ...]:
        """Slots of results whose adjoints are wanted."""
        return tuple(slot for step in self._own if step.bends and (slot := step.outputs[0]) is not None)

    @cached_property
    def _kept(self) -> tuple[int, ...]:
        """Slots of what the examples' tangents are found from."""
        moving = [step for step in self._own if self.program.active.intersection(step.outputs)]
        slots = [slot for step in moving for slot in (*step.inputs, *step.outputs) if slot is not None]
        return tuple(slot for slot in dict.fromkeys(slots) if slot not in self.values)

    def __call__(self, examples: list[Tensor]) -> Found:
        """The losses, slopes and curvatures of examples (n, ...)."""
        alone = len(examples[0]) == 1
        mapped = _alone if alone else vmap  # shapes that depend on the values do not trouble one example
        bumps = [self._bump(slot, len(examples[0])) for slot in self._bent]
        with torch.enable_grad():
            losses, kept, asked = mapped(self._forward)(examples, bumps)
            reach = losses.requires_grad
            adjoints = torch.autograd.grad(losses.sum(), bumps, allow_unused=True) if reach else [None] * len(bumps)
        known = {slot: adjoint for slot, adjoint in zip(self._bent, adjoints, strict=True) if adjoint is not None}
        with torch.no_grad():
            tangents = partial(self._tangents, alone=alone)
            slopes, halves = mapped(tangents)([value.detach() for value in kept], known)
        losses = losses.detach().double()
        for (_, value), found in zip(self.program.asked, asked, strict=True):
            losses = losses.masked_fill(found.reshape(-1) != value, torch.nan)
        return losses, slopes, halves + halves.mT

    def _bump(self, slot: int, count: int) -> Tensor:
        """Zeros of many results, whose slopes are adjoints."""
        like = next(iter(self.values.values()))
        shape, dtype = self.program.shapes[slot], self.program.types[slot]
        return torch.zeros(count, *shape, dtype=dtype, device=like.device, requires_grad=True)

    def _forward(self, example: list[Tensor], bumps: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The loss, the values to be kept, and those that were asked for.

        A result that bends is moved by its bump, whose slope is the adjoint.
        """
        values = {**self.values, **dict(zip(self.program.inputs, example, strict=True))}
        moved = dict(zip(self._bent, bumps, strict=True))
        for step in self._own:
            self._run(step, values)
            slot = step.outputs[0]
            if slot in moved:
                values[slot] = values[slot] + moved[slot]
        asked = [values[slot].detach() for slot, _ in self.program.asked]
        return values[self.program.output], [values[slot] for slot in self._kept], asked

    def _tangents(self, kept: list[Tensor], adjoints: dict[int, Tensor], *, alone: bool) -> tuple[Tensor, Tensor]:
        """Slopes (D,), and half of the curvatures (D, D)."""
        values = {**self.values, **dict(zip(self._kept, kept, strict=True))}
        tangents = dict(self.tangents)
        total = torch.zeros(self.dim, self.dim, dtype=torch.float64, device=next(iter(self.values.values())).device)
        for step, dying in self._lives:
            adjoint = adjoints.get(step.outputs[0]) if step.bends and step.outputs[0] is not None else None
            for pair in self._push(step, values, tangents, adjoint, alone=alone):
                total = total + gram(*pair)
            for slot in dying:
                tangents.pop(slot, None)
        slope = tangents.get(self.program.output)
        slope = torch.zeros(self.dim, dtype=torch.float64, device=total.device) if slope is None else slope.double()
        return slope, total

    @cached_property
    def _lives(self) -> list[tuple[Step, list[int]]]:
        """The examples' own steps that move, and whose tangents are wanted no more after each."""
        steps = [step for step in self._own if self.program.active.intersection(step.outputs)]
        last = {slot: i for i, step in enumerate(steps) for slot in step.inputs}
        unused = {s: i for i, step in enumerate(steps) for s in step.outputs if s is not None and s not in last}
        ends: dict[int, list[int]] = {}
        for slot, i in {**last, **unused}.items():
            if slot != self.program.output:
                ends.setdefault(i, []).append(slot)
        return [(step, ends.get(i, [])) for i, step in enumerate(steps)]

    def _run(self, step: Step, values: Values) -> None:
        for slot, result in zip(step.outputs, step.evaluate(values), strict=True):
            if slot is not None:
                values[slot] = result

    def _push(
        self,
        step: Step,
        values: Values,
        tangents: dict[int, Tensor],
        adjoint: Tensor | None = None,
        *,
        alone: bool = False,
    ) -> list[Pair]:
        """Tangents of a step's results, into ``tangents``; returns what it adds."""
        local = Local(
            step.function,
            filled(step.args, values),
            filled(step.options, values),
            moved(step.args, tangents),
            tuple(values.get(slot) if slot is not None else None for slot in step.outputs),
            adjoint,
            self.dim,
            alone,
        )
        pushed: Pushed = RULES[step.name](local)
        found = zip(step.outputs, pushed[0], strict=False)  # what has no tangent may be left out
        tangents.update({s: t for s, t in found if s in self.program.active and t is not None and s is not None})
        return pushed[1]

    @cached_property
    def bytes_per_example(self) -> int:
        """What an example takes: values and adjoints, and D tangents of what is alive at a time."""
        size = {slot: shape.numel() * self.program.types[slot].itemsize for slot, shape in self.program.shapes.items()}
        values = sum(size[slot] for step in self._own for slot in step.outputs if slot is not None)
        alive, peak, largest = 0, 0, 0
        for step, dying in self._lives:
            made = sum(size[slot] for slot in step.outputs if slot in self.program.active)
            alive += made
            peak, largest = max(peak, alive), max(largest, made)
            alive -= sum(size[slot] for slot in dying if slot not in self.values)
        return values + 2 * sum(size[s] for s in self._bent) + self.dim * (peak + TANGENTS_IN_FLIGHT * largest)


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function for one example, in the form of a function of many."""

    def of_one(*trees: Any) -> Any:
        first = [pytree.tree_map(lambda leaf: leaf[0], tree) for tree in trees]
        return pytree.tree_map(lambda leaf: leaf[None], function(*first))

    return of_one


def gram(left: Tensor, right: Tensor) -> Tensor:
    """Inner products (D, D) of tensors (D, ...), either of which may be spread over the other; sums in float64."""
    for i in range(1, left.dim()):
        if left.shape[i] == 1 != right.shape[i]:
            right = right.sum(i, keepdim=True)
        elif right.shape[i] == 1 != left.shape[i]:
            left = left.sum(i, keepdim=True)
    a, b = left.flatten(1) if left.dim() > 1 else left[:, None], right.flatten(1) if right.dim() > 1 else right[:, None]
    return inner_of_pieces(a, b.mT) if multiplies_exactly(a) else a.double() @ b.double().mT
