"""Plain values: results as strict JSON, and numbers back from it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy
import torch
from torch import Tensor


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
