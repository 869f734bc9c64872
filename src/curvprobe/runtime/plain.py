"""Plain values: results as strict JSON, and numbers back from it."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import numpy
import torch
from torch import Tensor

FEW = 4
"""Items of a tuple, list or dict that are shown one by one."""


def to_json(value: Any) -> bytes:
    """Readable, strict JSON; numbers that are not finite become null."""
    return (json.dumps(plain(value), indent=2, allow_nan=False) + "\n").encode()


def plain(value: Any) -> Any:
    """The same as JSON knows it: lists, dicts by string, and None for a number that is not finite."""
    if isinstance(value, Tensor | numpy.generic):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def number(value: float | None, absent: float = math.nan) -> float:
    """A number from JSON; null is ``absent``."""
    return absent if value is None else float(value)


def numbers(values: Any, absent: float = math.nan) -> Tensor:
    """A nest of numbers from JSON, float64; null is ``absent``."""

    def filled(item: Any) -> Any:
        return [filled(part) for part in item] if isinstance(item, list) else number(item, absent)

    return torch.tensor(filled(values), dtype=torch.float64, device="cpu")


def in_bytes(count: int) -> str:
    """A number of bytes, to three digits."""
    sizes = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
    size, name = next((size, name) for size, name in sizes if count >= size or size == 1)
    return f"{count / size:.3g} {name}"


def brief(found: Any) -> str:
    """A dataclass in one line, as its ``__repr__``: tensors by their type and shape, floats to four digits.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Found:
        ...     value: float
        ...     parts: Tensor
        >>> brief(Found(1 / 3, torch.zeros(60, 3)))
        'Found(value=0.3333, parts=<float32 (60, 3)>)'
    """
    parts = (f"{field.name}={_shown(getattr(found, field.name))}" for field in fields(found) if field.repr)
    return f"{type(found).__name__}({', '.join(parts)})"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"<{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}>"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple) and value and all(isinstance(item, float) for item in value):
        return f"({', '.join(f'{item:.4g}' for item in value)})"
    if isinstance(value, tuple | list | dict) and len(value) > FEW:
        return f"<{type(value).__name__} of {len(value)}>"
    return repr(value)
