import copy
import random

import numpy
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import Dataset, TensorDataset

import curvprobe as cp
from tests import cases, reference

CE = cp.losses.cross_entropy


def close(value, expected) -> bool:
    value, expected = (torch.as_tensor(v).detach() for v in (value, expected))
    return value.dtype == expected.dtype and torch.allclose(value, expected, rtol=1e-10, atol=1e-13)


def reference_of(case, batches) -> tuple[float, torch.Tensor]:
    value = reference.risk_value(case.model, case.loss, batches)
    return value.item(), reference.gradient(value, reference.trainable(case.model))


def agrees(risk: cp.EmpiricalRisk, expected: tuple[float, torch.Tensor]) -> bool:
    return risk.value() == pytest.approx(expected[0], rel=1e-10) and close(risk.gradient(), expected[1])


# ---- values against plain loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("microbatch_size", [1, 2, 4, None])
def test_risk_equals_the_loop_over_examples(case, microbatch_size):
    risk = case.risk(microbatch_size=microbatch_size)
    values, weights = reference.example_losses(case.model, case.loss, case.batches())
    assert close(risk.losses(), torch.stack(values).double())
    assert risk.weights.tolist() == weights
    assert agrees(risk, reference_of(case, case.batches()))


@pytest.mark.parametrize("microbatch_size", [1, 2])
def test_curvature_does_not_depend_on_the_microbatch(case, microbatch_size):
    small, whole = case.risk(microbatch_size=microbatch_size), case.risk()
    vector = torch.randn(whole.num_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(cp.hessian(small) @ vector, cp.hessian(whole) @ vector, rtol=1e-10, atol=1e-12)


def test_the_mean_is_over_tokens_not_over_batches():
    case = cases.make("weighted")
    risk = case.risk(microbatch_size=2)
    batch_means = [risk[start : start + 2].value() for start in (0, 2, 4)]
    expected = float((risk.weights @ risk.losses()) / 17)
    assert risk.value() == pytest.approx(expected, rel=1e-12)
    assert abs(sum(batch_means) / 3 - expected) > 1e-4
    assert abs(float(risk.losses().mean()) - expected) > 1e-4


@pytest.mark.parametrize("cached", [False, True])
def test_selections(case, cached):
    risk, batches = case.risk(microbatch_size=2), case.batches()
    if cached:
        risk.value()
    mask = torch.zeros(len(risk), dtype=torch.bool)
    mask[[1, 4]] = True
    selections = [
        (slice(3), [0, 1, 2]),
        (slice(None, None, -2), list(range(len(risk)))[::-2]),
        ([3, 1], [3, 1]),
        (mask, [1, 4]),
        (torch.tensor([4, 0]), [4, 0]),
        (2, [2]),
        (-1, [len(risk) - 1]),
        (numpy.int64(1), [1]),
    ]
    for selection, rows in selections:
        assert len(risk[selection]) == len(rows)
        assert agrees(risk[selection], reference_of(case, [batches[i] for i in rows]))
    assert close(risk[[4, 2, 0]][[2, 0]].losses(), risk.losses()[[0, 4]])


def test_a_list_of_flags_is_a_mask_or_refused():
    risk = cases.make("mlp").risk()
    flags = [False, False, True, True, False, False]
    try:
        rows = risk[flags].losses()
    except (TypeError, ValueError):
        return
    assert torch.equal(rows, risk.losses()[2:4])


@pytest.mark.parametrize("selection", [6, -7, [0, 6], slice(2, 2), [], torch.zeros(6).bool(), torch.ones(4).bool()])
def test_selections_outside_the_sample(selection):
    with pytest.raises((IndexError, ValueError), match="examples?"):
        cases.make("mlp").risk()[selection]


@pytest.mark.parametrize("selection", ["1", 1.5, None, torch.tensor([1.5])])
def test_selections_of_another_type(selection):
    with pytest.raises(TypeError, match="cannot select examples by"):
        cases.make("mlp").risk()[selection]


def test_other_examples(case):
    risk = case.risk(microbatch_size=2)
    risk.value()
    other = risk.on(case.candidates)
    assert len(other) == 3
    assert other.param_names == risk.param_names
    assert agrees(other, reference_of(case, case.batches(case.candidates)))
    assert agrees(risk, reference_of(case, case.batches()))


def test_a_dataset_gives_what_its_tensors_give():
    case = cases.make("mlp")
    risk = cp.EmpiricalRisk(case.model, case.loss, TensorDataset(*case.data), microbatch_size=4)
    assert torch.equal(risk.losses(), case.risk(microbatch_size=4).losses())
    assert close(risk[[5, 1]].gradient(), case.risk()[[5, 1]].gradient())
    assert torch.equal(risk.on(TensorDataset(*case.candidates)).losses(), risk.on(case.candidates).losses())


@pytest.mark.parametrize("microbatch_size", [1, None])
def test_displaced_losses_are_those_of_a_displaced_model(case, microbatch_size):
    risk = case.risk(microbatch_size=microbatch_size)
    step = 0.1 * torch.randn(risk.num_params, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moved, at = copy.deepcopy(case.model), 0
    with torch.no_grad():
        for p in reference.trainable(moved):
            p += step[at : at + p.numel()].view(p.shape)
            at += p.numel()
    values, _ = reference.example_losses(moved, case.loss, case.batches())
    assert close(risk.losses(step), torch.stack(values).double())
    assert risk.value(step) == pytest.approx(
        reference.risk_value(moved, case.loss, case.batches()).item(), rel=1e-10
    )
    assert agrees(risk, reference_of(case, case.batches()))


class Gate(nn.Module):
    """A mixture of two experts: some examples do not touch the first."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        out, gate = x.new_zeros(len(x), 3), x[:, 0] > 0
        for expert, rows in ((self.first, gate), (self.second, ~gate)):
            if rows.any():
                out = out.index_put((rows,), expert(x[rows]))
        return out


@pytest.mark.parametrize("microbatch_size", [1, None])
@pytest.mark.parametrize("together", [False, True], ids=["gradient", "projection"])
def test_examples_that_do_not_touch_the_probed_parameters(microbatch_size, together):
    x, y = cases.make("mlp").data
    case = cases.Case(Gate().double(), CE, (x, y), None)
    assert 0 < int((x[:, 0] > 0).sum()) < 6
    risk = case.risk(params=["first.*"], microbatch_size=microbatch_size)
    expected = reference_of(case, case.batches())[1][:12]
    if together:
        sample = cp.project(risk, cp.Subspace.from_basis(torch.eye(12, dtype=torch.float64)))
        assert close(sample.gradient.mean(0), expected)
        assert sample.gradient[x[:, 0] <= 0].abs().sum() == 0
    else:
        assert close(risk.gradient(), expected)


def test_padding_masks_under_the_fast_path_of_torch_encoders():
    """nn.TransformerEncoder takes another path without gradients, with other values at padded positions."""

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(4, 3)

        def forward(self, x, padding):
            return self.head(self.encoder(x, src_key_padding_mask=padding).sum(1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Pooled().double().eval()
        padding = torch.arange(5)[None] >= torch.tensor([5, 3, 4, 2])[:, None]
        x, labels = torch.randn(4, 5, 4, dtype=torch.float64), torch.randint(3, (4,))
    case = cases.Case(model, CE, {"x": x, "padding": padding, "labels": labels}, None)
    assert agrees(case.risk(), reference_of(case, case.batches()))


# ---- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_raised_and_said(dtype):
    case = cases.make("mlp")
    low = copy.deepcopy(case.model).to(dtype)
    risk = cp.EmpiricalRisk(low, case.loss, case.data)
    same = cp.EmpiricalRisk(copy.deepcopy(low).float(), case.loss, case.data)
    assert risk.upcast_from == (str(dtype),)
    assert same.upcast_from == case.risk().upcast_from == ()
    assert risk.dtype == torch.float32
    assert torch.equal(risk.losses(), same.losses())
    assert torch.equal(risk.gradient(), same.gradient())
    assert {p.dtype for p in low.parameters()} == {dtype}


def test_a_frozen_low_precision_base_under_float32_adapters():
    case = cases.make("mlp")
    model = copy.deepcopy(case.model).float()
    model[0].to(torch.bfloat16).requires_grad_(False)
    risk = cp.EmpiricalRisk(model, case.loss, case.data)
    assert risk.upcast_from == ("torch.bfloat16",)
    assert risk.param_names == ["2.weight", "2.bias"]
    assert torch.equal(risk.losses(), cp.EmpiricalRisk(copy.deepcopy(model).float(), case.loss, case.data).losses())


def test_a_float32_model_reads_float64_data(case):
    single = cp.EmpiricalRisk(copy.deepcopy(case.model).float(), case.loss, case.data)
    assert single.dtype == single.gradient().dtype == torch.float32
    assert single.losses().dtype == torch.float64
    assert torch.allclose(single.losses(), case.risk().losses(), rtol=1e-4)
    assert torch.allclose(single.gradient().double(), case.risk().gradient(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
@pytest.mark.parametrize("built_inside", [False, True])
def test_the_callers_context_does_not_matter(context, built_inside):
    case = cases.make("mlp")
    risk = case.risk()
    vector = torch.ones(risk.num_params, dtype=torch.float64)
    subspace = cp.random_subspace(risk, 2)
    with context():
        inside = case.risk() if built_inside else risk[:]
        results = inside.value(), inside.gradient(), cp.hessian(inside) @ vector, cp.project(inside, subspace).hessian
    outside = risk.value(), risk.gradient(), cp.hessian(risk) @ vector, cp.project(risk, subspace).hessian
    assert all(close(a, b) for a, b in zip(results, outside, strict=True))


# ---- a risk is a snapshot ------------------------------------------------------------------------------------------


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
            tensor += 0.5
    case.model.train()
    after = fresh.value(), fresh.gradient(), fresh.losses(step)
    assert all(close(a, b) for a, b in zip(after, before, strict=True))
    assert close(risk.on(case.data).losses(), risk.losses())
    case.model.eval()
    assert abs(case.risk(params=params).value() - before[0]) > 1e-3


def test_a_risk_keeps_the_mode_it_was_made_in():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double().eval()
    risk = cp.EmpiricalRisk(model, CE, cases.make("mlp").data)
    expected = risk.gradient()
    model.train()
    assert close(risk.gradient(), expected)
    assert all(module.training for module in model.modules())


def test_returned_losses_belong_to_the_caller():
    risk = cases.make("mlp").risk()
    value, weights = risk.value(), risk.weights.clone()
    risk.losses().zero_()
    risk.weights.mul_(2)
    assert risk.value() == value
    assert torch.equal(risk.weights, weights)


# ---- memory --------------------------------------------------------------------------------------------------------


class Ledger(saved_tensors_hooks):
    """Counts the bytes that autograd holds at one time, and their peak."""

    def __init__(self):
        self.now = self.peak = self.total = 0
        ledger = self

        class Held:
            def __init__(self, tensor):
                self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
                ledger.now += self.size
                ledger.total += self.size
                ledger.peak = max(ledger.peak, ledger.now)

            def __del__(self):
                ledger.now -= self.size

        super().__init__(Held, lambda held: held.tensor)


def measure(num_examples: int, microbatch_size: int, operation) -> Ledger:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_examples, 3, generator=generator, dtype=torch.float64)
    case = cases.make("layer_norm")
    risk = cp.EmpiricalRisk(case.model, CE, (x, (x[:, 0] > 0).long()), microbatch_size=microbatch_size)
    with Ledger() as ledger:
        operation(risk)
    return ledger


@pytest.mark.parametrize(
    "operation",
    [lambda risk: risk.gradient(), lambda risk: cp.hessian(risk) @ torch.ones(risk.num_params, 2).double()],
    ids=["gradient", "hessian"],
)
def test_memory_does_not_grow_with_the_number_of_examples(operation):
    few, many, larger = measure(8, 2, operation), measure(64, 2, operation), measure(64, 16, operation)
    assert few.peak == many.peak > 0
    assert many.total == 8 * few.total
    assert larger.peak > 3 * many.peak
    assert few.now == many.now == larger.now == 0


def test_the_automatic_microbatch_follows_the_size_of_an_example():
    torch.manual_seed(0)
    small, large = (
        cp.EmpiricalRisk(nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)), cp.losses.mse, data)
        for width, data in ((8, (torch.ones(9, 2), torch.ones(9))), (4096, (torch.ones(9, 2), torch.ones(9))))
    )
    assert large.activation_bytes >= 4096 * 4
    assert large.microbatch_size * large.activation_bytes <= 128 * 2**20 < 2 * large.microbatch_size * 2**30
    assert small.microbatch_size > 100 * large.microbatch_size
