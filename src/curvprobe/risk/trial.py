"""A few examples are evaluated first: what cannot be probed is refused, and what an example takes is found."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor

from curvprobe.errors import CannotProbeError
from curvprobe.risk.budget import Footprint, Operations, SavedBytes, compilers_held
from curvprobe.risk.contract import (
    check_depends,
    check_finite,
    check_weights,
    refuse_change,
    refuse_dependence,
    refuse_noise,
    unlike_losses,
)
from curvprobe.risk.frozen import LEAN
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Microbatch, Sample

TRIED = 4
"""Neighbouring examples that are evaluated together, at most."""

TOGETHER = 16
"""Examples from all over the sample that are evaluated together, at most."""

REPEATED = 140
"""Evaluations of one example each of a model that draws random numbers: noise that strikes one evaluation in twenty
goes unseen once in a thousand times (0.95 ** 140 < 0.001)."""

PASSES_APART = 100
"""Units of rounding (:func:`unit`) that a loss may differ by between two passes in other batches."""

ASKED_AGAIN = 3
"""Evaluations of a batch whose losses were unlike those of another, to tell noise from dependence."""


@dataclass(frozen=True)
class Tried:
    """The first evaluation.

    Attributes:
        losses: of the first examples.
        limit: examples that may be read at once.
    """

    losses: list[float]
    limit: int


def check_sample(model: ProbedModel, sample: Sample, limit: int | None) -> Tried:
    """Evaluate the first examples, at most ``limit``; refuses data that the model or the loss cannot take."""
    rows = min(len(sample), TRIED, limit or TRIED)
    first = sample.read(0, rows)
    sample.read(0, rows)  # a dataset that brings something else the second time is refused here
    loss_sum, weight = model.batch_losses(model.leaves(), first)
    if not loss_sum.requires_grad:  # these examples may pass the probed parameters by
        everything = {name: p.detach().requires_grad_(p.is_floating_point()) for name, p in model.state.kept.items()}
        loss_sum, _ = model.batch_losses({**everything, **model.leaves()}, sample.read(0, rows))
        check_depends(loss_sum)
    return Tried(_checked((loss_sum, weight), range(rows), len(sample)), limit or TOGETHER)


def check_behaviour(model: ProbedModel, sample: Sample, first: Tried, room: int = TOGETHER) -> None:
    """Refuse losses that are random or depend on the rest of their batch.

    Examples from all over the sample are evaluated alone, among their neighbours and among far-away ones, and each
    example's losses are compared, relative to their size. The random generators go on from one evaluation to the
    next, so noise shows in any of the comparisons; a model that has moved a generator is evaluated ``REPEATED`` times
    more. Unlike losses are judged in float64, where rounding cannot be taken for dependence even if a loss is almost
    zero. What is not seen: a dependence smaller than 1e-5 of a loss (1e-8 in float64) or of examples that are not
    looked at, and rare noise from a generator of the model's own.

    Args:
        model: evaluated at its solution.
        sample: all examples.
        first: what :func:`check_sample` has found.
        room: examples that there is memory for.
    """
    tried, generators = range(len(first.losses)), _generators(model.device)
    batches = [tried, *_batches(sample, min(TOGETHER, first.limit, room))]
    look = _Look(model, sample, 1e-5 if model.dtype == torch.float32 else 1e-10)
    look.first_unlike(tried, first.losses)
    unlike = look.through(batches[1:])
    again = "no random generator moved"
    if _generators(model.device) != generators:
        again = f"it draws random numbers, and {REPEATED} more evaluations agreed"
        look.check_noise([rows for rows in batches if len(rows) == 1])
    if unlike is not None:
        look.check_repeats(unlike)
        unlike = _in_double(model, sample, batches)
    if unlike is not None:
        refuse_dependence(unlike.row, unlike.losses, (len(unlike.before), len(unlike.now)))
    examples = f"{len(look.seen)} of {len(sample)} examples"
    model.passed["determinism"] = f"losses repeat on {examples}; {again}"
    model.passed["independence"] = f"{examples} have the same loss alone and in {len(batches)} batches of others"


def measure(model: ProbedModel, sample: Sample, leaves: dict[str, Tensor]) -> tuple[Footprint, list[Tensor]]:
    """What an example takes, and the gradient of the first one's loss at ``leaves``."""
    first, activation, slopes = sample.read(0, 1), 0, list[Tensor]()
    kept = SavedBytes([*leaves.values(), *model.state.kept.values()], model.raised)
    operations = Operations()  # type: ignore[no-untyped-call]
    with kept, contextlib.suppress(RuntimeError):  # an operation without a second derivative is refused later
        with operations, compilers_held():
            loss_sum, _ = model.batch_losses(leaves, first)
        activation = kept.total
        slopes = [part.detach() for part in model.first_order(loss_sum.sum(), leaves, create_graph=True)]
    slopes = slopes or model.first_order(model.batch_losses(leaves, first)[0].sum(), leaves)
    itemsize, found = model.dtype.itemsize, operations.total
    return Footprint(activation, kept.total, model.vectors.most, itemsize, first.shapes, found), slopes


