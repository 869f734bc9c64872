"""No copy of a repeated eigenvalue is missed, which a single-vector method cannot see by itself."""

import math
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor

import curvprobe as cp
from curvprobe.eigensolver.checkpoint import Saver
from curvprobe.eigensolver.lanczos import _Solver
from curvprobe.eigensolver.search import would_have_shown
from curvprobe.eigensolver.wanted import Wanted
from tests.cases import symmetric
from tests.eigensolver.spectra import (
    BULK,
    WHICH,
    check,
    grown,
    quietly,
    solve,
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


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_search_does_not_leave_out_what_is_hardly_known(seed):
    """It starts beyond the wanted vectors, not beyond all that was seen, while the next ones are half converged."""
    matrix, vectors = symmetric([10 * 0.99**i for i in range(150)]), []

    def matmul(block: Tensor) -> Tensor:
        vectors.append(block[:, 0].clone())
        return matrix @ block

    with warnings.catch_warnings():  # at such a tolerance the third may be another than the third largest
        warnings.simplefilter("ignore", cp.ConvergenceWarning)
        cp.lanczos(matmul, 150, dim=3, tol=0.1, dtype=torch.float64, seed=seed, basis_size=60)
    made = torch.stack(vectors)
    # Without a restart every product is with a vector beyond those before, up to the two that certify.
    count = next(i for i in range(1, len(made)) if float((made[:i] @ made[i]).norm()) > 1e-6)
    seen, start = made[:count], made[count + 2]
    wanted = torch.linalg.eigh(seen @ matrix @ seen.T).eigenvectors[:, -3:].T @ seen
    assert float((wanted @ start).norm()) < 1e-12
    assert float((seen @ start).norm()) > 0.05


def test_a_space_that_was_seen_almost_whole_is_searched_too():
    """One dimension is left outside at the most, and none may be."""
    for size in range(11, 16):
        matrix = symmetric([4.0, 3.0, 3.0, 2.0, *(1 / (i + 1) for i in range(size - 4))])
        pairs = solve(matrix, dim=3, tol=1e-8)
        assert torch.allclose(pairs.eigenvalues, torch.tensor([4.0, 3, 3]).double(), atol=1e-7)
        assert bool(pairs.converged.all())


def crowded_below(gap: float, dim: int = 10, size: int = 400) -> Tensor:
    """Eigenvalues of which the last three wanted ones are one, with many close below."""
    leading = [10 * 0.93**i for i in range(dim - 2)]
    return torch.tensor(
        [*leading, leading[-1], leading[-1], *(leading[-1] * (1 - gap) * 0.997**i for i in range(size))]
    )


@pytest.mark.parametrize("which", WHICH)
def test_running_out_of_room_is_no_answer(which):
    """A basis of 25 has room for a search of 15, which in a crowd ends before it could tell."""
    values = crowded_below(0.007).double()
    values = -values if which == "smallest" else values
    for seed in range(4):
        pairs = quietly(partial(torch.mul, values[:, None]), len(values), dim=10, which=which, seed=seed)
        off = float((pairs.eigenvalues - values[:10]).abs().max())
        assert off < 2e-3 or not bool(pairs.converged.all())


def test_a_more_wanted_eigenvalue_outside_takes_the_last_flag():
    """The power law's spacing at the cut is as large as the tolerance: now and then the 46th is taken for the 45th."""
    values = torch.tensor([10 * i**-0.7 for i in range(1, 1001)]).double()
    flagged = 0
    for seed in range(8):
        pairs = quietly(partial(torch.mul, values[:, None]), len(values), dim=45, seed=seed)
        missed = float((pairs.eigenvalues - values[:45]).abs().max()) > 2e-3
        assert missed == (not bool(pairs.converged[-1]))
        assert bool(pairs.converged[:-1].all())
        flagged += missed
    assert flagged


def growth(alphas: list[float], betas: list[float], mu: float) -> float:
    """Sum of squares of the three-term recurrence that a unit eigenvector's components follow, from 1 on."""
    components = [0.0, 1.0]
    for at, (alpha, beta) in enumerate(zip(alphas, betas, strict=True)):
        before = betas[at - 1] * components[-2] if at else 0.0
        components.append(((mu - alpha) * components[-1] - before) / beta)
    return sum(component**2 for component in components)


@pytest.mark.parametrize(
    ("which", "last", "ends"),
    [("algebraic", 6.0, (1,)), ("smallest", -6.0, (-1,)), ("magnitude", 6.0, (1, -1)), ("magnitude", -6.0, (1, -1))],
)
def test_the_search_may_end_once_an_eigenvector_as_wanted_would_have_shown(monkeypatch, which, last, ends):
    """Just below the growth that every end reaches it may, just above it may not; ends lie a residual farther out."""
    basis = grown(symmetric(BULK[::4]), 7)
    outside = basis.projected[:7, :7]
    wanted = Wanted(1, which, 0.02)
    step = wanted.crowded_bound(torch.tensor([last]), last, basis)
    betas = [*outside.diagonal(1).tolist(), basis.pending_norm]
    reached = min(growth(outside.diagonal().tolist(), betas, end * (6.0 + step)) for end in ends)
    nearer = min(growth(outside.diagonal().tolist(), betas, end * (6.0 - step)) for end in ends)
    assert nearer < 0.9 * reached
    for part, told in ((0.99, True), (1.01, False)):
        probability = (2 * basis.size / (math.pi * part * reached)) ** 0.5
        monkeypatch.setattr("curvprobe.eigensolver.search.MISSED", probability)
        assert would_have_shown(basis, wanted, outside, torch.tensor([last])) is told


def test_products_of_every_search_are_counted(monkeypatch):
    counted, search = [], _Solver.search

    def watched(solver, *arguments):
        before = solver.basis.num_matvecs
        found = search(solver, *arguments)
        counted.append((found, solver.basis.num_matvecs - before))
        return found

    monkeypatch.setattr(_Solver, "search", watched)
    pairs = solve(symmetric(REPEATED["leading"][0]), dim=5)
    assert {found for found, _ in counted} == {True, False}  # one that held a missed copy, and the last
    assert pairs.num_search_matvecs == sum(count for _, count in counted)


def test_combinations_that_certify_have_signs_of_both_kinds():
    """Of one kind only, errors of two pairs that cancel would go unseen."""
    solver = _Solver(grown(symmetric(BULK[::4]), 1), Wanted(1, "algebraic", 1e-3), 10, 0, Saver(None))
    assert set(solver._signs(64).tolist()) == {-1.0, 1.0}
