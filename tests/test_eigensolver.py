"""Prescribed spectra in a random orthogonal frame; subspaces are compared by projectors."""

import math
import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import curvprobe as cp
from curvprobe.eigensolver.checkpoint import Checkpoint, Saver
from curvprobe.eigensolver.krylov import KrylovBasis
from curvprobe.eigensolver.lanczos import _Solver
from curvprobe.eigensolver.wanted import Wanted

WHICH = ["algebraic", "magnitude", "smallest"]
SIGNED = [10.0, -9.0, 8.0, -7.0, 6.0, 5.0, -4.0, *(3.0 * (-1) ** i / (i + 1) for i in range(60))]
BULK = [5 - 0.05 * i for i in range(94)]


def symmetric(spectrum: list[float], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    n = len(spectrum)
    frame = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    return (frame * torch.tensor(spectrum, dtype=torch.float64)) @ frame.T


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


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("dim", [1, 4, 6])
def test_signed_spectrum(which, dim):
    matrix = symmetric(SIGNED)
    pairs = solve(matrix, dim=dim, which=which)
    check(matrix, pairs, which)
    assert bool(pairs.converged.all())
    assert pairs.vectors.shape == (len(SIGNED), dim)


def test_eigenvalues_are_signed_and_ordered():
    matrix = symmetric(SIGNED)
    expected = {"algebraic": [10, 8, 6, 5], "magnitude": [10, -9, 8, -7], "smallest": [-9, -7, -4, -1.5]}
    for which, values in expected.items():
        assert torch.allclose(
            solve(matrix, dim=4, which=which).eigenvalues, torch.tensor(values, dtype=torch.float64), rtol=1e-9
        )


REPEATED = {
    "leading": ([10.0] * 3 + [9.0, 8.0, 7.0, *BULK[::3]], 5),
    "inside": ([10.0, 9.0, 9.0, 9.0, 8.0, 7.0, *BULK[::3]], 5),
    "last": ([10.0, 9.0, 8.0, 8.0, 8.0, 7.0, *BULK[::3]], 5),
    "across the cut": ([10.0, 9.0, 9.0, 9.0, 8.0, *BULK[::3]], 3),
    "outside": ([10.0, 9.0, 8.0, 7.0, 7.0, 7.0, *BULK[::3]], 3),
}


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("place", REPEATED)
def test_triple_eigenvalues(place, which):
    spectrum, dim = REPEATED[place]
    matrix = symmetric([-v for v in spectrum] if which == "smallest" else spectrum)
    check(matrix, solve(matrix, dim=dim, which=which), which)


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


@pytest.mark.parametrize("top", [0.0, 1e-8])
def test_leading_eigenvalue_that_is_zero_next_to_the_rest_settles(top):
    """Rounding is relative to the norm of the matrix, so a tolerance relative to lambda_1 = 0 cannot be met."""
    matrix = symmetric([top, *(-1.0 - 0.1 * i for i in range(29))])
    pairs = solve(matrix, dim=1)
    assert abs(float(pairs.eigenvalues[0]) - top) < 1e-12
    assert bool(pairs.converged.all())


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_a_wanted_eigenvalue_of_zero_converges(seed):
    matrix = symmetric([-1.0] * 8 + [0.0] * 8 + [1.0] * 11, seed)
    pairs = solve(matrix, dim=10, which="smallest", seed=seed)
    assert bool(pairs.converged.all())
    assert pairs.num_matvecs < 100


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


def test_loose_tolerance_is_also_relative_to_the_last_wanted_eigenvalue():
    """Relative to lambda_1 alone, 1e-2 would accept any vectors of the crowd."""
    matrix = symmetric([100.0, 60.0, *(1 - 0.003 * i for i in range(200))])
    pairs = solve(matrix, dim=4, tol=1e-2)
    residual = (matrix @ pairs.vectors - pairs.vectors * pairs.eigenvalues).norm(dim=0)
    assert float(residual.max()) <= 0.02 * float(pairs.eigenvalues[-1])


def test_copies_are_found_whatever_the_seed():
    """A single-vector method sees no copies of a repeated eigenvalue; the probe must, or a warning must say so."""
    spectrum = [10.0] * 3 + [9.0, 8.0, 8.0, 8.0, 7.0] + BULK
    missed = []
    for seed in range(20):
        pairs = solve(symmetric(spectrum, seed), dim=3, tol=1e-6, seed=seed)
        missed += [seed] if float(pairs.eigenvalues[2]) < 9.99 else []
    assert missed == []


@pytest.mark.parametrize(("tol", "seed"), [(1e-10, 0), (1e-3, 1)])
def test_many_copies_cost_no_more_than_a_few_restarts(tol, seed):
    matrix = symmetric([10.0] * 10 + BULK, seed)
    pairs = solve(matrix, dim=12, tol=tol, seed=seed)
    # An eigenvalue is off by the square of its residual over a gap, at the most.
    assert torch.allclose(pairs.eigenvalues[:10], torch.full((10,), 10.0).double(), rtol=max(1e-8, 5 * tol**2))
    assert pairs.num_matvecs < 400  # 1000 is the whole budget


def test_eigenvalues_of_equal_magnitude_cost_no_more():
    """With +2 and -2 tied at the cut, which of them comes first is rounding, and no news."""
    matrix = symmetric([2.0] * 8 + [-2.0] * 7 + [1.0] * 12)
    pairs = solve(matrix, dim=8, which="magnitude")
    check(matrix, pairs, "magnitude")
    assert pairs.num_matvecs < 150


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


def test_at_every_budget_the_result_is_right_or_warned_about():
    """A budget that ends during the search for copies leaves the search undone."""
    matrix = symmetric([10.0] * 3 + [9.0, 8.0, 7.0] + BULK, seed=1)
    silent = []
    for budget in range(16, 72, 2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pairs = solve(matrix, dim=3, tol=1e-6, max_matvecs=budget)
        assert bool(caught) != bool(pairs.converged.all())
        if not caught and float((pairs.eigenvalues - 10).abs().max()) > 1e-4:
            silent.append(budget)
    assert silent == []


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


def test_float32_says_what_it_cannot_reach():
    matrix = symmetric(SIGNED).float()
    with pytest.warns(cp.ConvergenceWarning, match="below what float32 can reach"):
        pairs = solve(matrix, dim=3, tol=1e-9)
    assert not bool(pairs.converged.any())
    assert pairs.eigenvalues.dtype == torch.float64
    assert torch.allclose(pairs.eigenvalues, torch.tensor([10.0, 8, 6], dtype=torch.float64), rtol=1e-5)


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


# ---- the search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [200, 2000])
@pytest.mark.parametrize("which", ["algebraic", "magnitude"])
def test_a_triple_eigenvalue_is_found_from_forty_starts(size, which):
    """Diagonal matrices are as good as any: the start is random."""
    diagonal = torch.cat([torch.tensor([10.0, 9.0, 9.0, 9.0, 8.0]), torch.linspace(5, 0.01, size - 5)]).double()
    missed = []
    for seed in range(40):
        pairs = quietly(lambda block: diagonal[:, None] * block, size, dim=4, which=which, tol=1e-4, seed=seed)
        assert bool(pairs.converged.all())
        assert 0 < pairs.num_search_matvecs < pairs.num_matvecs
        missed += [seed] if float(pairs.eigenvalues[3]) < 8.99 else []
    assert missed == []


def test_the_search_is_short_where_the_gap_is_clear_and_counted():
    diagonal = torch.cat([torch.tensor([10.0, 9.0, 8.0, 7.0]), torch.linspace(1, 0, 1996)]).double()
    for seed in range(5):
        pairs = quietly(lambda block: diagonal[:, None] * block, 2000, dim=4, tol=1e-4, seed=seed)
        assert bool(pairs.converged.all())
        assert 3 <= pairs.num_search_matvecs <= 12


def test_the_search_seldom_ends_early_without_a_missed_copy():
    """Its error rate, over many seeds, on the state that it is there for: two copies known, the third outside."""
    diagonal = torch.cat([torch.full((3,), 10.0), torch.linspace(3, 0, 397)]).double()
    wrong = 0
    for seed in range(150):
        pairs = quietly(lambda block: diagonal[:, None] * block, 400, dim=3, tol=1e-3, seed=seed)
        wrong += bool(pairs.converged.all()) and float(pairs.eigenvalues[2]) < 9.9
    assert wrong <= 4  # 1 % of the searches, of which there are two or three each


def test_the_search_starts_beyond_the_next_eigenvectors():
    """It does not find again what the iteration has found on the way to the wanted ones."""
    bulk = 10 * torch.rand(2000, generator=torch.Generator().manual_seed(0))
    diagonal, vectors = torch.cat([torch.linspace(50, 30, 60), bulk]).double(), []

    def matmul(block: Tensor) -> Tensor:
        vectors.append(block[:, 0].clone())
        return diagonal[:, None] * block

    pairs = cp.lanczos(matmul, len(diagonal), dim=45, dtype=torch.float64)
    start = vectors[-pairs.num_search_matvecs]
    assert float((pairs.vectors.T @ start).norm()) < 1e-10
    assert float(start[45:47].abs().max()) < 1e-3 < float(start[60:].abs().max())
    assert pairs.num_search_matvecs <= 8  # from any random vector 11


def test_the_search_does_not_leave_out_what_is_hardly_known():
    matrix = symmetric(LONG)
    basis = KrylovBasis(lambda block: matrix @ block, 150, 25, 0, torch.float64, torch.device("cpu"))
    for _ in range(20):
        basis.expand()
    seen = basis.rows[:20].clone()
    _Solver(basis, Wanted(3, "algebraic", 1e-3), 100, 0, Saver(None)).set_aside(torch.zeros(3).double())
    assert float((basis.rows[:3] @ basis.pending).norm()) < 1e-12
    assert float((seen @ basis.pending).norm()) > 0.05


def test_a_space_that_was_seen_almost_whole_is_searched_too():
    """One dimension is left outside at the most, and none may be."""
    for size in range(11, 16):
        matrix = symmetric([4.0, 3.0, 3.0, 2.0, *(1 / (i + 1) for i in range(size - 4))])
        pairs = solve(matrix, dim=3, tol=1e-8)
        assert torch.allclose(pairs.eigenvalues, torch.tensor([4.0, 3, 3]).double(), atol=1e-7)
        assert bool(pairs.converged.all())


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


# ---- interruptions -------------------------------------------------------------------------------------------------


def interrupting(matrix: Tensor, at: int):
    """Products of which the at-th is interrupted; and the number of those that were finished."""
    done = []

    def matmul(block: Tensor) -> Tensor:
        if len(done) + 1 == at:
            raise KeyboardInterrupt
        done.append(block.shape[1])
        return matrix @ block

    return matmul, done


LONG = [10 * 0.97**i for i in range(150)]


@pytest.mark.parametrize("at", [2, 3, 9, 19, 20, 26, 40, 47])
def test_an_interrupted_computation_goes_on_bit_by_bit(tmp_path, at):
    matrix, options = symmetric(LONG), {"dim": 5, "tol": 1e-8, "dtype": torch.float64}
    whole = cp.lanczos(lambda block: matrix @ block, 150, **options)
    assert whole.num_matvecs - whole.num_search_matvecs > 47
    file = Checkpoint(tmp_path / "state", "key")
    matmul, done = interrupting(matrix, at)
    with pytest.raises(KeyboardInterrupt):
        cp.lanczos(matmul, 150, **options, checkpoint=file)
    assert file.path.exists()
    rest, more = interrupting(matrix, -1)
    pairs = cp.lanczos(rest, 150, **options, checkpoint=file)
    assert sum(done) + sum(more) == pairs.num_matvecs == whole.num_matvecs
    assert torch.equal(pairs.vectors, whole.vectors)
    assert torch.equal(pairs.eigenvalues, whole.eigenvalues)
    assert torch.equal(pairs.residuals, whole.residuals)
    assert pairs.num_search_matvecs == whole.num_search_matvecs
    assert not file.path.exists()


def test_an_interruption_at_any_product_is_harmless(tmp_path):
    """Also between the phases and within certificate and search, which are done again."""
    matrix, options = symmetric([10.0] * 3 + [9.0, 8.0, 7.0, *BULK[::2]]), {"dim": 4, "tol": 1e-6}
    whole = quietly(lambda block: matrix @ block, len(matrix), **options)
    file = Checkpoint(tmp_path / "state", "key")
    for at in range(1, whole.num_matvecs + 1):
        matmul, done = interrupting(matrix, at)
        with pytest.raises(KeyboardInterrupt):
            quietly(matmul, len(matrix), **options, checkpoint=file)
        pairs = quietly(lambda block: matrix @ block, len(matrix), **options, checkpoint=file)
        assert not file.path.exists()
        assert bool(pairs.converged.all())
        assert torch.allclose(pairs.eigenvalues, whole.eigenvalues, atol=1e-5)
        assert bool((true_residuals(matrix, pairs) <= 1e-6).all())
        assert len(done) < pairs.num_matvecs <= whole.num_matvecs + 60


def test_an_interruption_at_any_product_and_then_a_smaller_tolerance(tmp_path):
    """What is set aside has residuals without directions: they are no way to a smaller tolerance."""
    matrix = symmetric([10.0] * 3 + [9.0, 8.0, 7.0, *BULK[::2]])
    coarse, fine = (
        quietly(lambda block: matrix @ block, len(matrix), dim=4, tol=tol).num_matvecs for tol in (1e-2, 1e-9)
    )
    for at in range(1, coarse + 1):
        file = Checkpoint(tmp_path / f"state{at}", "key")
        matmul, _ = interrupting(matrix, at)
        with pytest.raises(KeyboardInterrupt):
            quietly(matmul, len(matrix), dim=4, tol=1e-2, checkpoint=file)
        pairs = quietly(lambda block: matrix @ block, len(matrix), dim=4, tol=1e-9, checkpoint=file)
        assert bool(pairs.converged.all())
        assert bool((true_residuals(matrix, pairs) <= 1e-9).all())
        assert pairs.num_matvecs <= coarse + fine


def test_a_smaller_tolerance_without_products_to_reach_it_keeps_what_there_is(tmp_path):
    matrix, file = symmetric(SIGNED), Checkpoint(tmp_path / "state", "key")
    coarse = quietly(lambda block: matrix @ block, 67, dim=5, tol=1e-2).num_matvecs
    quietly(lambda block: matrix @ block, 67, dim=5, tol=1e-2, max_matvecs=coarse - 1, checkpoint=file)
    before = file.path.stat().st_size
    pairs = quietly(lambda block: matrix @ block, 67, dim=5, tol=1e-9, max_matvecs=coarse, checkpoint=file)
    assert pairs.vectors.shape == (67, 5)
    assert float(true_residuals(matrix, pairs).max()) < 1e-2
    assert not bool(pairs.converged.any())
    assert pairs.num_matvecs <= coarse
    assert file.path.stat().st_size >= before
    assert bool(quietly(lambda block: matrix @ block, 67, dim=5, tol=1e-9, checkpoint=file).converged.all())


def test_a_larger_budget_goes_on_from_a_smaller_one(tmp_path):
    matrix, options = symmetric(LONG), {"dim": 5, "tol": 1e-8}
    whole = quietly(lambda block: matrix @ block, 150, **options)
    file, counts = Checkpoint(tmp_path / "state", "key"), []
    for budget in (20, 40, 60, None):
        matmul, done = interrupting(matrix, -1)
        pairs = quietly(matmul, 150, **options, max_matvecs=budget, checkpoint=file)
        counts.append(sum(done))
        assert file.path.exists() == (budget is not None)
    assert 18 <= counts[0] <= 20
    assert all(count <= 24 for count in counts[:3])
    assert pairs.num_matvecs == sum(counts) <= whole.num_matvecs + 12
    assert bool(pairs.converged.all())
    assert torch.allclose(pairs.eigenvalues, whole.eigenvalues, rtol=1e-10)


def test_a_budget_that_ends_in_the_search_goes_on(tmp_path):
    matrix, options = symmetric(SIGNED), {"dim": 4, "tol": 1e-6}
    whole = quietly(lambda block: matrix @ block, 67, **options)
    file = Checkpoint(tmp_path / "state", "key")
    first = quietly(lambda block: matrix @ block, 67, **options, max_matvecs=whole.num_matvecs - 2, checkpoint=file)
    assert first.converged.tolist() == [True, True, True, False]
    matmul, done = interrupting(matrix, -1)
    pairs = quietly(matmul, 67, **options, checkpoint=file)
    assert bool(pairs.converged.all())
    assert sum(done) <= 16


def test_a_file_of_another_computation_is_ignored(tmp_path):
    matrix, options = symmetric(LONG), {"dim": 5, "tol": 1e-8}
    whole = quietly(lambda block: matrix @ block, 150, **options)
    for content in (b"no state", None):
        file = Checkpoint(tmp_path / "state", "key")
        if content is None:
            other = Checkpoint(tmp_path / "state", "other")
            quietly(lambda block: -matrix @ block, 150, **options, max_matvecs=30, checkpoint=other)
        else:
            file.path.write_bytes(content)
        pairs = quietly(lambda block: matrix @ block, 150, **options, checkpoint=file)
        assert torch.equal(pairs.vectors, whole.vectors)


def test_nothing_is_certified_when_the_budget_is_spent_before(tmp_path):
    """A state that seems converged, continued with a budget below what it has cost."""
    matrix, silent = symmetric(SIGNED), []
    for at in range(8, 20):
        file = Checkpoint(tmp_path / f"state{at}", "key")
        noise = noisy(matrix, 1e-2)
        matmul, _ = interrupting(matrix, at)
        with pytest.raises(KeyboardInterrupt):
            quietly(lambda block, m=matmul, n=noise: m(block) * 0 + n(block), 67, dim=5, checkpoint=file)
        pairs = quietly(noise, 67, dim=5, tol=1e-3, max_matvecs=8, checkpoint=file)
        wrong = true_residuals(matrix, pairs) > 2e-3
        silent += [at] * bool((pairs.converged & wrong).any())
    assert silent == []
