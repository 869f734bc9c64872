"""Inner products, norms and combinations of long vectors, accumulated in float64.

A float32 dot product of millions of terms is off by about 1e-4; every small matrix in this package (Ritz matrices,
projections, coefficients) is therefore accumulated in float64, in column chunks so that float64 copies stay small.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]
"""The sum of a small float64 tensor over all processes that hold rows of the long vectors."""

_CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Elements copied to float64 at a time: a processor's cache holds them; an accelerator wants few, large operations."""

_OWN_TERMS = 1 << 14

_MOST_SWEEPS = 3

_IN_ROUNDING = 1e-4
"""Part of a vector below which what a sweep took out of it leaves no trace: in float32 an error of 1e-4 times 1e-7."""


def _chunks(rows: Tensor) -> range:
    elements = _CHUNK_ELEMENTS.get(rows.device.type, 1 << 20)
    return range(0, rows.shape[1], max(1, elements // max(1, rows.shape[0])))


def inner(rows: Tensor, vectors: Tensor) -> Tensor:
    """Inner products ``rows @ vectors``, accumulated in float64.

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
    columns = _chunks(rows)
    for start in columns:
        piece = slice(start, start + columns.step)
        total += rows[:, piece].double() @ vectors[piece].double()
    return total


def lowered(device: torch.device) -> str:
    """The precision that torch's settings allow float32 products on this device, "tf32" or "bf16"; "" for their own.

    Not by ``torch.get_float32_matmul_precision``, of which torch 2.9 warns, and which every version refuses to tell
    where the setting was made by these names.
    """
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    allowed = str(backend.matmul.fp32_precision)
    return "" if allowed in ("none", "ieee") else allowed


def multiplies_exactly(rows: Tensor) -> bool:
    """Whether products are made in the operands' own precision, and on a device whose way to make them is known."""
    return rows.device.type in _CHUNK_ELEMENTS and not lowered(rows.device)


def quick_inner(rows: Tensor, vectors: Tensor) -> Tensor:
    """The same for operands of one type, two to five times as fast and a little less exact.

    2^14 terms are summed in their own precision before float64 takes over. In float32 that is off by 1e-9 of the
    product of the norms on vectors without structure, where their storage is off by 6e-8, and by 2e-5 of
    the sum at worst.
    """
    if not multiplies_exactly(rows):
        return inner(rows, vectors)
    if rows.device.type != "cpu":
        return inner_of_pieces(rows, vectors)
    total = torch.zeros(rows.shape[0], *vectors.shape[1:], dtype=torch.float64, device="cpu")
    for start in range(0, rows.shape[1], _OWN_TERMS):
        piece = slice(start, start + _OWN_TERMS)
        total += rows[:, piece] @ vectors[piece]
    return total


def inner_of_pieces(rows: Tensor, vectors: Tensor) -> Tensor:
    """All pieces in one batched multiplication: an accelerator wants few operations, and to read each number once."""
    count = rows.shape[1] // _OWN_TERMS
    whole = count * _OWN_TERMS
    columns = vectors.reshape(len(vectors), -1)
    pieces = rows[:, :whole].view(len(rows), count, _OWN_TERMS).transpose(0, 1)  # (pieces, m, 2^14), nothing is copied
    sums = torch.bmm(pieces, columns[:whole].view(count, _OWN_TERMS, columns.shape[1])).double().sum(0)
    rest = (rows[:, whole:] @ columns[whole:]).double()
    return (sums + rest).reshape(rows.shape[0], *vectors.shape[1:])


def orthogonalise(vector: Tensor, rows: Tensor, sum_over: Total | None = None) -> Tensor:
    """Take orthonormal rows (m, N) out of a vector (N,) of their type, in place, until rounding is all that is left.

    The product of a Lanczos vector lies in its last two rows but for rounding, and these are taken out first: then one
    sweep over all rows does for it, where any other vector needs two.

    ``sum_over`` is given where this process holds a part of the coordinates only.

    Returns:
        The coefficients that were taken out, float64 (m,).
    """
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    total[-2:] = _take_out(vector, rows[-2:], sum_over)
    for _ in range(_MOST_SWEEPS):
        found = _take_out(vector, rows, sum_over)
        total += found
        left = float(vector.norm()) if sum_over is None else norm(vector, sum_over)
        if float(found.norm()) <= _IN_ROUNDING * left:
            break
    return total


def _take_out(vector: Tensor, rows: Tensor, sum_over: Total | None) -> Tensor:
    found = quick_inner(rows, vector)
    coefficients = (found if sum_over is None else sum_over(found)).to(vector.dtype)
    if multiplies_exactly(rows):
        vector.addmv_(rows.T, coefficients, alpha=-1)  # in place: fresh memory for a long vector takes as long
    else:
        subtract_combination(vector, rows, coefficients.double())
    return coefficients.double()


def norm(vector: Tensor, sum_over: Total | None = None) -> float:
    """Euclidean norm accumulated in float64; ``sum_over`` where this process holds a part of the coordinates only."""
    pieces = torch.split(vector, _chunks(vector[None]).step)
    parts = torch.stack([torch.linalg.vector_norm(piece, dtype=torch.float64) for piece in pieces])
    length = torch.linalg.vector_norm(parts)
    return float(length if sum_over is None else sum_over(length.square()).sqrt())


def all_finite(values: Tensor, sum_over: Total | None = None) -> bool:
    """Whether no value is infinite or NaN; a sum shows it without a mask of the tensor's size, unless it overflows."""
    finite = math.isfinite(float(values.sum())) or bool(values.isfinite().all())
    if sum_over is None:
        return finite
    return not bool(sum_over(torch.tensor(float(not finite), dtype=torch.float64, device="cpu")))


def subtract_combination(vector: Tensor, rows: Tensor, coefficients: Tensor) -> None:
    """``vector -= coefficients @ rows``, in place; ``coefficients`` is float64 (m,), ``rows`` (m, N)."""
    columns = _chunks(rows)
    for start in columns:
        piece = slice(start, start + columns.step)
        vector[piece] -= (coefficients @ rows[:, piece].double()).to(vector.dtype)


def straightening(rows: Tensor, sum_over: Total | None = None) -> Tensor:
    """Coefficients (m, m), float64, that make nearly orthonormal rows (m, N) orthonormal within their span.

    A step of Newton and Schulz for the inverse root of the Gram matrix: of an error e it leaves about e squared, and
    changes the rows as little as can be.
    """
    gram = inner(rows, rows.T)
    gram = gram if sum_over is None else sum_over(gram)
    return (3 * torch.eye(len(rows), dtype=torch.float64, device=rows.device) - gram) / 2


def rotate(rows: Tensor, coefficients: Tensor) -> None:
    """``rows[:l] = coefficients.T @ rows``, in place; ``coefficients`` is float64 (m, l), ``rows`` (m, N).

    In the rows' own precision, five times as fast as in float64: these are sums of m terms, off by 2e-7 in float32
    where their storage is off by 3e-8.
    """
    precision = rows.dtype if multiplies_exactly(rows) else torch.float64
    weights, columns = coefficients.T.to(precision).contiguous(), _chunks(rows)
    for start in columns:
        piece = slice(start, start + columns.step)
        rows[: len(weights), piece] = (weights @ rows[:, piece].to(precision)).to(rows.dtype)
