"""How much memory is free, and how much a differentiated computation keeps."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

PEAK_OVER_SAVED = 2.5
"""Resident memory of a curvature product over the bytes that autograd saves for it: cotangents in flight bring the
live tensors to 1.6 times (on a transformer), and the fragmentation of the C library's heap brings that to 2.5."""

VECTORS_IN_FLIGHT = 6
"""N-vectors, at 4 bytes a parameter, that a product holds beside its microbatch: gradients, tangents, sums."""

VECTORS_IN_CHECK = 18
"""The same for the check of second derivatives, which runs in float64."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of mallopt, from malloc.h."""

_LARGEST_THRESHOLD = 32 << 20
"""Up to where the GNU C library raises its threshold for mmap by itself, as large blocks are freed."""

_lock = threading.Lock()

_keeping = 0
"""Blocks under way in which freed memory is kept; the setting is the process's."""

_LIMITS = (  # a container's limit and what it holds already, in either version of Linux's control groups
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def free_bytes(device: torch.device) -> int:
    """Bytes that can be taken on the device now; for the CPU, within a container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    for limit, used in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


def default_budget(device: torch.device) -> int:
    """Half of what is free, rounded down to a power of two so that a second run makes the same choices."""
    return 1 << max(28, (free_bytes(device) // 2).bit_length() - 1)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have the GNU C library keep freed memory for the next product instead of giving it back to the system.

    Every product allocates the same large tensors again, and clearing their pages anew takes time: how much depends on
    the machine. At the end all that is free is given back; the thresholds stay where the library's own rule ends up
    as large tensors are freed. Does nothing where another C library is at work, or where the environment says how this
    one is to allocate.
    """
    global _keeping
    mallopt, trim = _allocator()
    with _lock:
        _keeping += 1
        if _keeping == 1:
            mallopt(_MMAP_MAX, 0)
            mallopt(_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        with _lock:
            _keeping -= 1
            if _keeping == 0:
                mallopt(_MMAP_MAX, 65536)
                mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
                mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
                trim(0)


def _allocator() -> tuple[Callable[[int, int], object], Callable[[int], object]]:
    """The C library's mallopt and malloc_trim, or two functions that do nothing."""
    stated = "malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") and name.endswith("_") for name in os.environ
    )
    if not stated:
        with contextlib.suppress(OSError, AttributeError, TypeError):  # the last on Windows
            library = ctypes.CDLL(None)
            return library.mallopt, library.malloc_trim
    return (lambda *_: None), (lambda _: None)


class SavedBytes(saved_tensors_hooks):
    """Counts the bytes that autograd saves in a block, the model's own tensors left out, each storage once."""

    def __init__(self, own: Iterable[Tensor]) -> None:
        self.total = 0
        known = {tensor.untyped_storage().data_ptr() for tensor in own}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                self.total += storage.nbytes()
            return tensor

        super().__init__(pack, lambda tensor: tensor)


def check_budget(budget: Any) -> None:
    """Refuse a memory budget that is neither None nor a positive number of bytes."""
    number = isinstance(budget, Real) and not isinstance(budget, bool)
    if budget is not None and (not number or not 1 <= budget < math.inf):
        raise ValueError(f"memory_budget is {budget!r}; expected a positive number of bytes or None")


@dataclass(frozen=True)
class Footprint:
    """What curvature work on a model takes, from what autograd saves for one example.

    Attributes:
        activation: bytes saved for the loss.
        graph: bytes saved for the loss and its gradient as a graph.
        num_params: N.
    """

    activation: int
    graph: int
    num_params: int

    @property
    def example(self) -> int:
        """Bytes that an example takes in a curvature product."""
        return int(PEAK_OVER_SAVED * max(1, self.graph))

    @property
    def least(self) -> int:
        """Bytes that a curvature product takes at the least: one example, and vectors of the parameters."""
        return self.example + VECTORS_IN_FLIGHT * 4 * self.num_params

    def examples_in(self, room: int) -> int:
        """How many examples fit in so many bytes; one at the least."""
        return max(1, 1 + (room - self.least) // self.example)

    def check(self, budget: int) -> None:
        """Refuse a budget in which nothing can be done."""
        least = max(2 * self.least, 2 * self.example + 4 * VECTORS_IN_CHECK * self.num_params)
        if budget < least:
            raise ValueError(
                f"memory_budget is {budget} bytes; this model needs at least {least} for one example and vectors of "
                "its parameters: allow that much, or probe fewer parameters with params="
            )
