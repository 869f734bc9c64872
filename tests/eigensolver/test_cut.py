"""Whether the cut after the last wanted eigenvalue is decided, and what the residuals say."""

import warnings

import pytest
import torch

import curvprobe as cp
from curvprobe.eigensolver.lanczos import _Solver
from curvprobe.eigensolver.wanted import CROWDING
from tests.cases import symmetric
from tests.eigensolver.spectra import BULK, solve, true_residuals


@pytest.mark.parametrize(("gap", "decided"), [(0.3, True), (1e-7, False)])
def test_the_next_eigenvalue_against_the_residual_of_the_last(gap, decided):
    matrix = symmetric([9.0, 7.0, 5.0, 5.0 - gap, *torch.linspace(2, 0, 60).tolist()])
    pairs = solve(matrix, dim=3, tol=1e-3)
    assert bool(pairs.converged.all())
    assert pairs.cut_decided is decided


def test_a_truncated_space_is_judged_at_its_own_cut():
    space = cp.Eigenspace(
        basis=torch.eye(6, dtype=torch.float64)[:, :3],
        eigenvalues=torch.tensor([5.0, 3.0, 2.9999], dtype=torch.float64),
        residuals=torch.full((3,), 1e-3, dtype=torch.float64),
        converged=torch.ones(3, dtype=torch.bool),
        matrix="hessian",
        risk_key="",
        num_matvecs=9,
        num_search_matvecs=0,
    )
    assert space.truncate(1).cut_decided
    assert not space.truncate(2).cut_decided


def test_an_eigenvalue_outside_that_is_more_wanted_is_said(monkeypatch):
    """A search that ends with one above the last pair, and has not been able to take it in."""

    def search(solver, *_):
        solver.searched, solver.left_out = True, torch.tensor([9.5], dtype=torch.float64)
        return False

    monkeypatch.setattr(_Solver, "search", search)
    with pytest.warns(cp.ConvergenceWarning, match="an eigenvalue outside is more wanted than the last one found"):
        pairs = solve(symmetric([10.0, 9.0, 5.0, *BULK[::3]]), dim=2, tol=1e-6)
    assert pairs.converged.tolist() == [True, False]
    assert pairs.next_eigenvalue == pytest.approx(9.5)


def test_what_products_show_beyond_the_recurrence_is_charged_to_every_pair(monkeypatch):
    """The mean over both combinations of what is unknown: norms 3 and 4 of it make the root of 12.5."""
    sizes = []

    def unknown(solver, *_):
        sizes.append(3e-6 if len(sizes) % 2 == 0 else 4e-6)
        vector = torch.zeros(solver.basis.size, dtype=torch.float64)
        vector[0] = sizes[-1]
        return vector

    monkeypatch.setattr(_Solver, "_residual", unknown)
    pairs = solve(symmetric([10.0, 9.0, 8.0, 7.0, *BULK[::3]]), dim=4, tol=1e-6)
    assert len(sizes) >= 2
    assert float(pairs.residuals[0]) == pytest.approx(12.5**0.5 * 1e-6 / 10, rel=0.05)
    assert bool((pairs.residuals > 0.999 * 12.5**0.5 * 1e-7).all())


def test_residuals_that_are_not_certified_are_no_smaller_than_the_true_ones():
    """At every budget, those that an earlier phase has left behind included."""
    matrix = symmetric([10.0] * 3 + [9.0, 8.0, 7.0] + BULK, seed=1)
    for budget in range(14, 72, 3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cp.ConvergenceWarning)
            pairs = solve(matrix, dim=3, tol=1e-6, max_matvecs=budget)
        assert bool((pairs.residuals >= 0.7 * true_residuals(matrix, pairs) - 1e-12).all()), budget


def test_pairs_of_a_budget_that_ended_are_certified_in_their_own_neighbourhood():
    """In a crowd of small eigenvalues a vector of none of them has a residual that the first eigenvalue allows."""
    matrix = symmetric([10.0, *torch.linspace(0.6, 0.01, 120).tolist()], seed=2)
    seen, tol = 0, 0.05
    for budget in range(6, 40):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cp.ConvergenceWarning)
            pairs = solve(matrix, dim=4, tol=tol, max_matvecs=budget)
        absolute = tol * float(pairs.eigenvalues[0])
        crowded = (CROWDING * pairs.eigenvalues.abs().clamp_min(absolute)).clamp_max(absolute)
        allowed = pairs.residuals <= tol
        rough = pairs.residuals * float(pairs.eigenvalues[0]) > 1.01 * crowded
        seen += int((allowed & rough).sum())
        assert not bool((pairs.converged & rough).any()), budget
    assert seen > 0  # else nothing is tested
