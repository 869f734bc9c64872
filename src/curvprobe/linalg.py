"""Inner products, norms and combinations of long vectors, accumulated in float64.

A float32 dot product of millions of terms is off by about 1e-4; every small matrix in this package
(Ritz matrices, projections, coefficients) is therefore accumulated in float64, in column chunks so that
the float64 copies stay small.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 20


def _chunks(num_rows: int, length: int) -> range:
    return range(0, length, max(1, _CHUNK_ELEMENTS // max(1, num_rows)))


def inner(rows: Tensor, vectors: Tensor) -> Tensor:
    """Inner products ``rows @ vectors`` in float64.

    Args:
        rows: (m, N).
        vectors: (N,) or (N, b).

    Returns:
        float64 (m,) or (m, b), on the device of the operands.
    """
    if rows.dtype == torch.float64 and vectors.dtype == torch.float64:
        return rows @ vectors
    shape = (rows.shape[0], *vectors.shape[1:])
    total = torch.zeros(shape, dtype=torch.float64, device=rows.device)
    columns = _chunks(rows.shape[0], rows.shape[1])
    for start in columns:
        piece = slice(start, start + columns.step)
        total += rows[:, piece].double() @ vectors[piece].double()
    return total


def norm(vector: Tensor) -> float:
    """Euclidean norm accumulated in float64."""
    return math.sqrt(max(0.0, float(inner(vector[None], vector))))


def subtract_combination(vector: Tensor, rows: Tensor, coefficients: Tensor) -> None:
    """``vector -= coefficients @ rows``, in place; ``coefficients`` is float64 (m,), ``rows`` (m, N)."""
    columns = _chunks(rows.shape[0], rows.shape[1])
    for start in columns:
        piece = slice(start, start + columns.step)
        vector[piece] -= (coefficients @ rows[:, piece].double()).to(vector.dtype)


def rotate(rows: Tensor, coefficients: Tensor) -> None:
    """``rows[:l] = coefficients.T @ rows``, in place; ``coefficients`` is float64 (m, l), ``rows`` (m, N)."""
    columns = _chunks(rows.shape[0], rows.shape[1])
    for start in columns:
        piece = slice(start, start + columns.step)
        rows[: coefficients.shape[1], piece] = (coefficients.T @ rows[:, piece].double()).to(rows.dtype)
