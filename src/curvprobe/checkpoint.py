"""The state of an unfinished eigenvalue computation in a file."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from curvprobe.krylov import KrylovBasis
from curvprobe.store import write_atomically


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

    def load(self, basis: KrylovBasis) -> bool:
        """Put the state in the file into ``basis``; False where there is none that fits."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                rows = file.get_slice("rows")
                count, size = rows.get_shape()
                if metadata.get("key") != self.key or count > basis.capacity or size != basis.size:
                    return False
                basis.rows[:count] = file.get_tensor("rows").to(basis.rows)
                basis.projected[:count, :count] = file.get_tensor("projected")
                basis.carried[:count] = file.get_tensor("carried")
                basis.generator.set_state(file.get_tensor("generator"))
                numbers = json.loads(metadata["numbers"])
                pending = file.get_tensor("pending").to(basis.rows) if "pending" in file.keys() else None  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return False  # absent, cut short, or of another version
        basis.count, basis.pending = count, pending
        basis.pending_norm, basis.largest, basis.num_matvecs = numbers
        return True

    def save(self, basis: KrylovBasis) -> None:
        """Write the state of ``basis``."""
        count = basis.count
        tensors: dict[str, Any] = {
            "rows": basis.rows[:count].cpu(),
            "projected": basis.projected[:count, :count].contiguous(),
            "carried": basis.carried[:count],
            "generator": basis.generator.get_state(),
        }
        if basis.pending is not None:
            tensors["pending"] = basis.pending.cpu().contiguous()
        numbers = json.dumps([basis.pending_norm, basis.largest, basis.num_matvecs])
        write_atomically(self.path, save(tensors, metadata={"key": self.key, "numbers": numbers}))


class Saver:
    """Saves a basis from time to time."""

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        self.checkpoint = checkpoint
        self.due = time.monotonic() + (checkpoint.interval if checkpoint else 0.0)

    def load(self, basis: KrylovBasis) -> bool:
        """Continue from the checkpoint, where there is one."""
        return self.checkpoint is not None and self.checkpoint.load(basis)

    def discard(self) -> None:
        """Remove the file: the computation is finished."""
        if self.checkpoint is not None:
            self.checkpoint.path.unlink(missing_ok=True)

    def maybe(self, basis: KrylovBasis) -> None:
        """Save where the last time is long enough ago."""
        if self.checkpoint is not None and time.monotonic() >= self.due:
            self.now(basis)

    def now(self, basis: KrylovBasis) -> None:
        """Save, where there is a checkpoint and something to keep."""
        if self.checkpoint is None or basis.count == 0:
            return
        start = time.monotonic()
        self.checkpoint.save(basis)
        end = time.monotonic()
        self.due = end + max(self.checkpoint.interval, 20 * (end - start))
