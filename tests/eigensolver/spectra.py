"""Matrices of a prescribed spectrum, and the solver on them; spaces are compared by projectors."""

import warnings

import torch
from torch import Tensor

import curvprobe as cp
from curvprobe.eigensolver.krylov import KrylovBasis
from curvprobe.numerics.space import Space

WHICH = ["algebraic", "magnitude", "smallest"]
SIGNED = [10.0, -9.0, 8.0, -7.0, 6.0, 5.0, -4.0, *(3.0 * (-1) ** i / (i + 1) for i in range(60))]
BULK = [5 - 0.05 * i for i in range(94)]
LONG = [10 * 0.97**i for i in range(150)]


def solve(matrix: Tensor, **options) -> cp.Eigenpairs:
    options = {"tol": 1e-10, "dtype": matrix.dtype, **options}
    return cp.lanczos(lambda block: matrix @ block, len(matrix), **options)


def merit(values: Tensor, which: str) -> Tensor:
    return {"algebraic": values, "magnitude": values.abs(), "smallest": -values}[which]


def check(matrix: Tensor, pairs: cp.Eigenpairs, which: str, tol: float = 1e-8) -> None:
    """Against dense ``eigh``: eigenvalues by merit, spaces by projectors, also when the cut divides a multiple one."""
    values, vectors = torch.linalg.eigh(matrix.double())
    scale = max(float(values.abs().max()), 1e-300)
    found, true, dim = merit(pairs.eigenvalues, which), merit(values, which), len(pairs.eigenvalues)
    assert torch.allclose(found, true.sort(descending=True).values[:dim], rtol=0, atol=tol * scale)
    U = pairs.vectors.double()
    assert torch.allclose(U.T @ U, torch.eye(dim, dtype=torch.float64), atol=1e-12)
    cut = float(true.sort(descending=True).values[dim - 1])
    inside, within = vectors[:, true > cut + 1e-6 * scale], vectors[:, true > cut - 1e-6 * scale]
    assert torch.allclose(U @ (U.T @ inside), inside, atol=1e-8)
    assert torch.allclose(within @ (within.T @ U), U, atol=1e-8)
    if within.shape[1] == dim:
        assert torch.allclose(U @ U.T, within @ within.T, atol=1e-8)


def noisy(matrix: Tensor, size: float, seed: int = 0):
    """Products with noise of this size relative to each."""
    generator = torch.Generator().manual_seed(seed)

    def matmul(block: Tensor) -> Tensor:
        product = matrix @ block
        noise = torch.randn(product.shape, generator=generator, dtype=torch.float64)
        return product + size * product.norm(dim=0) / noise.norm(dim=0) * noise

    return matmul


def true_residuals(matrix: Tensor, pairs: cp.Eigenpairs, which: str = "algebraic") -> Tensor:
    largest = float(torch.linalg.eigvalsh(matrix).abs().max())
    scale = largest if which == "smallest" else float(pairs.eigenvalues[0].abs())
    return (matrix @ pairs.vectors - pairs.vectors * pairs.eigenvalues).norm(dim=0) / scale


def quietly(matmul, size: int, **options) -> cp.Eigenpairs:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cp.ConvergenceWarning)
        return cp.lanczos(matmul, size, dtype=torch.float64, **options)


def basis_of(matrix: Tensor, capacity: int = 20, seed: int = 0) -> KrylovBasis:
    return KrylovBasis(lambda b: matrix @ b, Space(len(matrix)), capacity, seed, matrix.dtype, torch.device("cpu"))


def grown(matrix: Tensor, steps: int, capacity: int = 20) -> KrylovBasis:
    basis = basis_of(matrix, capacity)
    for _ in range(steps):
        basis.expand()
    return basis
