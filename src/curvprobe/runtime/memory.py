"""How much memory is free, and freed memory that is kept for the next product."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

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


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; on the host torch has no kind of its own for that."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


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
