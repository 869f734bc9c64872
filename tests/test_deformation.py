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


@pytest.mark.parametrize("function", ["deformation", "full_space", "concentration"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_nothing_is_left_changed(function, interrupted, monkeypatch):
    case = cases.make("batch_norm")
    model = case.model
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    risk = case.risk()
    new = risk.on(case.candidates)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    if interrupted:
        calls, first_order = [], cp.EmpiricalRisk.batch_losses

        def broken(self, *arguments):
            calls.append(1)
            if len(calls) == 9:
                raise KeyboardInterrupt
            return first_order(self, *arguments)

        monkeypatch.setattr(cp.EmpiricalRisk, "batch_losses", broken)
    job = {
        "deformation": lambda: cp.deformation_subspace(risk, 2),
        "full_space": lambda: cp.full_space_parts(risk, new, sigma=0.1),
        "concentration": lambda: cp.concentration_curve(risk, new, sigma=0.1, dim=2),
    }[function]
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            job()
    else:
        job()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(torch.equal(grad, p.grad) for grad, p in zip(grads, model.parameters(), strict=True))
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
