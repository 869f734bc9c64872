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
    assert space.origin == "deformation"
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


def test_a_laplace_law_needs_curvature():
    space = cp.deformation_subspace(cases.make("mlp").risk(), 2)
    with pytest.raises(ValueError, match="comes from 'deformation'"):
        cp.LaplaceProbe(space, k=10)
