"""Result files, and what they say about the machine that they were made on."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

import curvprobe
from curvprobe.store import to_json


def describe() -> dict[str, object]:
    info = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "curvprobe": curvprobe.__version__,
    }


def place(machine: dict[str, Any]) -> str:
    """Where and with what it was measured, for the foot of a table."""
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    return f"{where}, torch {machine['torch']}"


def write(out: Path, result: dict[str, Any]) -> None:
    """Write a result file, in a folder that is made if need be."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(to_json(result))
    print(f"written to {out}")
