"""Prescribed spectra in a random orthogonal frame; subspaces are compared by projectors."""

import math
import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import curvprobe as cp
from tests.cases import symmetric
from tests.eigensolver.spectra import (
    BULK,
    SIGNED,
    WHICH,
    check,
    merit,
    noisy,
    quietly,
    solve,
    true_residuals,
)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("dim", [1, 4, 6])
def test_signed_spectrum(which, dim):
    matrix = symmetric(SIGNED)
    pairs = solve(matrix, dim=dim, which=which)
    check(matrix, pairs, which)
    assert bool(pairs.converged.all())
    assert pairs.vectors.shape == (len(SIGNED), dim)


@pytest.mark.parametrize("which", WHICH)
def test_clusters(which):
    spectrum = [10, 10 - 1e-4, 10 - 2e-4, -9.5, -9.5 + 1e-4, -9.5 + 2e-4, 7, 7 - 1e-4, *BULK[::3]]
    matrix = symmetric(spectrum)
    check(matrix, solve(matrix, dim=3, which=which), which)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize(
    ("spectrum", "dim"),
    [
        ([0.0] * 30, 4),
        ([1.0] * 30, 5),
        ([-2.0] * 30, 5),
        ([3.0, 2.0, 1.0, *[0.0] * 27], 5),
        ([3.0, -2.0, 1.0, *[0.0] * 27], 6),
        ([5.0, 4.0, 4.0, -3.0, 1.0, 0.0, -3.0], 7),
        ([float(i) for i in range(1, 41)], 40),
        ([2.5], 1),
        ([-2.5], 1),
    ],
    ids=["zero", "identity", "minus two", "rank 3", "indefinite rank 3", "dim N", "dim 40", "one", "minus one"],
)
def test_degenerate_matrices(spectrum, dim, which):
    matrix = symmetric(spectrum)
    pairs = solve(matrix, dim=dim, which=which)
    check(matrix, pairs, which)
    assert bool(pairs.converged.all())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    spectrum=st.lists(st.sampled_from([-3.0, -2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 3.0]), min_size=1, max_size=30),
    which=st.sampled_from(WHICH),
    seed=st.integers(0, 20),
    data=st.data(),
)
def test_random_small_spectra(spectrum, which, seed, data):
    assume(which != "algebraic" or max(spectrum) != 0 or min(spectrum) == 0)  # lambda_1 = 0: a test of its own above
    dim = data.draw(st.integers(1, len(spectrum)))
    matrix = symmetric(spectrum, seed)
    pairs = solve(matrix, dim=dim, which=which, seed=seed)
    check(matrix, pairs, which)
    assert bool(pairs.converged.all())


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-8])
def test_residuals_are_the_true_ones(which, tol):
    matrix = symmetric(SIGNED)
    pairs = solve(matrix, dim=5, which=which, tol=tol)
    scale = (
        float(torch.linalg.eigvalsh(matrix).abs().max()) if which == "smallest" else abs(float(pairs.eigenvalues[0]))
    )
    true = (matrix @ pairs.vectors - pairs.vectors * pairs.eigenvalues).norm(dim=0) / scale
    assert torch.allclose(pairs.residuals, true, rtol=1e-2 if which == "smallest" else 1e-6, atol=1e-14)
    assert float(true.max()) <= tol


def test_products_that_are_not_exact_are_noticed():
    """The estimates of Lanczos fall below the tolerance; the true residuals stay at the noise."""
    matrix = symmetric(SIGNED)
    with pytest.warns(cp.ConvergenceWarning, match="0 of 3 eigenpairs converged"):
        pairs = cp.lanczos(
            lambda block: matrix @ block + 1e-4 * torch.sin(1e6 * block),
            len(matrix),
            dim=3,
            tol=1e-6,
            dtype=torch.float64,
        )
    assert float(pairs.residuals.min()) > 1e-5
    assert not bool(pairs.converged.any())