def try_lean_graphs(model: ProbedModel, sample: Sample) -> None:
    """Give up lean graphs where the model's forward pass goes without them only, in its own type or in float64."""
    if not model.state.kept:
        return
    for each, examples in ((model, sample), (model.in_double(), sample.in_double())):
        if each.state.has_lower and not _evaluates(each, examples):
            model.fast_paths.give_up(LEAN)
            if _evaluates(each, examples):
                return
            model.fast_paths.take_up(LEAN)  # another fault, which is told where it is met


def _evaluates(model: ProbedModel, sample: Sample) -> bool:
    """Whether the first example's loss can be had."""
    try:
        with model.undisturbed():
            model.batch_losses(model.leaves(), sample.read(0, 1))
    except Exception:  # whatever the user's code raises
        return False
    return True


# ---- which examples, and among which others ------------------------------------------------------------------------


def _batches(sample: Sample, most: int) -> list[Sequence[int]]:
    """Positions that are evaluated together: single ones, neighbours, and examples from all over the sample."""
    count, near = len(sample), min(TRIED, most, len(sample))
    drawn = random.Random(0).sample(range(count), min(count, TOGETHER))
    spread = list(dict.fromkeys([0, count - 1, *drawn]))[:TOGETHER]
    inner = spread[-1]
    start = min(inner, count - near)
    mixed = list(dict.fromkeys([*range(start, start + near), *spread[::-2]]))  # neighbours, and far-away ones
    alone = [range(row, row + 1) for row in (0, count - 1, inner, *_extremes(sample, spread))]
    return [*alone, range(count - near, count), spread[:most], mixed[:most]]


def _extremes(sample: Sample, rows: Sequence[int]) -> list[int]:
    """The shortest and the longest of some examples, if they are not all alike."""

    def size(row: int) -> int:
        return sum(math.prod(shape) for shape in sample.read(row, row + 1).shapes)

    if len({size(row) for row in rows[:3]}) == 1:
        return []
    by_size = sorted(rows, key=size)
    return [by_size[0], by_size[-1]]


def _read(sample: Sample, rows: Sequence[int]) -> Microbatch | None:
    """These examples in one batch, or None if they cannot be brought into one."""
    try:
        if isinstance(rows, range):
            return sample.read(rows.start, rows.stop)
        return sample.select(rows).read(0, len(rows))
    except CannotProbeError as error:
        if len(rows) == 1 or error.__cause__ is None:  # that an example is not what it was has no cause
            raise
        return None


# ---- how their losses are compared ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Unlike:
    """Two losses of one example: in the batch that it was met in before, and now."""

    row: int
    before: Sequence[int]
    now: Sequence[int]
    losses: tuple[float, float]


@dataclass
class _Look:
    """Compares each example's losses in several batches.

    Attributes:
        model, sample: what is evaluated.
        relative: difference that counts as rounding, as a part of the larger loss.
        rounding: the same, in units of the dtype's rounding of an example's terms.
        seen: loss of each example when it was first met, and its batch.
    """

    model: ProbedModel
    sample: Sample
    relative: float
    rounding: float = 0.0
    seen: dict[int, tuple[float, Sequence[int]]] = field(default_factory=dict)

    def through(self, batches: Iterable[Sequence[int]]) -> _Unlike | None:
        """Evaluate these batches up to the first loss that is unlike an earlier one of its example."""
        for rows in batches:
            microbatch = _read(self.sample, rows)
            if microbatch is not None:
                unlike = self.first_unlike(rows, self.evaluate(rows, microbatch))
                if unlike is not None:
                    return unlike
        return None

    def evaluate(self, rows: Sequence[int], microbatch: Microbatch | None = None) -> list[float]:
        """Losses of these examples, whose batch is read now if it is not given."""
        microbatch = microbatch or self.sample.select(rows).read(0, len(rows))
        return _checked(self.model.batch_losses(self.model.leaves(), microbatch), rows, len(self.sample))

    def first_unlike(self, rows: Sequence[int], losses: Sequence[float]) -> _Unlike | None:
        """The first of these losses that is unlike the earlier one of its example; new ones are remembered."""
        for row, loss in zip(rows, losses, strict=True):
            before, batch = self.seen.setdefault(row, (loss, rows))
            apart = abs(loss - before) - self.relative * max(abs(loss), abs(before))
            if apart > 0 and not (
                self.rounding and apart <= self.rounding * unit(self.model, self.sample, row, (batch, rows))
            ):
                return _Unlike(row, batch, rows, (before, loss))
        return None

    def check_noise(self, batches: Sequence[Sequence[int]]) -> None:
        """Refuse a model that gives another loss to an example in one of ``REPEATED`` evaluations."""
        found: dict[int, float] = {}
        for turn in range(REPEATED):
            (row,) = rows = batches[turn % len(batches)]
            (again,) = self.evaluate(rows)
            self.check_same(row, found.setdefault(row, again), again)

    def check_repeats(self, unlike: _Unlike) -> None:
        """Refuse noise: a loss that is another one in the very same batch too."""
        for rows, found in zip((unlike.before, unlike.now), unlike.losses, strict=True):
            for _ in range(ASKED_AGAIN):
                self.check_same(unlike.row, found, self.evaluate(rows)[rows.index(unlike.row)])

    def check_same(self, row: int, found: float, again: float) -> None:
        """Refuse two losses of one example in the same batch that are not the same."""
        atomic = 0 if self.model.device.type == "cpu" else 100 * torch.finfo(self.model.dtype).eps
        if abs(again - found) > self.relative * max(abs(found), abs(again)) + atomic:
            refuse_noise(row, found, again)


