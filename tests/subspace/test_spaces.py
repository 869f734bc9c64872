"""Subspaces and eigenspaces as objects, and random ones."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import curvprobe as cp
from tests import cases


def projector(U: Tensor) -> Tensor:
    return U @ U.T


def orthonormal(n: int, dim: int) -> Tensor:
    draws = torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(draws).Q


def test_a_truncated_eigenspace_keeps_its_certificates_and_knows_what_comes_next():
    subspace = cp.top_eigenspace(cases.make("mlp").risk(), dim=5, tol=1e-8)
    cut = subspace.truncate(2)
    assert (cut.dim, cut.num_params) == (2, 31)
    assert torch.equal(cut.basis, subspace.basis[:, :2])
    assert torch.equal(cut.eigenvalues, subspace.eigenvalues[:2])
    assert torch.equal(cut.residuals, subspace.residuals[:2])
    assert torch.equal(cut.converged, subspace.converged[:2])
    assert cut.next_eigenvalue == float(subspace.eigenvalues[2])
    for name in ("matrix", "risk_key", "num_matvecs", "num_search_matvecs"):
        assert getattr(cut, name) == getattr(subspace, name)
    assert subspace.truncate(5) is subspace


def test_flags_and_residuals_are_cut_with_their_pairs():
    whole = cp.top_eigenspace(cases.make("mlp").risk(), dim=4, tol=1e-8)
    mixed = replace(
        whole,
        residuals=torch.tensor([1e-9, 2e-9, 3e-2, 4e-2], dtype=torch.float64),
        converged=torch.tensor([True, True, False, False]),
        next_eigenvalue=math.nan,
    )
    cut = mixed.truncate(3)
    assert cut.residuals.tolist() == [1e-9, 2e-9, 3e-2]
    assert cut.converged.tolist() == [True, True, False]
    assert cut.next_eigenvalue == float(whole.eigenvalues[3])
    assert cut.truncate(1).next_eigenvalue == float(whole.eigenvalues[1])
    assert math.isnan(mixed.next_eigenvalue)


def test_a_truncated_subspace_is_the_span_of_the_first_vectors():
    basis = orthonormal(9, 4)
    whole = cp.Subspace.from_basis(basis)
    cut = whole.truncate(2)
    assert type(cut) is cp.Subspace
    assert torch.equal(cut.basis, basis[:, :2])
    assert (cut.dim, cut.num_params) == (2, 9)
    assert torch.equal(whole.basis, basis)
    assert whole.truncate(4) is whole


@pytest.mark.parametrize("kind", ["subspace", "eigenspace"])
@pytest.mark.parametrize("dim", [-1, 0, 6])
def test_truncations_that_make_no_sense(kind, dim):
    risk = cases.make("mlp").risk()
    space = cp.random_subspace(risk, 5) if kind == "subspace" else cp.top_eigenspace(risk, dim=5)
    with pytest.raises(cp.ArgumentError, match=f"dim is {dim}; expected 1 to 5"):
        space.truncate(dim)


def test_from_basis_takes_orthonormal_columns_only():
    basis = orthonormal(9, 3)
    subspace = cp.Subspace.from_basis(basis)
    assert torch.equal(subspace.basis, basis)
    assert (type(subspace), subspace.dim) == (cp.Subspace, 3)
    with pytest.raises(ValueError, match="not orthonormal"):
        cp.Subspace.from_basis(basis * 1.01)
    with pytest.raises(ValueError, match="expected \\(N, D\\)"):
        cp.Subspace.from_basis(basis.T)
    with pytest.raises(TypeError, match="floating-point tensor of shape"):
        cp.Subspace.from_basis(basis[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_long_decomposition_has_left_in_a_basis_is_taken_out(dtype):
    """Columns that are off by what QR in float32 leaves at ten million rows, and by as much as is taken for that."""
    exact = orthonormal(5000, 4)
    for off in (3e-4, 4e-3):
        oblique = exact @ (torch.eye(4, dtype=torch.float64) + off * torch.ones(4, 4))
        given = oblique.to(dtype)
        before = given.clone()
        found = cp.Subspace.from_basis(given).basis
        assert torch.equal(given, before)  # the user's own is left as it is
        assert found.dtype == dtype
        tolerance = 3e-7 if dtype == torch.float32 else 1e-12
        assert torch.allclose(found.double().T @ found.double(), torch.eye(4, dtype=torch.float64), atol=tolerance)
        assert float((projector(found.double()) - projector(exact)).norm()) < 2e-6  # the span stays
        assert float((found.double() - exact).abs().max()) < 2 * off  # and no column turns into another


def test_a_random_subspace_of_many_parameters_is_orthonormal():
    risk = cp.EmpiricalRisk(
        torch.nn.Linear(2_000_000, 1), cp.losses.mse, (torch.zeros(1, 2_000_000), torch.zeros(1, 1))
    )
    basis = cp.random_subspace(risk, 3).basis.double()
    assert torch.allclose(basis.T @ basis, torch.eye(3, dtype=torch.float64), atol=2e-7)


def test_random_subspace_is_orthonormal_and_seeded():
    risk = cases.make("mlp").risk()
    first, again, other = (cp.random_subspace(risk, 6, seed=seed) for seed in (1, 1, 2))
    assert torch.allclose(first.basis.T @ first.basis, torch.eye(6, dtype=torch.float64), atol=1e-12)
    assert torch.equal(first.basis, again.basis)
    assert float((projector(first.basis) - projector(other.basis)).norm()) > 1
    with pytest.raises(ValueError, match="dim is 32"):
        cp.random_subspace(risk, 32)


def test_random_subspace_is_uniform():
    """The mean projector of a uniform D-dimensional subspace of R^N is (D/N) I."""
    risk = cases.make("mlp").risk()
    mean = sum(projector(cp.random_subspace(risk, 3, seed=seed).basis) for seed in range(400)) / 400
    assert torch.allclose(mean, 3 / 31 * torch.eye(31, dtype=torch.float64), atol=0.05)
