"""What goes wrong when a model first meets its data, said with the remedy; and what of the data nobody takes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curvprobe.errors import CannotProbeError, CurvprobeError, UserCodeError, checking
from curvprobe.numerics.linalg import all_finite
from curvprobe.risk.budget import Budget
from curvprobe.risk.calling import passed_entries
from curvprobe.risk.contract import split_loss
from curvprobe.risk.examples import Batch
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Microbatch, Sample
from curvprobe.risk.trial import check_behaviour, check_sample, measure, try_lean_graphs

_REMEDIES: tuple[tuple[str, str], ...] = (
    (r"[Cc]heckpoint", "switch activation checkpointing off: it runs parts of the model again, at other parameters"),
    (
        r"missing \d+ required positional argument",
        "give the data as a dict, whose entries go to forward by name, or say how the model is called: "
        "forward=, a function forward(model, batch)",
    ),
    (
        r"'list' object|'tuple' object|list indices",
        "give the model tensors: dataset.set_format('torch'), or collate_fn=",
    ),
    (
        r"'dict' object has no attribute",
        "a batch that is a mapping is given as a plain dict: write batch['name'] instead of batch.name",
    ),
    (
        r"modified by an inplace operation",
        "an operation in place overwrites what a derivative needs, so that plain training stops there too: write "
        "x = x + y for x += y, or leave out the parameters before it with params=",
    ),
    (
        r"not attached to a",
        "its training step asks for the Trainer: give loss=, which is called as loss(module(x), batch)",
    ),
    (
        r"out of range in self|index out of range|out of bounds",
        "labels or tokens are outside what the model was made for",
    ),
)
"""Patterns in the message of the user's own error, and what to do."""

_USUAL = (
    "call the model on these examples by hand; if it is called another way, pass forward=, a function "
    "forward(model, batch)"
)


@contextmanager
def explained(sample: Sample) -> Iterator[None]:
    """Chain an error of the user's model or loss under one that says what was being done, and what to do."""
    try:
        yield
    except CurvprobeError:
        raise
    except Exception as error:  # whatever the user's code raises
        first = sample.read(0, 1)
        raise UserCodeError(
            f"the model or the loss stopped on the first examples ({described(first.batch)}) with "
            f"{type(error).__name__}: {_shortened(error)}; {_remedy(error, first)}"
        ) from error


def _remedy(error: Exception, first: Microbatch) -> str:
    text = f"{type(error).__name__}: {error}"
    integers = sorted({str(t.dtype) for t in _inputs(first.batch) if not t.is_floating_point()})
    if integers and re.search(r"\b([Ll]ong|[Bb]yte|[Ss]hort|[Ii]nt|int\d+|Long\w*|Int\w*)\b", text):
        return (
            f"the inputs are integers ({', '.join(integers)}): give the model what it was trained on, such as x.float()"
        )
    return next((cure for pattern, cure in _REMEDIES if re.search(pattern, text)), _USUAL)


def _inputs(batch: Batch) -> list[Tensor]:
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


def described(batch: Batch) -> str:
    """Kinds and shapes of what a batch holds, in words."""
    if isinstance(batch, Mapping):
        return ", ".join(f"{key}: {described(value)}" for key, value in batch.items())
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of " + ", ".join(described(part) for part in batch[:4])
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    return type(batch).__name__


