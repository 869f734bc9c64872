"""Result files, and where they were made, for the foot of a table."""

from pathlib import Path
from typing import Any

from curvprobe.runtime.plain import to_json


def place(machine: dict[str, Any]) -> str:
    """Where and with what it was measured, for the foot of a table."""
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    return f"{where}, torch {machine['torch']}"


def write(out: Path, result: dict[str, Any]) -> None:
    """Write a result file, in a folder that is made if need be."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(to_json(result))
    print(f"written to {out}")
