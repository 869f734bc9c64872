"""How many threads work takes: little work waits for a second thread longer than it takes by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

LITTLE = 1e9
"""Floating-point operations of a curvature product up to which one thread does it. On an idle machine a second one
gains little there; where other work goes on, a thread that is not scheduled makes all others wait."""

SWEPT = 10
"""Operations for which a number counts that is only read from memory and added up."""


@contextmanager
def threads_for(operations: float, device: torch.device) -> Iterator[None]:
    """A block in which a processor does work of so many floating-point operations at a time."""
    before = torch.get_num_threads()
    if device.type != "cpu" or operations > LITTLE or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
