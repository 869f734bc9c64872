"""The span of a few examples' gradients."""

import pytest
import torch
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.curvature.per_example import NORMS_TOGETHER
from tests import cases, reference
from tests.subspace.test_together import is_batched


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


def naive_norms(case) -> Tensor:
    params = reference.trainable(case.model)
    values, _ = reference.example_losses(case.model, case.loss, case.batches())
    return torch.stack([reference.gradient(value, params).detach().norm() for value in values])


def test_norms_are_those_of_the_examples_one_by_one_and_together(case):
    """Every kind of model; the fast way is taken where it agrees with a backward pass."""
    risk, apart = case.risk(), case.risk()
    apart.probed.fast_paths.verdicts[NORMS_TOGETHER] = False
    expected = naive_norms(case)
    assert torch.allclose(cp.gradient_norms(risk), expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(cp.gradient_norms(apart), expected, rtol=1e-9, atol=1e-12)


def test_small_examples_are_differentiated_together():
    risk = cases.make("mlp").risk()
    assert risk.budget.examples_together() > 1
    cp.gradient_norms(risk)
    assert risk.probed.fast_paths.verdicts[NORMS_TOGETHER] is True


class Sneaky(nn.Module):
    """Another function under torch.func than outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (2.0 if is_batched(self.layer(x)) else 1.0)


def test_what_disagrees_with_a_backward_pass_is_not_taken():
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2)
    model = Sneaky()
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, torch.zeros(6, 1, dtype=torch.float64)))
    out = model(x).detach()[:, 0]
    expected = 2 * out.abs() * torch.cat([x, torch.ones(6, 1).double()], dim=1).norm(dim=1)
    assert torch.allclose(cp.gradient_norms(risk), expected, rtol=1e-9)
    assert risk.probed.fast_paths.verdicts[NORMS_TOGETHER] is False


def test_padding_rows_have_no_part_in_the_norms():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 2)).double()
    tokens, labels = torch.tensor([[1, 0], [2, 3], [0, 0], [4, 1]]), torch.tensor([0, 1, 1, 0])
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (tokens, labels))
    params, expected = list(model.parameters()), []
    for i in range(4):
        value = nn.functional.cross_entropy(model(tokens[i : i + 1]), labels[i : i + 1])
        parts = torch.autograd.grad(value, params)
        expected.append(torch.cat([part.flatten() for part in parts]).norm())
    assert torch.allclose(cp.gradient_norms(risk), torch.stack(expected), rtol=1e-10)
    assert risk.probed.fast_paths.verdicts[NORMS_TOGETHER] is True


def test_losses_that_change_between_passes_are_refused_together_too():
    risk = cases.make("mlp").risk()
    risk.losses()
    known = risk.sample.known
    object.__setattr__(known, "losses", known.losses + 1.0)
    with pytest.raises(cp.CannotProbeError):
        cp.gradient_norms(risk)
