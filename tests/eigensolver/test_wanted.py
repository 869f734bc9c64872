"""Which pairs come first, and how small a residual has to be."""

import pytest
import torch

import curvprobe as cp
from tests.cases import symmetric
from tests.eigensolver.spectra import (
    SIGNED,
    check,
    solve,
)


def test_eigenvalues_are_signed_and_ordered():
    matrix = symmetric(SIGNED)
    expected = {"algebraic": [10, 8, 6, 5], "magnitude": [10, -9, 8, -7], "smallest": [-9, -7, -4, -1.5]}
    for which, values in expected.items():
        assert torch.allclose(
            solve(matrix, dim=4, which=which).eigenvalues, torch.tensor(values, dtype=torch.float64), rtol=1e-9
        )


@pytest.mark.parametrize("top", [0.0, 1e-8])
def test_leading_eigenvalue_that_is_zero_next_to_the_rest_is_found_and_not_certified(top):
    """Rounding is relative to the norm of the matrix, so a tolerance relative to lambda_1 = 0 cannot be met: the solver
    stops there, and says so instead of telling the residual relative to something else."""
    matrix = symmetric([top, *(-1.0 - 0.1 * i for i in range(29))])
    with pytest.warns(cp.ConvergenceWarning, match="in whose rounding it drowns"):
        pairs = solve(matrix, dim=1)
    assert abs(float(pairs.eigenvalues[0]) - top) < 1e-12
    assert not bool(pairs.converged.any())
    residual = float((matrix @ pairs.vectors[:, 0] - pairs.eigenvalues[0] * pairs.vectors[:, 0]).norm())
    assert float(pairs.residuals[0]) == pytest.approx(residual / max(1e-300, abs(float(pairs.eigenvalues[0]))), rel=0.5)


def test_residuals_are_relative_to_the_first_eigenvalue_however_small_it_is():
    """A top eigenvalue of 1e-4 beside one of -1: in float32 what used to be reported as 5e-5 was half of it."""
    matrix = symmetric([1e-4, 5e-5, *(-1.0 - 0.1 * i for i in range(29))]).float()
    with pytest.warns(cp.ConvergenceWarning, match="relative to the first eigenvalue"):
        pairs = solve(matrix, dim=2, tol=1e-4)
    residual = (matrix.double() @ pairs.vectors.double() - pairs.vectors.double() * pairs.eigenvalues).norm(dim=0)
    true = residual / pairs.eigenvalues[0].abs()
    assert bool((pairs.residuals >= 0.3 * true).all())
    assert not bool((pairs.converged & (true > 3e-4)).any())


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_a_wanted_eigenvalue_of_zero_converges(seed):
    matrix = symmetric([-1.0] * 8 + [0.0] * 8 + [1.0] * 11, seed)
    pairs = solve(matrix, dim=10, which="smallest", seed=seed)
    assert bool(pairs.converged.all())
    assert pairs.num_matvecs < 100


def test_loose_tolerance_is_also_relative_to_the_last_wanted_eigenvalue():
    """Relative to lambda_1 alone, 1e-2 would accept any vectors of the crowd."""
    matrix = symmetric([100.0, 60.0, *(1 - 0.003 * i for i in range(200))])
    pairs = solve(matrix, dim=4, tol=1e-2)
    residual = (matrix @ pairs.vectors - pairs.vectors * pairs.eigenvalues).norm(dim=0)
    assert float(residual.max()) <= 0.02 * float(pairs.eigenvalues[-1])


def test_eigenvalues_of_equal_magnitude_cost_no_more():
    """With +2 and -2 tied at the cut, which of them comes first is rounding, and no news."""
    matrix = symmetric([2.0] * 8 + [-2.0] * 7 + [1.0] * 12)
    pairs = solve(matrix, dim=8, which="magnitude")
    check(matrix, pairs, "magnitude")
    assert pairs.num_matvecs < 150


def test_float32_says_what_it_cannot_reach():
    matrix = symmetric(SIGNED).float()
    with pytest.warns(cp.ConvergenceWarning, match="below what float32 can reach, about 6e-06"):
        pairs = solve(matrix, dim=3, tol=1e-9)
    assert not bool(pairs.converged.any())
    assert pairs.eigenvalues.dtype == torch.float64
    assert torch.allclose(pairs.eigenvalues, torch.tensor([10.0, 8, 6], dtype=torch.float64), rtol=1e-5)
