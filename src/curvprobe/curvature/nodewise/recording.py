"""The loss of one example as a list of operations, written down while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from curvprobe.curvature.nodewise.operations import FLAT, RULES, bends


class UnknownOperationError(NotImplementedError):
    """An operation of which no rule is known; another way is taken."""


@dataclass(frozen=True)
class Slot:
    """Stands in an operation's arguments for a tensor that depends on the parameters or on the example."""

    index: int


def slots_of(tree: Any) -> Iterator[int]:
    """The slots in arguments, in order."""
    return (leaf.index for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Slot))


def filled(tree: Any, values: dict[int, Any]) -> Any:
    """Arguments with the value of each slot."""
    return pytree.tree_map(lambda leaf: values[leaf.index] if isinstance(leaf, Slot) else leaf, tree)


def moved(tree: Any, tangents: dict[int, Tensor]) -> Any:
    """The tangents in the places of arguments; None where one does not move."""
    return pytree.tree_map(lambda leaf: tangents.get(leaf.index) if isinstance(leaf, Slot) else None, tree)


@dataclass(frozen=True, eq=False)
class Step:
    """An operation and its place in the program.

    Attributes:
        function: of ATen.
        name: without overload.
        args, options: its arguments, with slots.
        outputs: slots of its results; None for one that is no tensor.
        bends: whether it adds to the second derivative.
    """

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    outputs: tuple[int | None, ...]
    bends: bool = False

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """Slots of its arguments, each once."""
        return tuple(dict.fromkeys(slots_of((self.args, self.options))))

    def evaluate(self, values: dict[int, Any]) -> tuple[Any, ...]:
        """Its results."""
        found = self.function(*filled(self.args, values), **filled(self.options, values))
        return tuple(found) if isinstance(found, tuple | list) else (found,)


@dataclass(frozen=True, eq=False)
class Program:
    """The loss of an example as operations in order.

    Attributes:
        steps: operations that the loss needs.
        params: slots of the parameters, by name.
        inputs: slots of the example's tensors.
        output: slot of the loss.
        active: slots of what moves with the parameters.
        shapes: of all slots, for the example that was recorded.
        types: of the same.
        asked: slots of conditions and counts that the model has asked for, as where it branches, and what they were.
    """

    steps: tuple[Step, ...]
    params: dict[str, int]
    inputs: tuple[int, ...]
    output: int
    active: frozenset[int]
    shapes: dict[int, torch.Size]
    types: dict[int, torch.dtype]
    asked: tuple[tuple[int, float], ...] = ()


def record(
    loss_of: Callable[[dict[str, Tensor], list[Tensor]], Tensor], params: dict[str, Tensor], example: list[Tensor]
) -> Program:
    """Run a loss on one example, and write down what it does with the parameters and the example.

    Raises:
        UnknownOperationError: where it does something to what moves with the parameters that no rule knows.
    """
    recorder = _Recorder()
    own = {name: p.view_as(p) for name, p in params.items()}  # objects of their own, known by their identity
    given = [leaf.view_as(leaf) for leaf in example]
    places = {name: recorder.learn(p, moves=True) for name, p in own.items()}
    inputs = tuple(recorder.learn(leaf, moves=False) for leaf in given)
    with torch.no_grad(), recorder:
        loss = loss_of(own, given)
    if id(loss) not in recorder.slots:
        raise UnknownOperationError("the loss depends neither on the parameters nor on the example")
    output = recorder.slots[id(loss)]
    return Program(
        _needed(recorder.steps, {output, *(slot for slot, _ in recorder.asked)}),
        places,
        inputs,
        output,
        frozenset(recorder.active),
        {slot: tensor.shape for slot, tensor in recorder.tensors.items()},
        {slot: tensor.dtype for slot, tensor in recorder.tensors.items()},
        tuple(recorder.asked),
    )


def _needed(steps: list[Step], outputs: set[int]) -> tuple[Step, ...]:
    """Those that the outputs depend on."""
    wanted, kept = outputs, []
    for step in reversed(steps):
        if wanted.intersection(step.outputs):
            wanted.update(step.inputs)
            kept.append(step)
    return tuple(reversed(kept))


PUT_BACK = {"slice": "slice_scatter", "select": "select_scatter", "diagonal": "diagonal_scatter"}
"""Operations that take a part of a tensor, and those that put it back."""


NEVER = torch.zeros((), dtype=torch.bool, device="cpu")


