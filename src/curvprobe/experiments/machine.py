"""What a measurement was made on and with, and wall-clock seconds of a call."""

from __future__ import annotations

import inspect
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from curvprobe.examples import digest
from curvprobe.version import __version__

P = ParamSpec("P")
T = TypeVar("T")


def describe() -> dict[str, object]:
    """Processor, threads, accelerator and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "curvprobe": __version__,
    }


def code_of(kind: type) -> str:
    """Digest of the file that defines a stage's kind, and what fills it: changed code makes other numbers."""
    return digest(Path(inspect.getfile(kind)).read_bytes())


def timed(device: torch.device, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """What ``action(*args, **kwargs)`` returns, and the seconds it took, the accelerator's queued work included."""
    _finish(device)
    start = time.perf_counter()
    result = action(*args, **kwargs)
    _finish(device)
    return result, time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
