"""The span of a few examples' gradients."""

import pytest
import torch
from torch import Tensor, nn

import curvprobe as cp
from tests import reference


def projector(U: Tensor) -> Tensor:
    return U @ U.T


def test_gradient_subspace_spans_the_gradients(case):
    risk = case.risk()
    subspace = cp.gradient_subspace(risk[:3])
    params = reference.trainable(case.model)
    values, _ = reference.example_losses(case.model, case.loss, case.batches()[:3])
    gradients = torch.stack([reference.gradient(v, params).detach() for v in values], dim=1)
    assert subspace.dim == 3
    assert torch.allclose(subspace.basis.T @ subspace.basis, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(projector(subspace.basis) @ gradients, gradients, rtol=1e-10, atol=1e-12)


def test_dependent_gradients_are_left_out():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 1, bias=False).double()
        x = torch.randn(3, 4, dtype=torch.float64)
    inputs = torch.stack([x[0], x[0], x[1], x[0] + x[1]])
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (inputs, torch.full((4, 1), 9.0, dtype=torch.float64)))
    subspace = cp.gradient_subspace(risk)
    assert subspace.dim == 2
    assert torch.allclose(projector(subspace.basis) @ x[:2].T, x[:2].T, rtol=1e-10)
    assert float((projector(subspace.basis) @ x[2] - x[2]).norm()) > 0.1


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_independent_gradients_of_unequal_size_are_kept(scale):
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x = torch.diag(torch.tensor([1.0, scale, 1.0], dtype=torch.float64))
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, torch.ones(3, 1, dtype=torch.float64)))
    assert cp.gradient_subspace(risk).dim == 3


def test_gradients_that_span_nothing():
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.eye(2).double(), torch.zeros(2, 1).double()))
    with pytest.raises(ValueError, match="gradients are zero"):
        cp.gradient_subspace(risk)
    with pytest.raises(ValueError, match="2 parameters"):
        cp.gradient_subspace(risk.on((torch.eye(2).double()[[0, 1, 0]], torch.zeros(3, 1).double())))