@dataclass
class _Recorder(TorchDispatchMode):
    """Sees every ATen operation, and writes down those that use a tensor it knows; what it does not know is constant.

    In-place operations are written as their functional kin; one on a part of a tensor, as a change of the whole.
    """

    steps: list[Step] = field(default_factory=list)
    slots: dict[int, int] = field(default_factory=dict)
    tensors: dict[int, Tensor] = field(default_factory=dict)  # kept alive, so that an identity is not given twice
    active: set[int] = field(default_factory=set)
    parts: dict[int, tuple[Tensor, Tensor, str, Any]] = field(default_factory=dict)  # part, whole, way back, where

    asked: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def learn(self, tensor: Tensor, *, moves: bool) -> int:
        """A slot for a tensor."""
        slot = len(self.tensors)
        self.tensors[slot] = tensor
        self.slots[id(tensor)] = slot
        if moves:
            self.active.add(slot)
        return slot

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation itself; what depends on the parameters or the example is written down."""
        options, name = kwargs or {}, func.overloadpacket.__name__
        used = [self.slots[id(t)] for t in _tensors((args, options)) if id(t) in self.slots]
        if used and name.endswith("_") and not name.endswith("__"):
            return self._in_place(func, name[:-1], args, options)
        moves = bool(self.active.intersection(used)) and name not in FLAT
        if moves and name not in RULES:
            with self:  # by operations that are known, if torch knows how
                found = decomposition_table.get(func, func.decompose)(*args, **options)
            if found is not NotImplemented:
                return found
        found = func(*args, **options)
        if name == "_local_scalar_dense" and used:
            if not isinstance(found, float):  # a condition or a count; by a number another loss shows
                self.asked.append((used[0], found))
            return found
        if name in PUT_BACK:
            where = _within(args) if name == "slice" else args[1:]
            self.parts[id(found)] = (found, args[0], PUT_BACK[name], where)
        if used:
            self._write(func, name, self._arguments((args, options)), found)
        return found

    def _in_place(self, func: Any, name: str, args: Any, options: Any) -> Any:
        packet = getattr(torch.ops.aten, name, None)
        overload = str(func).rpartition(".")[2]
        if packet is None:
            raise UnknownOperationError(f"{name}_ in place")
        functional = getattr(packet, overload if overload in packet.overloads() else packet.overloads()[0])
        kept = args[0] if id(args[0]) in self.slots else args[0].clone()  # a constant, before it changes
        written = self._arguments(((kept, *args[1:]), options))
        if name == "copy":  # which autograd does not know
            name, functional, written = "where", torch.ops.aten.where.self, ((NEVER, *written[0][:2]), {})
        found, changed = func(*args, **options), args[0]
        self._write(functional, name, written, changed)
        while id(changed) in self.parts:
            _, whole, back, where = self.parts[id(changed)]
            before = whole if id(whole) in self.slots else whole.clone()
            arguments = self._arguments(((before, changed, *where), {}))
            self._write(getattr(torch.ops.aten, back).default, back, arguments, whole)
            changed = whole
        if changed._base is not None:
            raise UnknownOperationError(f"{name}_ in place on a part of a tensor")
        return found

    def _arguments(self, tree: Any) -> Any:
        def place(leaf: Any) -> Any:
            return Slot(self.slots[id(leaf)]) if isinstance(leaf, Tensor) and id(leaf) in self.slots else leaf

        return pytree.tree_map(place, tree)

    def _write(self, func: Any, name: str, arguments: Any, found: Any) -> None:
        args, options = arguments
        results = found if isinstance(found, tuple | list) else (found,)
        floating = [isinstance(r, Tensor) and r.is_floating_point() for r in results]
        moves = self._moves((args, options)) and name not in FLAT and any(floating)
        turns = any(isinstance(r, Tensor) and r.is_complex() for r in results)
        if (moves and name not in RULES) or (turns and self._moves((args, options))):
            raise UnknownOperationError(name)
        bent = moves and bends(name, args, self._moves)
        outputs = tuple(
            self.learn(r, moves=moves and floats) if isinstance(r, Tensor) else None
            for r, floats in zip(results, floating, strict=True)
        )
        self.steps.append(Step(func, name, tuple(args), dict(options), outputs, bent))

    def _moves(self, argument: Any) -> bool:
        return any(slot in self.active for slot in slots_of(argument))


def _within(args: tuple[Any, ...]) -> list[Any]:
    """Dimension, start, end and step of a slice; an end beyond the end of the tensor is one that batching refuses."""
    given: list[Any] = [*args[1:], *[0, None, None, 1][len(args) - 1 :]]
    dim, start, end, step = given
    size = args[0].shape[dim]
    return [dim, *(min(place, size) if isinstance(place, int) else place for place in (start, end)), step]


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))
