"""Losses at several points together are those at each, whatever the model."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import curvprobe as cp
from curvprobe.risk.displaced import TOGETHER, displaced_losses, in_blocks
from tests import cases
from tests.cases import block_of, state_of


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
    assert risk.probed.fast_paths.verdicts[TOGETHER]


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
    assert not risk.probed.fast_paths.verdicts[TOGETHER]
    assert state_of(model) == before


def same_by(rule) -> tuple[type[torch.autograd.Function], list[int]]:
    """An operation with this batching rule that does nothing, and one entry for every use of the rule."""
    uses = []

    class Same(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, slope):
            return slope

        @staticmethod
        def vmap(info, in_dims, x):
            uses.append(1)
            return rule(x, len(uses)), in_dims[0]

    return Same, uses


def batched_by(rule, **options) -> tuple[cp.EmpiricalRisk, list[int]]:
    """A risk whose loss goes through an operation with this batching rule, and one entry for every use of it."""
    (same, uses), case = same_by(rule), cases.make("mlp")

    def loss(outputs, batch):
        return case.loss(same.apply(outputs), batch)

    return cp.EmpiricalRisk(case.model, loss, case.data, **options), uses


def shaped_by(rule) -> tuple[cp.EmpiricalRisk, list[int]]:
    """The same on sequences (n, 4, 2), for a rule that goes by what it is given: (points, n, length, 1)."""
    same, uses = same_by(lambda x, use: rule(x))
    torch.manual_seed(0)
    model, data = nn.Linear(2, 1).double(), torch.ones(5, 4, 2, dtype=torch.float64).cumsum(0)
    return cp.EmpiricalRisk(model, lambda outputs, batch: same.apply(outputs).square().mean((1, 2)), data), uses


@pytest.mark.parametrize("count", [1, 4])
def test_a_displaced_pass_allows_derivatives_and_asks_for_none(count):
    """A model may differentiate on its way, as one of forces does; nothing is kept for a backward pass."""
    seen, case = [], cases.make("mlp")

    def loss(outputs, batch):
        seen.append((torch.is_grad_enabled(), outputs.requires_grad))
        return case.loss(outputs, batch)

    risk = cp.EmpiricalRisk(case.model, loss, case.data)
    for pass_ in (one_by_one, displaced_losses):
        seen.clear()
        assert not pass_(risk, steps(risk, count)).requires_grad
        assert set(seen) == {(True, False)}


class Force(nn.Linear):
    """What it returns is a derivative in its inputs."""

    def forward(self, x):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            energy = super().forward(at).tanh().square().sum()
            return torch.autograd.grad(energy, at, create_graph=True)[0]


def test_a_model_that_differentiates_on_its_way():
    torch.manual_seed(0)
    x, y = block_of(6, 3), block_of(6, 3, seed=1)
    model = Force(3, 2).double()
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, y))
    block = steps(risk)
    found = displaced_losses(risk, block)
    assert torch.allclose(found, one_by_one(risk, block), rtol=1e-10)
    for step, losses in zip(block, found, strict=True):
        weight, bias = step[:6].view(2, 3) + model.weight.detach(), step[6:] + model.bias.detach()
        z = (x @ weight.T + bias).tanh()
        expected = ((2 * z * (1 - z.square())) @ weight - y).square().mean(1)
        assert torch.allclose(losses, expected, rtol=1e-10)


def test_an_operation_may_bring_its_own_batching_rule():
    risk, uses = batched_by(lambda x, use: x.clone())
    block = steps(risk)
    for _ in range(2):
        assert torch.allclose(displaced_losses(risk, block), one_by_one(risk, block), rtol=1e-10)
    assert risk.probed.fast_paths.verdicts[TOGETHER]
    assert uses == [1, 1, 1]  # the comparison, and each of the two


@pytest.mark.parametrize("factor", [1 + 1e-6, float("nan")])
def test_wrong_batching_is_found_out_and_not_used_again(factor):
    risk, uses = batched_by(lambda x, use: factor * x)
    block = steps(risk)
    for _ in range(2):
        assert torch.equal(displaced_losses(risk, block), one_by_one(risk, block))
    assert not risk.probed.fast_paths.verdicts[TOGETHER]
    assert uses == [1]


def test_batching_that_is_wrong_for_other_examples_is_found_out_there():
    """The rule is right at the sample's shape, and was compared there."""
    risk, uses = shaped_by(lambda x: 1.001 * x if x.shape[-2] > 4 else x.clone())
    block = steps(risk)
    assert torch.allclose(displaced_losses(risk, block), one_by_one(risk, block), rtol=1e-10)
    assert risk.probed.fast_paths.verdicts[TOGETHER]
    assert uses == [1, 1]
    longer = risk.on(torch.ones(5, 6, 2, dtype=torch.float64).cumsum(1))
    for _ in range(2):
        assert torch.equal(displaced_losses(longer, block), one_by_one(longer, block))
    assert not risk.probed.fast_paths.verdicts[TOGETHER]
    assert uses == [1, 1, 1]
    assert torch.equal(displaced_losses(risk, block), one_by_one(risk, block))
    assert uses == [1, 1, 1]