@pytest.mark.parametrize("which", WHICH)
def test_next_eigenvalue(which):
    matrix = symmetric(SIGNED)
    values = torch.linalg.eigvalsh(matrix)
    values = values[merit(values, which).argsort(descending=True)]
    for dim in (1, 3, 5):
        pairs = solve(matrix, dim=dim, which=which)
        assert abs(pairs.next_eigenvalue - float(values[dim])) < 0.02 * float(values.abs().max())
    assert math.isnan(solve(matrix, dim=len(matrix), which=which).next_eigenvalue)


def test_next_eigenvalue_shows_a_cut_through_a_multiple_eigenvalue():
    pairs = solve(symmetric([10.0, 9.0, 9.0, 9.0, 8.0, *BULK[::3]]), dim=3)
    assert abs(pairs.next_eigenvalue - 9) < 1e-6


@pytest.mark.parametrize("budget", [6, 11, 12, 15, 20, 25])
def test_exhausted_budget_warns_and_returns_what_there_is(budget):
    matrix = symmetric([10 * 0.95**i for i in range(120)])
    with pytest.warns(cp.ConvergenceWarning, match=f"max_matvecs = {budget}"):
        pairs = solve(matrix, dim=6, max_matvecs=budget)
    assert pairs.num_matvecs <= budget
    assert pairs.vectors.shape == (120, 6)
    assert torch.allclose(pairs.vectors.T @ pairs.vectors, torch.eye(6, dtype=torch.float64), atol=1e-12)
    assert not bool(pairs.converged.all())
    assert bool((pairs.converged.int().diff() <= 0).all())  # a leading run
    quotients = (pairs.vectors * (matrix @ pairs.vectors)).sum(0)
    assert torch.allclose(quotients, pairs.eigenvalues, rtol=1e-8)


def test_pairs_flagged_converged_are_eigenpairs_at_every_budget():
    matrix = symmetric(SIGNED)
    for budget in range(4, 40, 3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cp.ConvergenceWarning)
            pairs = solve(matrix, dim=4, tol=1e-6, max_matvecs=budget)
        residual = (matrix @ pairs.vectors - pairs.vectors * pairs.eigenvalues).norm(dim=0)
        assert bool((residual[pairs.converged] <= 1e-6 * 10 * 1.01).all())
        assert pairs.num_matvecs <= budget


def test_budget_counts_every_product():
    matrix, calls = symmetric(SIGNED), []

    def matmul(block: Tensor) -> Tensor:
        calls.append(block.shape[1])
        return matrix @ block

    pairs = cp.lanczos(matmul, len(matrix), dim=3, tol=1e-8, dtype=torch.float64)
    assert sum(calls) == pairs.num_matvecs < 80


