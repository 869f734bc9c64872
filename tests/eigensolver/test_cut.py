"""Whether the cut after the last wanted eigenvalue is decided."""

import pytest
import torch

import curvprobe as cp
from tests.cases import symmetric
from tests.eigensolver.spectra import solve


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
