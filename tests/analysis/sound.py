"""An analysis whose numbers are round and which nothing is in doubt of, to change one thing at a time."""

from dataclasses import replace

import torch

import curvprobe as cp
from curvprobe.criteria.row_errors import RowError, RowErrors

GOOD = RowError(0.001, 0.01, 0.01, 0.02)


def without_doubts(analysis: cp.Analysis) -> cp.Analysis:
    """With every doubt taken out, and intervals that have an upper end."""
    expected = replace(
        analysis.expected, value=1e-6, interval=(0.25e-6, 4e-6), shape_interval=(1e-10, 9e-10), **shape_of(4e-10)
    )
    return replace(
        analysis,
        loss=0.5,
        held_out_loss=0.61234,
        expected=expected,
        doubling=replace(expected, value=1e-4, interval=(0.25e-4, 4e-4)),
        errors=RowErrors({0: GOOD}, GOOD, 10),
        stationarity=cp.Stationarity(1e-8, 1e-9, 1e-18, 1e-18, 0.0, 0.0),
        gradient_norm=1e-8,
        notes=(),
        examination=cp.Examination((cp.Finding("data", "pass", "fine"),)),
        required=None,
        sigma_source="auto: the largest validated",
    )


def shape_of(value: float) -> dict:
    """A table whose shape is this, and where it lies."""
    table = torch.zeros(2, 3, dtype=torch.float64)
    table[0, 0], table[1, 1] = 1e-6 - value, value
    parts = torch.tensor([0.1, 0.6, 0.0, 0.3], dtype=torch.float64) * value
    contributions = torch.tensor([0.0, 5.0, 1.0, 1.0, 8.0, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    return {"table": table, "shape_by_direction": parts, "contributions": contributions}


def sized(analysis, tolerance: float, of: str = "total", **changes) -> cp.Analysis:
    found = cp.RequiredSampleSize(3215, 2259, 3215, (2258.7, 5639.2), tolerance, "supported", "", 0.01, of)
    return replace(analysis, required=replace(found, **changes))
