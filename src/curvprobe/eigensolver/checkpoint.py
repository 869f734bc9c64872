"""The state of an unfinished eigenvalue computation in a file."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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

    Args:
        path: of the file.
        key: of everything the state depends on; a file with another key is not used.
        interval: seconds between two writings, at least; a twentieth of the time at most goes into writing.
    """

    path: Path
    key: str
    interval: float = 60.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if self.path.is_dir():
            raise ArgumentError(f"the checkpoint {str(self.path)!r} is a folder; expected the name of a file")

    def load(self, basis: KrylovBasis) -> bool:
        """Put the state in the file into ``basis``; False where there is none that fits.

        Several holders of the coordinates each have a file of their own: all of them must be of the same moment.
        """
        state = self._read()
        moment = state["num_matvecs"] if state and self._fits(state, basis) else -1
        if not basis.space.alike(moment) or moment < 0:
            return False
        count = len(state["rows"]) - state["is_pending"]
        basis.rows[: len(state["rows"])] = state["rows"]
        basis.projected[:count, :count] = state["projected"]
        basis.carried[:count], basis.coupling[:count] = state["carried"], state["coupling"]
        basis.generator.set_state(state["generator"])
        basis.is_pending = state["is_pending"]
        basis.largest, basis.num_matvecs, basis.count = state["largest"], moment, count
        return True

    def _read(self) -> dict[str, Any]:
        """The state in the file where it is of this computation and as it was written; empty, and said why, else."""
        try:
            state = torch.load(self.path, mmap=True, weights_only=True)
            version, checksum = state["version"], state.pop("checksum", None)
            earlier = type(version) is int and version < CHECKPOINT_VERSION
            whole = earlier or (version == CHECKPOINT_VERSION and checksum == digest(state))
            if whole and (earlier or state["key"] != self.key):
                LOG.info("%s is of another computation, or of an earlier version", self.path)
                return {}
            reason = "its checksum is another, or it is of a newer version"
        except FileNotFoundError:
            return {}
        except Exception as error:  # whatever the reader makes of bytes that it did not write
            whole, reason = False, f"{type(error).__name__}: {str(error).split(chr(10))[0]:.200}"
        if not whole:
            warnings.warn(
                f"the solver's state in {self.path} is damaged ({reason}); the computation begins anew", stacklevel=2
            )
        return state if whole else {}

    def _fits(self, state: dict[str, Any], basis: KrylovBasis) -> bool:
        """Whether a state has this basis's shape, and room in it."""
        count = len(state["rows"]) - state["is_pending"]
        return bool(
            count <= basis.capacity
            and state["rows"].shape[1] == basis.rows.shape[1]
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
        write_atomically(self.path, lambda file: torch.save(state, file))


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
            self.checkpoint.path.unlink(missing_ok=True)

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
            warnings.warn(f"the solver's state could not be saved in {self.checkpoint.path}: {reason}", stacklevel=2)
        end = time.monotonic()
        self.due = end + max(self.checkpoint.interval, 20 * (end - start))
