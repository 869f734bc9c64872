import pytest
import torch
from torch import nn

import curvprobe as cp
from tests import cases


def risk_of(model: nn.Module) -> cp.EmpiricalRisk:
    return cp.EmpiricalRisk(model, lambda out, batch: out.flatten(1).square().mean(1), (torch.ones(2, 3, 8, 8),))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)).eval()


def test_every_filter_of_a_direction_is_as_long_as_the_weights():
    model = network()
    risk = risk_of(model)
    directions = cp.filter_directions(risk, 3, seed=4)
    assert directions.shape == (risk.num_params, 3)
    for column in directions.T:
        parts = risk.probed.split(column)
        for name, p in model.named_parameters():
            if p.dim() > 1:
                assert torch.allclose(parts[name].flatten(1).norm(dim=1), p.flatten(1).norm(dim=1), rtol=1e-5)
            else:
                assert not parts[name].any()
    assert torch.equal(directions, cp.filter_directions(risk, 3, seed=4))
    assert not torch.equal(directions, cp.filter_directions(risk, 3, seed=5))
    assert abs(float(torch.corrcoef(directions.T)[0, 1])) < 0.3


def test_a_filter_of_zeros_stays_where_it_is():
    model = network()
    with torch.no_grad():
        model[0].weight[1] = 0.0
    directions = cp.filter_directions(risk_of(model))
    assert directions.isfinite().all()
    assert not directions[27:54].any()


def test_a_step_of_one_arrives_at_the_checkpoint():
    here, there, third = network(), network(), network()
    for other, factor in ((there, 0.5), (third, 2.0)):
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(factor).add_(0.1)
    risk = risk_of(here)
    directions = cp.checkpoint_directions(risk, [there, third.state_dict()])
    found = cp.plane(risk, directions, reach=(0.0, 1.0), points=3)
    assert float(found.loss[0, 0]) == pytest.approx(risk.value(), rel=1e-6)
    assert float(found.loss[0, 2]) == pytest.approx(risk_of(there).value(), rel=1e-5)
    assert float(found.loss[2, 0]) == pytest.approx(risk_of(third).value(), rel=1e-5)


def test_checkpoints_in_another_precision_and_of_some_parameters():
    here, there = network(), network().double()
    with torch.no_grad():
        there[3].weight.add_(1.0)
    risk = cp.EmpiricalRisk(
        here, lambda out, batch: out.square().mean(1), (torch.ones(2, 3, 8, 8),), params=["3.weight"]
    )
    step = cp.checkpoint_directions(risk, [there])[:, 0]
    assert step.dtype == torch.float32
    assert torch.allclose(step, torch.ones(288))


@pytest.mark.parametrize(
    ("checkpoints", "message"),
    [
        ([], "no checkpoints came"),
        ([{"0.weight": torch.ones(1)}], r"checkpoint 0 has shape \(1,\) for the parameter '0.weight'; expected shape"),
        ([{}], "checkpoint 0 has nothing for the parameter '0.weight'"),
        ([3], "checkpoint 0 is a int; expected a module or a state dictionary"),
    ],
)
def test_other_things_than_checkpoints(checkpoints, message):
    with pytest.raises((ValueError, TypeError), match=message):
        cp.checkpoint_directions(cases.make("mlp").risk(), checkpoints)


def test_the_solution_itself_is_no_direction():
    model = network()
    with pytest.raises(cp.ArgumentError, match="the solution's own weights"):
        cp.checkpoint_directions(risk_of(model), [model])
