"""The deformation-aligned subspace against the dense covariance of gradients."""

import pytest
import torch

import curvprobe as cp
from tests import cases, reference


@pytest.mark.parametrize("name", ["mlp", "layer_norm", "attention", "weighted", "tied", "convolution"])
@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_the_covariance_of_the_gradients(name, microbatch_size):
    case = cases.make(name)
    risk = case.risk(microbatch_size=microbatch_size)
    params = reference.trainable(case.model)
    values, weights = reference.example_losses(case.model, case.loss, case.batches())
    rows = torch.stack([reference.gradient(value, params) for value in values])
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    centred = rows - share @ rows
    dense = (centred.T * share) @ centred
    expected, vectors = torch.linalg.eigh(dense)
    space = cp.deformation_subspace(risk, 2, tol=1e-9)
    assert torch.allclose(space.eigenvalues, expected.flip(0)[:2], rtol=1e-8, atol=1e-12 * float(expected[-1]))
    top = vectors[:, [-1, -2]]
    if float(expected[-2] - expected[-3]) > 1e-6 * float(expected[-1]):
        assert torch.allclose(space.basis @ space.basis.T, top @ top.T, rtol=0, atol=1e-5)
    assert space.matrix == "gradient covariance"
    assert space.risk_key == risk.key()
    assert bool(space.converged.all())


def test_no_subspace_holds_more_of_the_slopes():
    """Ky Fan's theorem, against the Hessian's and random subspaces."""
    case = cases.make("mlp")
    risk = case.risk()

    def scatter(space):
        gradients = cp.project(risk, space).gradient
        return float((gradients - gradients.mean(0)).square().sum())

    best = scatter(cp.deformation_subspace(risk, 3, tol=1e-8))
    assert best >= scatter(cp.top_eigenspace(risk, dim=3)) * (1 - 1e-6)
    assert best > scatter(cp.random_subspace(risk, 3))


def test_more_directions_than_examples_are_refused():
    risk = cases.make("mlp").risk()
    with pytest.raises(ValueError, match="span at most"):
        cp.deformation_subspace(risk, len(risk))


def test_a_laplace_law_refuses_a_subspace_and_the_eigenspace_of_no_curvature():
    risk = cases.make("mlp").risk()
    scatter, plain = cp.deformation_subspace(risk, 2), cp.random_subspace(risk, 2)
    remedy = "a Laplace law needs the eigenvalues of a curvature: pass what top_eigenspace returned"
    for space in (scatter, scatter.truncate(1)):
        with pytest.raises(cp.ArgumentError, match=f"is an eigenspace of the gradient covariance; {remedy}"):
            cp.LaplaceProbe(space, k=10)
    with pytest.raises(cp.ArgumentError, match=f"is no eigenspace; {remedy}"):
        cp.LaplaceProbe(plain, k=10)
    for curvature in ("hessian", "ggn"):
        space = cp.top_eigenspace(risk, 2, curvature=curvature)
        assert torch.allclose(cp.LaplaceProbe(space, k=10).scale, (10 * space.eigenvalues).rsqrt(), rtol=1e-12)


def test_an_opaque_backward_is_refused_rather_than_taken_for_a_constant():
    class Squared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(3, 2).double()

        def forward(self, x):
            return cases.SquareOnce.apply(self.inner(x))

    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    risk = cp.EmpiricalRisk(Squared(), cp.losses.mse, (x, torch.zeros(6, 2)))
    with pytest.raises(ValueError, match="second derivative"):
        cp.deformation_subspace(risk, 2)
