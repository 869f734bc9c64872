"""A model with its loss and copies of its weights: a snapshot that training does not move."""

import pytest
import torch
from torch import nn

import curvprobe as cp
from tests import cases
from tests.cases import close


@pytest.mark.parametrize("params", [None, ["3.*"]], ids=["all", "head"])
@pytest.mark.parametrize("frozen", [False, True])
def test_training_does_not_move_the_risk(params, frozen):
    case = cases.make("batch_norm")
    case.model[0].weight.requires_grad_(not frozen)
    risk, fresh = case.risk(params=params), case.risk(params=params)
    step = torch.full((risk.num_params,), 0.1, dtype=torch.float64)
    before = risk.value(), risk.gradient(), risk.losses(step)
    with torch.no_grad():
        for tensor in [*case.model.parameters(), case.model[1].running_mean]:
            if not frozen or tensor is not case.model[0].weight:  # that is looked at, not copied
                tensor += 0.5
    case.model.train()
    after = fresh.value(), fresh.gradient(), fresh.losses(step)
    assert all(close(a, b) for a, b in zip(after, before, strict=True))
    assert close(risk.on(case.data).losses(), risk.losses())
    case.model.eval()
    assert abs(case.risk(params=params).value() - before[0]) > 1e-3


def test_a_risk_keeps_the_mode_it_was_made_in():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double().eval()
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, cases.make("mlp").data)
    expected = risk.gradient()
    model.train()
    assert close(risk.gradient(), expected)
    assert all(module.training for module in model.modules())