def test_same_seed_same_bits_and_other_seeds_the_same_subspace():
    matrix = symmetric(SIGNED)
    first, again, other = (solve(matrix, dim=4, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.vectors, again.vectors)
    assert torch.equal(first.eigenvalues, again.eigenvalues)
    assert torch.equal(first.residuals, again.residuals)
    assert not torch.equal(first.vectors, other.vectors)
    assert torch.allclose(first.vectors @ first.vectors.T, other.vectors @ other.vectors.T, atol=1e-8)


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    solve(symmetric(SIGNED), dim=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_float32_basis_is_orthonormal_and_meets_a_tolerance_in_reach():
    matrix = symmetric(SIGNED).float()
    pairs = solve(matrix, dim=5, tol=1e-4)
    U = pairs.vectors.double()
    assert pairs.vectors.dtype == torch.float32
    assert torch.allclose(U.T @ U, torch.eye(5, dtype=torch.float64), atol=1e-6)
    residual = (matrix.double() @ U - U * pairs.eigenvalues).norm(dim=0) / 10
    assert float(residual.max()) <= 1.1e-4


def test_a_long_float32_basis_is_orthonormal_to_its_own_rounding():
    torch.manual_seed(0)
    spectrum = torch.cat([torch.linspace(50, 2, 40), torch.rand(100_000)])
    pairs = cp.lanczos(lambda block: spectrum[:, None] * block, len(spectrum), dim=20)
    U = pairs.vectors.double()
    assert torch.allclose(U.T @ U, torch.eye(20, dtype=torch.float64), atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"dim": 8}, "dim is 8"),
        ({"dim": 2.0}, "dim is 2.0"),
        ({"tol": 0.0}, "tol is 0.0"),
        ({"tol": 1.5}, "tol is 1.5"),
        ({"which": "largest"}, "which is 'largest'"),
        ({"dim": 3, "max_matvecs": 2}, "max_matvecs is 2"),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        solve(torch.eye(7, dtype=torch.float64), **{"dim": 2, **options})


@pytest.mark.parametrize(
    ("matmul", "message"),
    [(lambda block: block * math.nan, "not finite"), (lambda block: block[:-1], "returned shape")],
)
def test_products_that_make_no_sense(matmul, message):
    with pytest.raises(ValueError, match=message):
        cp.lanczos(matmul, 7, dim=2, dtype=torch.float64)


# ---- the certificate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-4, 1e-9])
def test_certified_residuals_are_no_less_than_the_true_ones(which, tol):
    spectra = [SIGNED, [10.0] * 3 + [9.0, 8.0, 8.0, 7.0, *BULK[::2]], [10 * 0.9**i for i in range(100)]]
    for seed, spectrum in enumerate(spectra):
        matrix = symmetric(spectrum, seed)
        pairs = quietly(lambda block, A=matrix: A @ block, len(matrix), dim=6, which=which, tol=tol, seed=seed)
        assert bool((true_residuals(matrix, pairs, which) <= 1.001 * pairs.residuals + 1e-13).all())
        assert bool((pairs.residuals[pairs.converged] <= tol).all())


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_noise_in_the_products_is_never_certified(dim):
    """Lanczos's own estimates go on falling; a product with other noise sees that the vectors are not eigenvectors."""
    matrix, certified = symmetric(SIGNED), []
    for seed in range(15):
        pairs = quietly(noisy(matrix, 1e-2, seed), 67, dim=dim, tol=1e-4, max_matvecs=150, seed=seed)
        certified += [seed] * bool(pairs.converged.any())
    assert certified == []


def test_the_certificate_sees_errors_that_the_recurrence_does_not():
    """Wrong products from the start to the end of the convergence, right ones from the certificate on."""
    matrix, other = symmetric(SIGNED), symmetric(SIGNED) + 1e-2 * symmetric(SIGNED, 1)
    count = quietly(lambda block: other @ block, 67, dim=5, tol=1e-6).num_matvecs
    calls = []

    def matmul(block: Tensor) -> Tensor:
        calls.append(block.shape[1])
        return (other if len(calls) <= count // 2 else matrix) @ block

    pairs = quietly(matmul, 67, dim=5, tol=1e-6)
    true = true_residuals(matrix, pairs)
    assert bool((true[pairs.converged] <= 1e-5).all())


# ---- warm starts and lean bases ------------------------------------------------------------------------------------


def eigenvectors(matrix: Tensor, which: str, dim: int) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors[:, merit(values, which).argsort(descending=True)[:dim]]


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("extra", [0, 3])
def test_exact_eigenvectors_as_a_start_cost_one_product_each(which, extra):
    matrix = symmetric(SIGNED)
    start = eigenvectors(matrix, which, 5 + extra)
    cold = solve(matrix, dim=5, which=which, tol=1e-6)
    pairs = solve(matrix, dim=5, which=which, tol=1e-6, start=start)
    check(matrix, pairs, which)
    assert bool(pairs.converged.all())
    assert pairs.num_matvecs - pairs.num_search_matvecs == 5 + extra + 3  # one to find out, two to certify
    assert pairs.num_matvecs < cold.num_matvecs


def test_a_start_with_its_columns_rotated_and_reordered_is_as_good():
    matrix = symmetric(SIGNED)
    start = eigenvectors(matrix, "algebraic", 5) @ symmetric([1.0, -1.0, 1.0, 1.0, -1.0])
    pairs = solve(matrix, dim=5, tol=1e-6, start=start)
    check(matrix, pairs, "algebraic")
    assert pairs.num_matvecs - pairs.num_search_matvecs == 8


@pytest.mark.parametrize("which", WHICH)
def test_any_start_leads_to_the_right_pairs(which):
    """Unrelated vectors, other eigenvectors, too few, nearly the right ones."""
    matrix = symmetric(SIGNED)
    draws = torch.randn(67, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right = eigenvectors(matrix, which, 5)
    starts = [
        torch.linalg.qr(draws).Q,
        torch.linalg.eigh(matrix).eigenvectors[:, 30:36],
        eigenvectors(matrix, which, 2),
        torch.linalg.qr(right + 1e-4 * draws).Q,
    ]
    for start in starts:
        pairs = solve(matrix, dim=5, which=which, start=start)
        check(matrix, pairs, which)
        assert bool(pairs.converged.all())


@pytest.mark.parametrize("known", [False, True])
def test_only_a_start_that_is_near_is_worth_a_block(known):
    """The first product tells whether the span is kept; only then a product of several vectors is made."""
    matrix, widths = symmetric(SIGNED), []

    def matmul(block: Tensor) -> Tensor:
        widths.append(block.shape[1])
        return matrix @ block

    draws = torch.randn(67, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    start = eigenvectors(matrix, "algebraic", 5) if known else torch.linalg.qr(draws).Q
    pairs = cp.lanczos(matmul, 67, dim=5, tol=1e-9, dtype=torch.float64, start=start)
    check(matrix, pairs, "algebraic")
    assert widths[0] == 1
    assert widths.count(5) == known
    assert set(widths) <= {1, 5}


def test_a_start_that_lacks_a_wanted_vector_is_not_the_end():
    """An invariant span without the first eigenvector: only the search can know."""
    matrix = symmetric([10.0, 9.0, 8.0, 7.0, 6.0, *BULK[::3]])
    start = torch.linalg.eigh(matrix).eigenvectors.flip(1)[:, 1:5]
    check(matrix, solve(matrix, dim=4, tol=1e-8, start=start), "algebraic", tol=1e-6)


BESIDE = [10.0, 9.0, 8.0, 7.0, 0.01, *(0.001 / (i + 1) for i in range(60)), -5.0]


@pytest.mark.parametrize("budget", [5, 6, 7, 9])
@pytest.mark.parametrize("miss", [0.0, 2e-3])
def test_a_start_keeps_to_the_budget_and_gives_all_pairs(budget, miss):
    matrix = symmetric(BESIDE)
    vectors = torch.linalg.eigh(matrix).eigenvectors.flip(1)
    start = vectors[:, :5].clone()
    start[:, 4] = math.sqrt(1 - miss**2) * start[:, 4] + miss * vectors[:, -1]
    pairs = quietly(lambda block: matrix @ block, len(matrix), dim=5, tol=1e-2, max_matvecs=budget, start=start)
    assert pairs.vectors.shape == (len(matrix), 5)
    assert pairs.num_matvecs <= budget


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("extra", [10, 13])
def test_a_lean_basis_gives_the_same_pairs(which, extra):
    matrix = symmetric(SIGNED)
    pairs = solve(matrix, dim=6, which=which, basis_size=6 + extra, max_matvecs=5000)
    check(matrix, pairs, which)
    assert bool(pairs.converged.all())


@pytest.mark.parametrize("spectrum", [[10.0] * 3 + [9.0, 8.0, 7.0, *BULK[::3]], [2.0] * 20])
def test_a_lean_basis_finds_copies_too(spectrum):
    for seed in range(10):
        matrix = symmetric(spectrum, seed)
        pairs = solve(matrix, dim=4, basis_size=14, max_matvecs=5000, tol=1e-6, seed=seed)
        assert torch.allclose(pairs.eigenvalues, torch.tensor(spectrum[:4]).double(), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"basis_size": 3}, "basis_size is 3"),
        ({"start": torch.eye(6, 2).double()}, r"start is \(6, 2\)"),
        ({"start": torch.eye(7, 2).double()[:, :0]}, "start has 0 columns"),
        ({"start": torch.ones(7).double()}, r"start is \(7,\)"),
        ({"start": [1.0]}, "start is list"),
        ({"start": torch.full((7, 2), math.nan).double()}, "start"),
    ],
)
def test_starts_and_bases_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        solve(torch.eye(7, dtype=torch.float64), **{"dim": 2, **options})
