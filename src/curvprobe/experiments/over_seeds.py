"""From values of several seeds to what a figure and a sentence need."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from curvprobe.numerics.intervals import standard_error, student_reach
from curvprobe.numerics.power_law import power_law


def over_seeds(values: Tensor) -> dict[str, Any]:
    """Mean (...) and standard error (...) of values (seeds, ...)."""
    count = len(values)
    error = values.std(0) / math.sqrt(count) if count > 1 else torch.full_like(values[0], torch.nan)
    return {"mean": values.mean(0), "stderr": error}


def exponent(ks: Tensor, curves: Tensor) -> dict[str, Any]:
    """Of a power law through each of the curves (seeds, K): the mean over seeds, and Student's 95 % interval."""
    found = torch.tensor([power_law(ks, curve).exponent for curve in curves], dtype=torch.float64)
    mean = float(found.mean())
    reach = student_reach(standard_error(found), len(found) - 1) if len(found) > 1 else math.inf
    return {"value": mean, "interval": [mean - reach, mean + reach]}


def spread(values: Tensor) -> dict[str, Any]:
    """Median, smallest and largest of values (n, ...)."""
    return {"median": values.quantile(0.5, dim=0), "low": values.min(0).values, "high": values.max(0).values}


def said(exponent: dict[str, Any]) -> str:
    """An exponent with its interval, as text."""
    low, high = exponent["interval"]
    return f"{exponent['value']:.2f} [{low:.2f}, {high:.2f}]"
