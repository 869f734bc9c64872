"""What is remembered of a sample, so that it is not computed again."""

import math

import pytest
import torch

import curvprobe as cp
from tests import cases


@pytest.mark.parametrize("name", ["layer_norm", "weighted"])
@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_the_gradient_at_the_solution_is_computed_once(name, microbatch_size):
    passes = []
    case, fresh = cases.make(name), cases.make(name).risk()
    case.model.register_forward_hook(lambda *_: passes.append(1))
    risk = cp.EmpiricalRisk(case.model, case.loss, case.data, microbatch_size=microbatch_size)
    cp.hessian(risk) @ torch.ones(risk.num_params).double()
    before = len(passes)
    gradient = risk.gradient()
    first = len(passes) - before
    assert first == (0 if microbatch_size is None else math.ceil(len(risk) / 2))
    gradient.zero_()  # a copy
    torch.testing.assert_close(risk.gradient(), fresh.gradient())
    torch.testing.assert_close(risk.losses(), fresh.losses())
    assert len(passes) == before + first
    torch.testing.assert_close(risk[:3].gradient(), fresh[:3].gradient())
    assert not torch.allclose(risk[:3].gradient(), risk.gradient())
    others = cp.EmpiricalRisk(case.model, case.loss, case.candidates)
    torch.testing.assert_close(risk.on(case.candidates).gradient(), others.gradient())


def test_an_eigenspace_tells_the_gradient_to_its_risk():
    passes = []
    case = cases.make("mlp")
    case.model.register_forward_hook(lambda *_: passes.append(1))
    risk = cp.EmpiricalRisk(case.model, case.loss, case.data)
    cp.top_eigenspace(risk, dim=2)
    before = len(passes)
    risk.gradient()
    assert len(passes) == before


def test_what_is_known_in_float32_is_not_taken_for_float64():
    case = cases.make("mlp")
    risk = cp.EmpiricalRisk(case.model.float(), case.loss, case.data)
    single, losses = risk.gradient(), risk.losses()
    double = risk.in_double()
    assert double.gradient().dtype == torch.float64
    assert not torch.equal(double.losses(), losses)
    torch.testing.assert_close(double.gradient().float(), single, rtol=1e-4, atol=1e-6)


def test_a_selection_has_its_own_weights_whatever_was_evaluated_before():
    """A displaced evaluation remembers the weights, but no losses."""
    case = cases.make("weighted")
    risk, untouched = case.risk(), case.risk()
    risk.losses(torch.zeros(risk.num_params, dtype=torch.float64))
    assert torch.equal(risk[[1, 3]].weights, untouched[[1, 3]].weights)
    assert risk[1:3].value() == untouched[1:3].value()


def test_returned_losses_belong_to_the_caller():
    risk = cases.make("mlp").risk()
    value, weights = risk.value(), risk.weights.clone()
    risk.losses().zero_()
    risk.weights.mul_(2)
    assert risk.value() == value
    assert torch.equal(risk.weights, weights)
