"""Who joins whom: factors, gaps and increments against plain means, and other models' examples refused."""

import copy

import pytest
import torch

import curvprobe as cp
from curvprobe.probing.joining import Joining
from tests import cases, reference


@pytest.mark.parametrize("name", ["mlp", "weighted"])
def test_an_increment_is_the_change_of_the_mean(name):
    case = cases.make(name)
    risk = case.risk()
    joining = Joining(risk, risk.on(case.candidates))
    old, new = case.batches(), case.batches(case.candidates)
    before, after = (reference.risk_value(case.model, case.loss, part).detach() for part in (old, old + new))
    assert joining.increment_at() == pytest.approx(float(after - before), rel=1e-9)
    for j, batch in enumerate(new):
        alone = reference.risk_value(case.model, case.loss, [*old, batch]).detach()
        gap = joining.new.losses()[j] - risk.value()
        assert float(joining.factors[j] * gap) == pytest.approx(float(alone - before), rel=1e-9)


def test_gaps_are_those_of_dense_derivatives():
    case = cases.make("layer_norm")
    risk = case.risk()
    joining = Joining(risk, risk.on(case.candidates))
    params = reference.trainable(case.model)
    before, joined = (
        reference.risk_value(case.model, case.loss, case.batches(data)) for data in (case.data, case.candidates)
    )
    slope = (reference.gradient(joined, params) - reference.gradient(before, params)).detach()
    assert torch.allclose(joining.gradient_gap(), slope, rtol=1e-9, atol=1e-12)
    dense = reference.dense_hessian(joined, params) - reference.dense_hessian(before, params)
    block = torch.randn(risk.num_params, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(joining.hessian_gap()(block), dense @ block, rtol=1e-9, atol=1e-11)


def test_blocks_of_displacements_are_one_by_one():
    case = cases.make("weighted")
    risk = case.risk()
    joining = Joining(risk, risk.on(case.candidates))
    block = 0.1 * torch.randn(4, risk.num_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    singles = [Joining(risk, joining.new[[j]]) for j in range(len(joining.new))]
    for d, together, alone in zip(block, joining.increments(block), joining.single_increments(block), strict=True):
        assert float(together) == pytest.approx(joining.increment_at(d), rel=1e-9)
        for single, value in zip(singles, alone, strict=True):
            assert float(value) == pytest.approx(single.increment_at(d), rel=1e-9)


def strangers(case: cases.Case) -> cp.EmpiricalRisk:
    """The candidates at other weights."""
    other = copy.deepcopy(case.model)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    return cp.EmpiricalRisk(other, case.loss, case.candidates)


@pytest.mark.parametrize(
    "look",
    [
        lambda risk, new, space: cp.delta1(risk, new),
        lambda risk, new, space: cp.delta2(risk, new, sigma=1e-3),
        lambda risk, new, space: cp.delta2_subspace(risk, new, space, sigma=1e-3),
        lambda risk, new, space: cp.closed_form(risk, new, cp.SubspaceProbe(space, 1e-3)),
        lambda risk, new, space: cp.closed_form(risk, new, cp.IsotropicProbe(1e-3)),
        lambda risk, new, space: cp.controlled_monte_carlo(risk, new, cp.SubspaceProbe(space, 1e-3)),
        lambda risk, new, space: cp.full_space_moment(risk, new, sigma=1e-3),
        lambda risk, new, space: cp.full_space_parts(risk, new, sigma=1e-3),
        lambda risk, new, space: cp.quadratic_validity(risk, [1e-3], new=new),
        lambda risk, new, space: cp.quadratic_validity(risk, [1e-3], subspace=space, new=new),
        lambda risk, new, space: cp.analyze(risk, new, dim=2),
    ],
)
def test_examples_of_another_model_are_refused_by_all(look):
    case = cases.make("mlp")
    risk = case.risk()
    with pytest.raises(cp.ArgumentError, match=r"other weights.*make it with risk\.on"):
        look(risk, strangers(case), cp.random_subspace(risk, 2))
