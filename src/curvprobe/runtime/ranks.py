"""The processes that share one analysis: which rows each holds, and what they tell one another.

A process by itself is the case in which nothing of this happens. Every exchange begins with a word on how each process
fares: one that has failed takes the others with it and says why, instead of leaving them to wait.
"""

from __future__ import annotations

import math
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from curvprobe import errors
from curvprobe.errors import ArgumentTypeError, CurvprobeError, LostError, RankError
from curvprobe.numerics.space import Space

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # by their names since torch 2.13
_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_FAILED = -1
"""The word of a process that has failed; that of another one is a hash of what it is about to do."""

_TOLD = "_curvprobe_told"
"""Mark of an exception of which the other processes know."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a group; without one, this process by itself.

    Every method but :meth:`share` is to be called by all of them, in the same order.
    """

    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if self.group is not None and not isinstance(self.group, dist.ProcessGroup):
            raise ArgumentTypeError(
                f"group is a {type(self.group).__name__}; expected a torch.distributed.ProcessGroup that this process "
                "belongs to, such as torch.distributed.group.WORLD, or None for this process by itself"
            )

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.group is not None and self.group.size() > 1

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        return 0 if self.group is None else self.group.rank()

    @property
    def world(self) -> int:
        """How many there are."""
        return 1 if self.group is None else self.group.size()

    def share(self, count: int) -> slice:
        """The rows, of so many, that this process holds: the same number as the others, the last ones fewer or none."""
        each = -(-count // self.world)
        start = min(self.rank * each, count)
        return slice(start, min(start + each, count))

    def space(self, size: int) -> Space:
        """The space of vectors of so many coordinates, of which each holds its share."""
        if not self.several:
            return Space(size)
        part, gathered, most = (self.share(size),), lambda rows: self.whole(rows, size), -(-size // self.world)
        return Space(size, part, self.total, self.of_first, gathered, self.share_of_firsts, share=most)

    # ---- how each fares

    @contextmanager
    def together(self, of: str = "") -> Iterator[None]:
        """A block of this process's own work, without exchanges; after it all go on, or none.

        Where the work failed in one of them, all raise what the first of these raised: an error of this package as it
        is, anything else as a :class:`RankError`. ``of`` is said beside the number of the process.
        """
        try:
            yield
        except BaseException as error:
            self._compare(error, of)
            raise
        self._compare(None, of)

    @contextmanager
    def told(self) -> Iterator[None]:
        """A block in which exchanges happen: a process that leaves it by an exception tells those that go on."""
        try:
            yield
        except BaseException as error:
            if not getattr(error, _TOLD, False):
                self._compare(error, "")
            raise

    def _compare(self, error: BaseException | None, of: str = "", doing: str = "") -> None:
        """Hear how all fare, and that they are about to do the same; raises where another one, before this in number,
        has failed."""
        if not self.several:
            return
        words = torch.zeros(self.world, dtype=torch.int64, device="cpu")
        words[self.rank] = _FAILED if error is not None else zlib.crc32(doing.encode())
        with self._exchanging():
            words = self._summed(words)
            if bool((words == words[0]).all()) and error is None and int(words[0]) != _FAILED:
                return
            if not bool((words == _FAILED).any()):
                raise _marked(
                    RankError(
                        f"rank {self.rank} of {self.world} is about to {doing or 'finish'}, and others do something "
                        "else; expected all to make the same calls, and the model to go the same way on all examples"
                    )
                )
            causes: list[Any] = [None] * self.world
            mine = None if error is None else (type(error).__name__, str(error), of, getattr(error, "check", ""))
            dist.all_gather_object(causes, mine, group=self.group)
        first = next(rank for rank, cause in enumerate(causes) if cause is not None)
        if error is not None:
            with suppress(AttributeError):
                _marked(error)
        if first != self.rank:
            raise _same_error(first, *causes[first]) from error

    @contextmanager
    def _exchanging(self) -> Iterator[None]:
        """What a backend raises where a process has gone without a word, as an error that says so."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, CurvprobeError):
                raise
            who, why = self._gone() or "which one is not known", str(error).splitlines()[0]
            raise _marked(
                LostError(
                    f"rank {self.rank} of {self.world} lost another process, killed or cut off: {who} ({why:.200})"
                )
            ) from error

    def _gone(self) -> str:
        """Those of this machine that are no more, by number, as soon as there is one; as far as they have met."""
        here = [
            (rank, pid) for rank, (host, pid) in enumerate(_PLACES.get(self.group, ())) if host == socket.gethostname()
        ]
        for _ in range(20 if here else 0):
            lost = [f"rank {rank} (process {pid})" for rank, pid in here if not _lives(pid)]
            if lost:
                return ", ".join(lost)
            time.sleep(0.1)
        return ""

    # ---- what they tell one another

    def total(self, part: Tensor) -> Tensor:
        """The sum of what all hold, the same bits in each of them."""
        if not self.several:
            return part
        self._compare(None, doing=f"sum {tuple(part.shape)}")
        with self._exchanging():
            return self._summed(part)

    def _summed(self, part: Tensor) -> Tensor:
        sent = self._sent(part).contiguous().clone()
        dist.all_reduce(sent, group=self.group)
        return sent.to(part.device)

    def least(self, number: int) -> int:
        """The smallest of their numbers."""
        if not self.several:
            return number
        self._compare(None, doing="take the least")
        with self._exchanging():
            sent = self._sent(torch.tensor([number], dtype=torch.int64, device="cpu"))
            dist.all_reduce(sent, dist.ReduceOp.MIN, group=self.group)
        return int(sent)

    def expect_same(self, what: str, *values: Any) -> None:
        """Refuse where they hold other values, which JSON can hold, than the first of them does."""
        if self.group is None or not self.several:
            return
        places, all_values = zip(*self.all_of(((socket.gethostname(), os.getpid()), values)), strict=True)
        _PLACES[self.group] = places
        for rank, found in enumerate(all_values):
            if not _close(found, values):
                raise RankError(
                    f"ranks {self.rank} and {rank} have different {what}; expected each process to load the same model "
                    "and the same data, in the same order"
                )

    def all_of(self, value: Any) -> list[Any]:
        """What each of them has, by rank."""
        if not self.several:
            return [value]
        self._compare(None, doing="tell one another")
        found: list[Any] = [None] * self.world
        with self._exchanging():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def whole(self, part: Tensor, count: int, what: str = "rows") -> Tensor:
        """All rows (count, ...), of which each holds its share."""
        if not self.several:
            return part
        self._compare(None, doing=f"gather {what}, {(count, *part.shape[1:])}")
        each = -(-count // self.world)
        sent = _padded(self._sent(part), each)
        found = sent.new_empty(self.world * each, *sent.shape[1:])
        with self._exchanging():
            _gather(found, sent, group=self.group)
        return found[:count].to(part.device)

    def share_of_total(self, rows: Tensor, what: str = "rows") -> Tensor:
        """This process's share of the rows of the sum of what all hold."""
        if not self.several:
            return rows
        self._compare(None, doing=f"scatter {what}, {tuple(rows.shape)}")
        count = len(rows)
        each = -(-count // self.world)
        sent = _padded(self._sent(rows), self.world * each)
        found = sent.new_empty(each, *sent.shape[1:])
        with self._exchanging():
            _scatter(found, sent, group=self.group)
        held = self.share(count)
        return found[: held.stop - held.start].to(rows.device)

    def share_of_each(self, rows: Tensor, what: str = "rows") -> Tensor:
        """This process's share (world, share, ...) of the rows (count, ...) that each has of its own."""
        if not self.several:
            return rows[None]
        count, each = len(rows), -(-len(rows) // self.world)
        found = self._traded(_padded(self._sent(rows), self.world * each), f"{what}, {tuple(rows.shape)}")
        held = self.share(count)
        return found.view(self.world, each, *rows.shape[1:])[:, : held.stop - held.start].to(rows.device)

    def from_each(self, shares: Tensor, count: int, what: str = "rows") -> Tensor:
        """The way back: all rows (count, ...), of which each has made its share for every one (world, share, ...)."""
        if not self.several:
            return shares[0]
        each = -(-count // self.world)
        sent = _padded(self._sent(shares).transpose(0, 1), each).transpose(0, 1).flatten(0, 1)
        return self._traded(sent, f"{what}, {(count, *shares.shape[2:])}")[:count].to(shares.device)

    def _traded(self, sent: Tensor, what: str) -> Tensor:
        """Rows of which the r-th part is for the r-th process, and then those that are for this one."""
        self._compare(None, doing=f"trade {what}")
        sent = sent.contiguous()
        found = torch.empty_like(sent)
        with self._exchanging():
            dist.all_to_all_single(found, sent, group=self.group)
        return found

    def of_first(self, tensor: Tensor) -> Tensor:
        """The first process's values of a tensor that all have in this shape."""
        if not self.several:
            return tensor
        self._compare(None, doing=f"hear the first, {tuple(tensor.shape)}")
        sent = self._sent(tensor).contiguous().clone()
        with self._exchanging():
            dist.broadcast(sent, group=self.group, group_src=0)
        return sent.to(tensor.device)

    def from_first(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in the first process, which alone does it."""
        if not self.several:
            return work()
        found: list[Any] = [None]
        with self.together():
            if self.rank == 0:
                found = [work()]
        with self._exchanging():
            dist.broadcast_object_list(found, group=self.group, group_src=0)
        return found[0]  # type: ignore[no-any-return]

    def share_of_firsts(self, rows: Tensor | None) -> Tensor:
        """This process's share of the rows of a tensor that the first one has, and the others need not."""

        def described() -> tuple[Tensor, int]:
            assert rows is not None
            return rows[:0], len(rows)

        kind, count = self.from_first(described)
        each = -(-count // self.world)
        mine = self._sent(kind.new_empty(each, *kind.shape[1:]))
        with self.together():  # memory may run out
            pieces = None
            if rows is not None and self.rank == 0:
                starts = range(0, self.world * each, each)
                pieces = [self._sent(_padded(rows[start : start + each], each)) for start in starts]
        with self._exchanging():
            dist.scatter(mine, pieces, group=self.group, group_src=0)
        held = self.share(count)
        return mine[: held.stop - held.start].cpu()

    def _sent(self, tensor: Tensor) -> Tensor:
        """A tensor where the group's backend takes it: one for accelerators takes none on the host."""
        assert self.group is not None
        return tensor.cuda() if dist.get_backend(self.group) == "nccl" and tensor.device.type == "cpu" else tensor


_PLACES: WeakKeyDictionary[Any, tuple[tuple[str, int], ...]] = WeakKeyDictionary()
"""Machine and process of every rank of a group that has met."""


def _padded(rows: Tensor, count: int) -> Tensor:
    """So many rows, the last ones zero."""
    missing = count - len(rows)
    return (torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows).contiguous()


def _lives(pid: int) -> bool:
    """Whether a process of this machine is at work: one that was killed may wait for its parent to notice."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _close(found: Any, expected: Any) -> bool:
    """Whether numbers and lists of numbers are the same but for rounding."""
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(_close, found, expected))
    return math.isclose(found, expected, rel_tol=1e-3, abs_tol=1e-6) or found == expected


def _same_error(rank: int, kind: str, message: str, of: str, check: str) -> CurvprobeError:
    """The error of another process, of this package's own kind where it is one."""
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, CurvprobeError):
        made = known(message if message.startswith("rank ") else f"rank {rank}{of}: {message}")
    else:
        made = RankError(f"rank {rank}{of} stopped with {kind}: {message}")
    made.check = check
    return _marked(made)


def _marked(error: E) -> E:
    """An error of which the other processes know."""
    setattr(error, _TOLD, True)
    return error


ALONE = Ranks()
"""This process by itself."""