def _shortened(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "(no message)"


# ---- entries that nobody takes


class _Taken:
    """Which entries of a batch were asked for."""

    def __init__(self) -> None:
        self.keys: set[Any] = set()


class _SeenTuple(tuple[Any, ...]):
    """A batch that notes which of its entries are read."""

    taken: _Taken

    def __getitem__(self, at: Any) -> Any:
        positions = range(len(self))[at]
        self.taken.keys.update(positions if isinstance(positions, range) else [positions])
        return super().__getitem__(at)

    def __iter__(self) -> Iterator[Any]:
        self.taken.keys.update(range(len(self)))
        return super().__iter__()


class _SeenDict(dict[Any, Any]):
    """The same for entries by name."""

    taken: _Taken

    def __getitem__(self, key: Any) -> Any:
        self.taken.keys.add(key)
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        """As a dict's."""
        self.taken.keys.add(key)
        return super().get(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        """As a dict's."""
        self.taken.keys.add(key)
        return super().pop(key, *default)

    def __iter__(self) -> Iterator[Any]:
        """As a dict's; that it is there makes ``**batch`` and ``dict(batch)`` ask for every entry by its key."""
        return super().__iter__()

    def copy(self) -> Any:
        """As a dict's."""
        return dict(self)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """As a dict's."""
        self.taken.keys.add(key)
        return super().setdefault(key, default)

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)

    def items(self) -> Any:
        """As a dict's."""
        self.taken.keys.update(self)
        return super().items()

    def values(self) -> Any:
        """As a dict's."""
        self.taken.keys.update(self)
        return super().values()


@checking("entries")
def check_entries(model: ProbedModel, sample: Sample) -> None:
    """Refuse a batch with an entry that neither the model nor the loss takes: it would be dropped without a word."""
    first, taken = sample.read(0, 1), _Taken()
    batch = first.batch
    if isinstance(batch, Mapping):
        seen: Any = _SeenDict(batch)
    elif isinstance(batch, tuple | list) and len(batch) > 2 and not hasattr(batch, "_fields"):
        seen = _SeenTuple(batch)
    else:
        return
    seen.taken = taken
    outputs = model.outputs(model.state.probed, batch if model.own_forward is None else seen)
    if model.own_forward is None:  # by convention: the model's part is known
        taken.keys.update(passed_entries(model.module, batch) if isinstance(batch, Mapping) else [0])
    model.within(model.state.probed, lambda _: model.loss(outputs, seen))
    left = [key for key in (batch if isinstance(batch, Mapping) else range(len(batch))) if key not in taken.keys]
    if left:
        named = ", ".join(repr(key) for key in left)
        raise CannotProbeError(
            f"neither the model nor the loss takes entry {named} of the batch ({described(batch)}); leave it out, or "
            "give the data as a dict whose entries go to the model's forward by name, or say how the model is called "
            "with forward=, a function forward(model, batch)"
        )


# ---- parameters reached by another road


def _look(model: ProbedModel, sample: Sample, leaves: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The first example's loss and its gradient at ``leaves``, taken while these are in the module."""
    batch = sample.read(0, 1).batch

    def look(module: nn.Module) -> tuple[Tensor, list[Tensor]]:
        loss_sum = split_loss(model.loss(model.call(module, batch), batch), 1)[0].sum()
        return loss_sum, model.first_order(loss_sum, leaves)

    return cast(tuple[Tensor, list[Tensor]], model.within(leaves, look))


def _look_beside(model: ProbedModel, sample: Sample) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
    """The same beside the solution, where no parameter is as the module itself has it, and these parameters.

    At the solution where the model cannot be evaluated there: a probability may not exceed 1.
    """
    leaves = {name: (1.1 * p + 0.01).detach().requires_grad_() for name, p in model.state.probed.items()}
    try:
        loss_sum, slopes = _look(model, sample, leaves)
        if all(all_finite(slope, model.vectors.sum_over) for slope in slopes):
            return leaves, loss_sum, slopes
    except Exception:  # whatever the user's code raises: at the solution it is told
        pass
    leaves = model.leaves()
    return leaves, *_look(model, sample, leaves)


@checking("parameters reached")
def check_roads(model: ProbedModel, sample: Sample) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Refuse a loss that reaches a parameter by a reference of its own: its derivative would lack that part.

    What goes through the module (its layers, ``model.parameters()``) sees the parameters at which the loss is
    evaluated; a parameter that the loss holds itself stays what it was.

    Returns:
        Parameters, beside the solution if that can be, and the gradient of the first example's loss at these, taken
        while they were in the module.
    """
    own = {id(parameter): name for name, parameter in model.module.named_parameters() if name in model.state.probed}
    leaves, loss_sum, slopes = _look_beside(model, sample)
    found = sorted({own[id(leaf)] for leaf in _graph_leaves(loss_sum) if id(leaf) in own})
    if found:
        raise CannotProbeError(
            f"the loss or the model reaches the parameters {', '.join(found[:5])} by a reference of its own, so that "
            "its derivative would lack that part; reach them through the model (model.layer.weight, model.parameters())"
        )
    slope_of = dict(zip(leaves, slopes, strict=True))
    for name, rows in model.padding_rows.items():
        if bool(slope_of[name][rows].any()):
            raise CannotProbeError(
                f"{name} is the weight of an embedding with padding_idx, whose padding row is taken for a constant, "
                "and it is used elsewhere too, where that row trains; set the embedding's padding_idx = None"
            )
    return leaves, slopes


@checking("first pass")
def check_backward(within: list[Tensor], after: list[Tensor]) -> None:
    """Refuse a model that runs a part of itself again in its backward pass, as activation checkpointing does.

    The parameters at which it is evaluated have left the module by then, and that part would see the model's own.

    Args:
        within: gradient by parameter, taken while the parameters were in the module.
        after: the same once they had left it.
    """
    sizes = [float(part.norm()) for part in within]
    rounding = 1e3 * max(sizes) * torch.finfo(within[0].dtype).eps  # of a tensor whose gradient is zero but for it
    for one, other, size in zip(within, after, sizes, strict=True):
        if math.isfinite(rounding) and not float((one - other).norm()) <= 1e-3 * size + rounding:
            raise CannotProbeError(
                "the model runs a part of itself again in its backward pass, where it meets other parameters than "
                "those that it is evaluated at; switch activation checkpointing off"
            )


def _graph_leaves(tensor: Tensor) -> Iterator[Tensor]:
    """Leaves of a tensor's graph."""
    waiting, seen = [tensor.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, torch.Tensor):
            yield variable
        waiting += [following for following, _ in node.next_functions]


def first_look(
    probed: ProbedModel, sample: Sample, limit: int | None, memory_budget: float | None
) -> tuple[list[float], Budget]:
    """Evaluate some examples and refuse what cannot be probed: losses of the first ones, and what they take."""
    try_lean_graphs(probed, sample)
    with checking("first pass"), probed.undisturbed(), explained(sample):
        tried = check_sample(probed, sample, limit)
        check_entries(probed, sample)
        leaves, within = check_roads(probed, sample)
        footprint, after = measure(probed, sample, leaves)
        with checking("memory"):
            budget = Budget.of(memory_budget, footprint, probed.device)
        check_behaviour(probed, sample, tried, budget.examples_at_once())
        check_backward(within, after)
    return tried.losses, budget