def unit(model: ProbedModel, sample: Sample, row: int, batches: Iterable[Sequence[int]]) -> float:
    """What rounding the parameters changes in a loss; terms of size 1 are taken to be among its own.

    The largest of some batches: a loss that happens to be zero to the last bit in one may have no slope there.
    """
    leaves, moved = model.leaves(), list[float]()
    for rows in batches:
        loss_sum, weight = model.batch_losses(leaves, sample.select(rows).read(0, len(rows)))
        place = rows.index(row)
        slopes = model.first_order(loss_sum[place] / weight[place], leaves)
        parts = zip(slopes, leaves.values(), strict=True)
        each = torch.stack([(slope * leaf.detach()).abs().sum().double() for slope, leaf in parts]).sum()
        moved.append(float(each if model.vectors.sum_over is None else model.vectors.sum_over(each)))
    return torch.finfo(model.dtype).eps * (1 + max(moved))


def check_same_losses(
    model: ProbedModel, sample: Sample, first: Tensor, again: Tensor, size: int, start: int = 0
) -> None:
    """Refuse losses of a later pass that are not those of the first one, beyond what rounding the parameters moves.

    Args:
        model, sample: what both passes were of.
        first, again: losses of all examples, or of those from ``start`` on, float64 (n,).
        size: examples of a microbatch of the later pass.
        start: position of the first.
    """
    unlike = unlike_losses(first, again, model.dtype)
    if len(unlike):
        at = int(unlike[(again - first)[unlike].abs().argmax()])
        before, now = float(first[at]), float(again[at])
        row, left = start + at, start + at - at % size
        batches = (range(row, row + 1), range(left, min(left + size, start + len(first))))
        if abs(now - before) > PASSES_APART * unit(model, sample, row, batches):
            refuse_change(row, before, now)


def _in_double(model: ProbedModel, sample: Sample, batches: Sequence[Sequence[int]]) -> _Unlike | None:
    """What is unlike in float64 too; in the model's own dtype, with its rounding, if it cannot be evaluated there."""
    with contextlib.suppress(RuntimeError, TypeError, ValueError):
        relative = 1e-5 if model.dtype == torch.float32 else 1e-8
        return _Look(model.in_double(), sample.in_double(), relative, rounding=PASSES_APART).through(batches)
    return _Look(model, sample, 1e-3, rounding=PASSES_APART).through(batches)


def _checked(pair: tuple[Tensor, Tensor], rows: Sequence[int], total: int) -> list[float]:
    """Mean losses; refuses what is not finite, and examples without terms."""
    sums, weights = (part.detach().tolist() for part in pair)
    losses = [loss_sum / weight if weight else math.nan for loss_sum, weight in zip(sums, weights, strict=True)]
    for row, loss, weight in zip(rows, losses, weights, strict=True):
        if not (math.isfinite(loss) and 0 < weight < math.inf):
            check_weights(torch.tensor([weight], device="cpu"), row)
            check_finite(torch.tensor([loss], device="cpu"), row, total)
    return losses


def _generators(device: torch.device) -> tuple[Any, ...]:
    """State of the random generators of torch, NumPy and Python."""
    cuda = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    legacy = numpy.random.get_state(legacy=False)["state"]  # noqa: NPY002 - a model may use it
    numpy_state = (legacy["key"].tobytes(), legacy["pos"])
    return torch.get_rng_state().numpy().tobytes(), cuda, numpy_state, random.getstate()
