"""Losses at several points together are those at each, whatever the model."""

import pytest
import torch
from torch import nn

import curvprobe as cp
from curvprobe.risk import displaced
from curvprobe.risk.displaced import displaced_losses, in_blocks
from tests import cases
from tests.test_curvature import block_of
from tests.test_risk import state_of


def steps(risk: cp.EmpiricalRisk, count: int = 4, scale: float = 0.1) -> torch.Tensor:
    return (scale * block_of(risk.num_params, count)).T.contiguous().to(risk.dtype)


def one_by_one(risk: cp.EmpiricalRisk, block: torch.Tensor) -> torch.Tensor:
    return torch.stack([risk.losses(step, finite=False) for step in block])


@pytest.mark.parametrize("microbatch_size", [1, 4, None])
def test_together_is_one_by_one(case, microbatch_size):
    risk = case.risk(microbatch_size=microbatch_size)
    block = steps(risk)
    expected = one_by_one(risk, block)
    for _ in range(2):
        found = displaced_losses(risk, block)
        assert found.dtype == torch.float64
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-13)
    assert "points together" in risk.checked


def test_points_are_evaluated_in_one_forward_pass():
    class Counted(nn.Linear):
        calls = 0

        def forward(self, x):
            Counted.calls += 1
            return super().forward(x)

    model = Counted(3, 2).double()
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (block_of(6, 3), block_of(6, 2)), microbatch_size=3)
    displaced_losses(risk, steps(risk))
    before = Counted.calls
    displaced_losses(risk, steps(risk, 8))
    assert Counted.calls - before == 2  # microbatches
    displaced_losses(risk, steps(risk, 1))
    assert Counted.calls - before == 4


class Loop(nn.Linear):
    """A decision that depends on the parameters: nothing that vmap can take."""

    def forward(self, x):
        y = super().forward(x)
        return y if float(self.weight.detach().sum()) > -1e9 else -y


class Detour(torch.autograd.Function):
    """No batching rule at all."""

    @staticmethod
    def forward(ctx, x):
        return x.square()

    @staticmethod
    def backward(ctx, slope):
        return slope


class Custom(nn.Linear):
    def forward(self, x):
        return Detour.apply(super().forward(x))


@pytest.mark.parametrize("layer", [Loop, Custom])
def test_a_model_that_cannot_be_batched_goes_one_by_one(layer):
    torch.manual_seed(0)
    model = layer(3, 2).double()
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (block_of(6, 3), block_of(6, 2)))
    block, before = steps(risk), state_of(model)
    assert torch.equal(displaced_losses(risk, block), one_by_one(risk, block))
    assert "points one by one" in risk.checked
    assert state_of(model) == before


@pytest.mark.parametrize("factor", [1 + 1e-6, float("nan")])
def test_wrong_batching_is_found_out_and_not_used_again(monkeypatch, factor):
    risk, calls, together = cases.make("mlp").risk(), [], displaced._together

    def wrong(*arguments):
        calls.append(1)
        return factor * together(*arguments)

    monkeypatch.setattr(displaced, "_together", wrong)
    block = steps(risk)
    for _ in range(2):
        assert torch.equal(displaced_losses(risk, block), one_by_one(risk, block))
    assert calls == [1]


def exploding() -> cp.EmpiricalRisk:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    return cp.EmpiricalRisk(model, lambda outputs, batch: outputs[:, 0].sqrt(), x)


@pytest.mark.parametrize("one_at_a_time", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_losses_that_are_not_finite(one_at_a_time, known):
    risk = exploding()
    if one_at_a_time:
        risk.checked.add("points one by one")
    elif known:
        displaced_losses(risk, torch.tensor([[0.1], [0.2]], dtype=torch.float64))
    block = torch.tensor([[0.5], [-3.0], [0.25]], dtype=torch.float64)
    found = displaced_losses(risk, block, finite=False)
    assert found.isfinite().tolist() == [[True, True], [False, False], [True, True]]
    with pytest.raises(ValueError, match="example 0 of 2 is nan") as caught:
        displaced_losses(risk, block)
    with pytest.raises(ValueError, match="example 0") as alone:
        risk.losses(block[1])
    assert str(caught.value) == str(alone.value)
    first = displaced_losses(risk, block.flip(0)[1:], finite=False)  # the check itself sees one
    assert first.isfinite().tolist() == [[False, False], [True, True]]


def test_blocks_hold_everything_in_order_within_their_bytes(monkeypatch):
    risk = cases.make("mlp").risk()
    block = steps(risk, 7)
    each = risk.num_params * 8 + len(risk) * risk.footprint.activation
    for room, sizes in ((3 * each, [3, 3, 1]), (each - 1, [1] * 7), (100 * each, [7])):
        monkeypatch.setattr(displaced, "_TOGETHER_BYTES", room)
        blocks = list(in_blocks(risk, iter(block)))
        assert [len(b) for b in blocks] == sizes
        assert torch.equal(torch.cat(blocks), block)
    assert list(in_blocks(risk, iter([]))) == []


def test_weights_of_unequal_examples_and_float32():
    risk = cases.make("weighted").risk(microbatch_size=2)
    block = steps(risk)
    assert torch.allclose(displaced_losses(risk, block), one_by_one(risk, block), rtol=1e-10)
    case = cases.make("layer_norm")
    single = cp.EmpiricalRisk(case.model.float(), case.loss, case.data)
    block = steps(single)
    assert torch.allclose(displaced_losses(single, block), one_by_one(single, block), rtol=1e-5, atol=1e-6)
    assert "points together" in single.checked


def test_an_interruption_is_not_taken_for_a_failure():
    calls = []

    def loss(outputs, batch):
        calls.append(1)
        if len(calls) > start:
            raise KeyboardInterrupt
        return cp.losses.mse(outputs, batch)

    start = 10**9
    risk = cp.EmpiricalRisk(nn.Linear(3, 2).double(), loss, (block_of(6, 3), block_of(6, 2)))
    start = len(calls)
    with pytest.raises(KeyboardInterrupt):
        displaced_losses(risk, steps(risk))
    assert "points one by one" not in risk.checked
