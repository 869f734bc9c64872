"""Wall-clock seconds of a call, the accelerator's queued work included."""

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def timed(device: torch.device, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """What ``action(*args, **kwargs)`` returns, and the seconds it took."""
    _finish(device)
    start = time.perf_counter()
    result = action(*args, **kwargs)
    _finish(device)
    return result, time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
