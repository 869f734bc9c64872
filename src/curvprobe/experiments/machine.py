"""What a measurement was made on and with, and wall-clock seconds of a call."""

from __future__ import annotations

import ast
import inspect
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from curvprobe.runtime.digest import digest
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


def code_of(source: Callable[..., object]) -> str:
    """Digest of the code of the file in which a class or function is defined: changed code makes other numbers.

    Comments, docstrings and the way it is laid out do not count.
    """
    tree = ast.parse(Path(inspect.getfile(source)).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [
                part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return digest(ast.dump(tree))


def timed(device: torch.device, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """What ``action(*args, **kwargs)`` returns, and the seconds it took, the accelerator's queued work included."""
    _finish(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    result = action(*args, **kwargs)
    _finish(device)
    return result, time.perf_counter() - start


def peak_bytes(device: torch.device) -> int | None:
    """Most memory of an accelerator that tensors held since the last call of :func:`timed` began; None elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
