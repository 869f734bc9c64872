"""The identity that the basis keeps, ``A Q = Q T + r s^T`` with T the exact projection, whatever befalls it."""

import math

import pytest
import torch
from torch import Tensor

from curvprobe.eigensolver.krylov import KrylovBasis
from curvprobe.numerics.space import Space
from tests.cases import symmetric
from tests.eigensolver.spectra import SIGNED, grown

EXACT = {"rtol": 0, "atol": 1e-12}


def check(basis: KrylovBasis, matrix: Tensor) -> None:
    """Orthonormal rows, and T their projection."""
    Q, T = basis.rows[: basis.count].T, basis.projected[: basis.count, : basis.count]
    assert torch.allclose(Q.T @ Q, torch.eye(basis.count, dtype=torch.float64), **EXACT)
    assert torch.allclose(T, Q.T @ matrix @ Q, rtol=0, atol=1e-11)


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_lanczos_steps(steps):
    matrix = symmetric(SIGNED)
    basis = grown(matrix, steps)
    check(basis, matrix)
    Q, T = basis.rows[:steps].T, basis.projected[:steps, :steps]
    left = matrix @ Q - Q @ T
    assert torch.allclose(left[:, :-1], torch.zeros_like(left[:, :-1]), rtol=0, atol=1e-11)
    assert torch.allclose(left[:, -1], basis.pending_norm * basis.pending, rtol=0, atol=1e-11)
    assert basis.pending_norm == pytest.approx(float(left[:, -1].norm()), rel=1e-10)
    assert (basis.num_matvecs, basis.full) == (steps, steps == 20)


def test_a_restart_keeps_the_identity():
    matrix = symmetric(SIGNED)
    basis = grown(matrix, 20)
    values, coefficients = basis.ritz()
    before = basis.residual_parts(coefficients[:, -6:])[0]
    basis.keep(values[-6:], coefficients[:, -6:])
    check(basis, matrix)
    U = basis.rows[:6].T
    assert torch.allclose((matrix @ U - U * values[-6:]).norm(dim=0), before.abs(), rtol=1e-8)
    assert torch.equal(basis.residual_parts(torch.eye(6, dtype=torch.float64))[0], before)
    for _ in range(9):
        basis.expand()
        check(basis, matrix)


def test_a_block_keeps_the_norms_of_its_residuals():
    matrix = symmetric(SIGNED)
    basis = grown(matrix, 3)
    draws = torch.randn(67, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Q = basis.rows[:3].T
    basis.add(torch.linalg.qr(draws - Q @ (Q.T @ draws)).Q.T.contiguous())
    check(basis, matrix)
    rows = basis.rows[:6]
    image = rows[3:] @ matrix
    assert torch.allclose(basis.carried[3:6], (image - image @ rows.T @ rows).norm(dim=1), rtol=1e-10)
    assert basis.pending is None
    assert basis.num_matvecs == 6


def test_a_combination_has_the_residual_that_the_parts_say():
    matrix = symmetric(SIGNED)
    basis = grown(matrix, 12)
    values, coefficients = basis.ritz()
    pending, carried = basis.residual_parts(coefficients)
    for i in (0, 5, 11):
        u = basis.combination(coefficients[:, i])
        assert float((matrix @ u - values[i] * u).norm()) == pytest.approx(abs(float(pending[i])), rel=1e-6, abs=1e-12)
    assert not bool(carried.any())


@pytest.mark.parametrize("spectrum", [[0.0] * 8, [2.0] * 8, [3.0, 1.0, *[0.0] * 6]])
def test_an_invariant_subspace_is_left_by_a_random_vector(spectrum):
    matrix = symmetric(spectrum)
    basis = grown(matrix, 8, capacity=8)
    check(basis, matrix)
    assert basis.spans_everything
    assert torch.allclose(basis.ritz()[0], torch.linalg.eigvalsh(matrix), rtol=0, atol=1e-12)


def test_a_direction_inside_the_basis_is_replaced():
    matrix = symmetric(SIGNED)
    basis = grown(matrix, 5)
    basis.expand_towards(basis.rows[2].clone())
    check(basis, matrix)
    basis.expand_towards(torch.zeros(67, dtype=torch.float64))
    check(basis, matrix)
    assert basis.count == 7


def test_a_nearly_dependent_direction_stays_orthogonal():
    matrix = symmetric(SIGNED)
    basis = grown(matrix, 5)
    basis.expand_towards(basis.rows[0] + 1e-2 * basis.random_vector() / math.sqrt(67))
    check(basis, matrix)


def test_a_product_that_raises_changes_nothing():
    matrix, fail = symmetric(SIGNED), []

    def matmul(block: Tensor) -> Tensor:
        if fail:
            raise KeyboardInterrupt
        return matrix @ block

    basis, other = (KrylovBasis(matmul, Space(67), 20, 0, torch.float64, torch.device("cpu")) for _ in range(2))
    for step in range(6):
        other.expand()
        if step in (1, 4):
            fail.append(1)
            with pytest.raises(KeyboardInterrupt):
                basis.expand()
            fail.clear()
        basis.expand()
    assert torch.equal(basis.rows[:6], other.rows[:6])
    assert torch.equal(basis.projected, other.projected)
    assert basis.num_matvecs == other.num_matvecs == 6


def test_a_product_with_a_random_direction_that_raises_changes_nothing():
    """The first product, and one out of an invariant subspace, draw a vector before the product may fail."""
    matrix, fail = symmetric(SIGNED), [True]

    def matmul(block: Tensor) -> Tensor:
        if fail.pop():
            raise KeyboardInterrupt
        return matrix @ block

    basis = KrylovBasis(matmul, Space(67), 20, 0, torch.float64, torch.device("cpu"))
    with pytest.raises(KeyboardInterrupt):
        basis.expand()
    fail.append(False)
    basis.expand()
    assert torch.equal(basis.rows[0], grown(matrix, 1).rows[0])


def test_a_basis_that_is_cut_goes_on_from_the_vector_it_is_given():
    matrix = symmetric(SIGNED)
    basis = grown(matrix, 12)
    start = basis.beyond(basis.random_vector())
    assert float(start.norm()) == pytest.approx(1.0, rel=1e-12)
    assert torch.allclose(basis.rows[:12] @ start, torch.zeros(12, dtype=torch.float64), **EXACT)
    residuals = torch.arange(4, dtype=torch.float64)
    basis.restrict(4, residuals, start)
    assert torch.equal(basis.residual_parts(torch.eye(4, dtype=torch.float64))[1], residuals)
    assert not bool(basis.residual_parts(torch.eye(4, dtype=torch.float64))[0].any())
    basis.expand()
    assert torch.equal(basis.rows[4], start)
    check(basis, matrix)


@pytest.mark.parametrize("wrong", [lambda b: b[:-1], lambda b: b * math.inf])
def test_products_that_make_no_sense_are_refused(wrong):
    basis = KrylovBasis(wrong, Space(7), 5, 0, torch.float64, torch.device("cpu"))
    with pytest.raises(ValueError, match="matmul returned"):
        basis.expand()
    assert basis.count == 0


def test_float32_rows_stay_orthonormal():
    matrix = symmetric([1e4, *(1.0 / (i + 1) for i in range(199))]).float()
    basis = grown(matrix, 60, capacity=60)
    Q = basis.rows[:60].double()
    assert torch.allclose(Q @ Q.T, torch.eye(60, dtype=torch.float64), rtol=0, atol=3e-7)
