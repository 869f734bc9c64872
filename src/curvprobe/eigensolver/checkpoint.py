"""The state of an unfinished eigenvalue computation in a file."""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvprobe.eigensolver.krylov import KrylovBasis
from curvprobe.errors import ArgumentError
from curvprobe.runtime.digest import digest
from curvprobe.runtime.store import write_atomically

LOG = logging.getLogger("curvprobe")

CHECKPOINT_VERSION = 2
"""Raised when the meaning of the state in the file changes; an older file is then not used."""


@dataclass(frozen=True)
class Checkpoint:
    """A file that keeps the state of an unfinished computation, so that it can be continued.

    Processes that share the coordinates write a file each, beside one another; any number of them goes on from what
    any other number has left, where all its files are to be seen.

    Args:
        path: of the file.
        key: of everything the state depends on; a file with another key is not used.
        interval: seconds between two writings, at least; a twentieth of the time at most goes into writing.
        rank, world: number of this process among those that share the coordinates, in its order, and how many they are.
    """

    path: Path
    key: str
    interval: float = 60.0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if self.path.is_dir():
            raise ArgumentError(f"the checkpoint {str(self.path)!r} is a folder; expected the name of a file")

    @property
    def own(self) -> Path:
        """The file of this process."""
        return self._file(self.rank, self.world)

    def _file(self, rank: int, world: int) -> Path:
        return self.path if world == 1 else self.path.with_name(f"{self.path.name}.{rank}-of-{world}")

    def _left(self) -> dict[Path, int]:
        """The files that any processes have left, and how many these were."""
        name = re.compile(rf"{re.escape(self.path.name)}(\.\d+-of-(\d+))?")
        files = self.path.parent.iterdir() if self.path.parent.is_dir() else ()
        return {file: int(found[2] or 1) for file in files if (found := name.fullmatch(file.name))}

    def forget(self) -> None:
        """Remove the files: the computation is finished."""
        for file in self._left():
            file.unlink(missing_ok=True)

    def load(self, basis: KrylovBasis) -> bool:
        """Put the state in the files into ``basis``; False where there is none that fits.

        The latest that any number of processes has left is taken, where all that share the coordinates see the same
        one; else what as many as these have left.
        """
        left = Counter(self._left().values())
        complete = {world for world, count in left.items() if count == world}
        states = {world: self._joined(world, basis) for world in sorted({*complete, self.world})}
        latest = max(states.values(), key=_moment)
        for state in (latest, states[self.world]):
            if basis.space.alike(_moment(state)) and state:
                self._put(state, basis)
                return True
        return False

    def _joined(self, world: int, basis: KrylovBasis) -> dict[str, Any]:
        """The state that so many processes have left, with the coordinates that this one holds; empty without one."""
        size, each = basis.space.size, -(-basis.space.size // world)
        if world == self.world:
            found = self._read(self.own)
            return found if found and self._fits(found, basis, basis.space.held) else {}
        if basis.space.stays:
            return {}
        first, last, _ = basis.space.rows.indices(size)
        parts = list[Tensor]()
        state: dict[str, Any] = {}
        for rank in range(min(first, size - 1) // each, max(first, last - 1, 0) // each + 1):
            start, stop = min(size, rank * each), min(size, (rank + 1) * each)
            found = self._read(self._file(rank, world))
            if not found or not self._fits(found, basis, stop - start) or _moment(state or found) != _moment(found):
                return {}
            state = found
            parts.append(found["rows"][:, max(first, start) - start : max(first, min(last, stop)) - start])
        return {**state, "rows": torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]}

    def _put(self, state: dict[str, Any], basis: KrylovBasis) -> None:
        count, moment = len(state["rows"]) - state["is_pending"], state["num_matvecs"]
        basis.rows[: len(state["rows"])] = state["rows"]
        basis.projected[:count, :count] = state["projected"]
        basis.carried[:count], basis.coupling[:count] = state["carried"], state["coupling"]
        basis.generator.set_state(state["generator"])
        basis.is_pending = state["is_pending"]
        basis.largest, basis.num_matvecs, basis.count = state["largest"], moment, count

    def _read(self, path: Path) -> dict[str, Any]:
        """The state in the file where it is of this computation and as it was written; empty, and said why, else."""
        try:
            state = torch.load(path, mmap=True, weights_only=True)
            version, checksum = state["version"], state.pop("checksum", None)
            earlier = type(version) is int and version < CHECKPOINT_VERSION
            whole = earlier or (version == CHECKPOINT_VERSION and checksum == digest(state))
            if whole and (earlier or state["key"] != self.key):
                LOG.info("%s is of another computation, or of an earlier version", path)
                return {}
            reason = "its checksum is another, or it is of a newer version"
        except FileNotFoundError:
            return {}
        except Exception as error:  # whatever the reader makes of bytes that it did not write
            whole, reason = False, f"{type(error).__name__}: {str(error).split(chr(10))[0]:.200}"
        if not whole:
            warnings.warn(
                f"the solver's state in {path} is damaged ({reason}); the computation begins anew", stacklevel=2
            )
        return state if whole else {}

    def _fits(self, state: dict[str, Any], basis: KrylovBasis, held: int) -> bool:
        """Whether a state with so many coordinates has this basis's shape, and room in it."""
        count = len(state["rows"]) - state["is_pending"]
        return bool(
            count <= basis.capacity
            and state["rows"].shape[1] == held
            and state["projected"].shape == (count, count)
            and len(state["carried"]) == len(state["coupling"]) == count
            and isinstance(state["largest"], float)
            and state["generator"].shape == basis.generator.get_state().shape
        )

    def save(self, basis: KrylovBasis) -> None:
        """Write the state of ``basis``, without a second copy of it in memory."""
        count = basis.count
        state = {
            "version": CHECKPOINT_VERSION,
            "key": self.key,
            "rows": basis.rows[: count + basis.is_pending].cpu(),
            "projected": basis.projected[:count, :count].clone(),
            "carried": basis.carried[:count].clone(),
            "coupling": basis.coupling[:count].clone(),
            "is_pending": basis.is_pending,
            "generator": basis.generator.get_state(),
            "largest": basis.largest,
            "num_matvecs": basis.num_matvecs,
        }
        state["checksum"] = digest(state)
        write_atomically(self.own, lambda file: torch.save(state, file))


def _moment(state: dict[str, Any]) -> int:
    """Products that had been used."""
    return int(state.get("num_matvecs", -1))


class Saver:
    """Saves a basis from time to time."""

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        self.checkpoint = checkpoint
        self.due = time.monotonic() + (checkpoint.interval if checkpoint else 0.0)
        self.ours = False
        """Whether the file holds this computation, and not another's."""

    def load(self, basis: KrylovBasis) -> bool:
        """Continue from the checkpoint, where there is one."""
        self.ours = self.checkpoint is not None and self.checkpoint.load(basis)
        return self.ours

    def discard(self) -> None:
        """Remove the file: the computation is finished."""
        if self.checkpoint is not None and self.ours:
            self.checkpoint.forget()

    def maybe(self, basis: KrylovBasis) -> None:
        """Save where the last time is long enough ago."""
        if self.checkpoint is not None and basis.space.decides(time.monotonic() >= self.due):
            self.now(basis)

    def now(self, basis: KrylovBasis) -> None:
        """Save, where there is a checkpoint and something to keep; a disk that is full does not end the computation."""
        if self.checkpoint is None or basis.count == 0 or not basis.intact:
            return
        start = time.monotonic()
        try:
            self.checkpoint.save(basis)
            self.ours = True
        except OSError as error:
            reason = error.__cause__ or error
            warnings.warn(f"the solver's state could not be saved in {self.checkpoint.own}: {reason}", stacklevel=2)
        end = time.monotonic()
        self.due = end + max(self.checkpoint.interval, 20 * (end - start))
