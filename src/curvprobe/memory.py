"""How much memory is free, and how much a differentiated computation keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

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