def test_batching_that_fails_later_is_not_used_from_then_on():
    def rule(x, use):
        if use > 1:
            raise NotImplementedError
        return x.clone()

    risk, uses = batched_by(rule)
    block = steps(risk)
    for _ in range(2):
        assert torch.equal(displaced_losses(risk, block), one_by_one(risk, block))
    assert not risk.probed.fast_paths.verdicts[TOGETHER]
    assert uses == [1, 1]


def test_one_point_needs_no_batching():
    risk, uses = batched_by(lambda x, use: pytest.fail("batched"))
    assert torch.equal(displaced_losses(risk, steps(risk, 1)), one_by_one(risk, steps(risk, 1)))
    assert uses == []
    assert risk.probed.fast_paths.verdicts == {}


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
        risk.probed.fast_paths.give_up(TOGETHER)
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


def within(risk: cp.EmpiricalRisk, total: int) -> cp.EmpiricalRisk:
    """The same risk for work in so many bytes, however few."""
    budget = replace(risk.budget, total=total, stated=True)
    return cp.EmpiricalRisk.of(risk.probed, risk.sample, budget, given_microbatch_size=risk.microbatch_size)


@pytest.mark.parametrize("microbatch_size", [2, None])
def test_blocks_hold_everything_in_order_within_half_of_the_budget(microbatch_size):
    risk = cases.make("mlp").risk(microbatch_size=microbatch_size)
    block = steps(risk, 7)
    rows = min(len(risk), risk.microbatch_size)
    each = 4 * risk.num_params * 8 + rows * risk.footprint.activation
    for room, sizes in ((3 * each, [3, 3, 1]), (each - 1, [1] * 7), (100 * each, [7])):
        blocks = list(in_blocks(iter(block), within(risk, 2 * room)))
        assert [len(b) for b in blocks] == sizes
        assert torch.equal(torch.cat(blocks), block)
    assert list(in_blocks(iter([]), risk)) == []


def draws_in_little_room(total: int, examples: int, new_examples: int) -> tuple[list[tuple[int, int]], int, float]:
    """Points and examples of every batched pass, the most bytes that one of them takes, and what the draws give."""
    passes = []

    def rule(x, use):  # (points, examples, classes)
        passes.append((x.shape[0], x.shape[1]))
        return x.clone()

    risk, _ = batched_by(rule, memory_budget=total)
    x, y = block_of(examples + new_examples, 3), torch.arange(examples + new_examples) % 3
    new = risk.on((x[examples:], y[examples:]))
    moment = cp.direct_monte_carlo(risk.on((x[:examples], y[:examples])), new, cp.IsotropicProbe(0.1), num_probes=50)
    footprint = risk.footprint
    most = max(points * (4 * footprint.vector + rows * footprint.activation) for points, rows in passes)
    return passes, most, moment.value


def test_draws_keep_to_half_of_the_budget():
    passes, most, value = draws_in_little_room(2**14, 10, 1)
    assert most <= 2**13
    assert {rows for _, rows in passes} == {10, 1}
    assert 2 < max(points for points, _ in passes) < 50
    easy, _, same = draws_in_little_room(2**26, 10, 1)
    assert max(points for points, _ in easy) == 50
    assert value == pytest.approx(same, rel=1e-10)


def test_draws_keep_to_half_of_the_budget_on_many_new_examples_too():
    """As many as fill their own microbatches, next to a small sample whose passes take little."""
    passes, most, value = draws_in_little_room(2**16, 2, 200)
    assert max(rows for _, rows in passes) > 2
    assert value == pytest.approx(draws_in_little_room(2**26, 2, 200)[2], rel=1e-10)
    assert most <= 2**15


def test_weights_of_unequal_examples_and_float32():
    risk = cases.make("weighted").risk(microbatch_size=2)
    block = steps(risk)
    assert torch.allclose(displaced_losses(risk, block), one_by_one(risk, block), rtol=1e-10)
    case = cases.make("layer_norm")
    single = cp.EmpiricalRisk(case.model.float(), case.loss, case.data)
    block = steps(single)
    assert torch.allclose(displaced_losses(single, block), one_by_one(single, block), rtol=1e-5, atol=1e-6)
    assert single.probed.fast_paths.verdicts[TOGETHER]


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
    assert TOGETHER not in risk.probed.fast_paths.verdicts
