import copy

import pytest
import torch
from torch import nn

import curvprobe as cp
from curvprobe.risk.parameters import select_parameters, upcast
from tests import cases


class Adapted(nn.Module):
    """A frozen layer with a trainable low-rank adapter, as LoRA has it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(3, 4).requires_grad_(False)
        self.lora_a = nn.Linear(3, 2, bias=False)
        self.lora_b = nn.Linear(2, 4, bias=False)

    def forward(self, x):
        return self.base(x) + self.lora_b(self.lora_a(x))


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


EVERY = ["0.weight", "0.bias", "2.weight", "2.bias"]
SELECTIONS = {
    "none": (None, EVERY),
    "predicate": (lambda name: name.endswith("bias"), ["0.bias", "2.bias"]),
    "name": (["2.weight"], ["2.weight"]),
    "pattern": (["2.*"], ["2.weight", "2.bias"]),
    "model order": (("2.bias", "0.*"), ["0.weight", "0.bias", "2.bias"]),
    "overlapping": (["*.bias", "0.*", "0.bias"], ["0.weight", "0.bias", "2.bias"]),
    "case": (["*eight"], ["0.weight", "2.weight"]),
}


@pytest.mark.parametrize(("selection", "names"), SELECTIONS.values(), ids=SELECTIONS)
def test_selection_by_name(selection, names):
    assert select_parameters(mlp(), selection) == names


@pytest.mark.parametrize("selection", [None, ["*"], lambda name: True], ids=["none", "pattern", "predicate"])
def test_frozen_parameters_are_never_probed(selection):
    model = mlp()
    model[0].requires_grad_(False)
    assert select_parameters(model, selection) == ["2.weight", "2.bias"]


def test_adapters_on_a_frozen_base():
    names = ["lora_a.weight", "lora_b.weight"]
    assert select_parameters(Adapted(), None) == names
    assert select_parameters(Adapted(), ["*lora_*"]) == names
    assert select_parameters(Adapted(), ["lora_b*"]) == names[1:]
    with pytest.raises(ValueError, match=r"'base\.\*' matches frozen parameters only.*requires_grad_"):
        select_parameters(Adapted(), ["lora_a*", "base.*"])
    with pytest.raises(ValueError, match="predicate accepts no trainable parameter"):
        select_parameters(Adapted(), lambda name: name.startswith("base"))


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
@pytest.mark.parametrize("by", ["pattern", "predicate"])
def test_a_tied_parameter_is_selected_by_either_name(name, by):
    model = cases.Attention(tied=True)
    selection = [name] if by == "pattern" else lambda candidate: candidate == name
    assert select_parameters(model, selection) == ["embed.weight"]


def test_a_tied_parameter_counts_once():
    model = cases.Attention(tied=True)
    assert select_parameters(model, None) == ["embed.weight", "norm.weight", "qkv.weight"]
    assert cases.make("tied").risk().num_params == 7 * 4 + 4 + 3 * 4 * 4
    assert cases.make("attention").risk().num_params == 2 * 7 * 4 + 4 + 3 * 4 * 4


def test_a_tied_parameter_takes_both_derivatives():
    torch.manual_seed(0)
    shared = nn.Linear(2, 2, bias=False)
    model = nn.Sequential(shared, nn.Tanh(), shared).double()
    x, y = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, y), params=["2.weight"])
    (expected,) = torch.autograd.grad((model(x) - y).square().mean(), [shared.weight])
    assert risk.param_names == ["0.weight"]
    assert torch.allclose(risk.gradient(), expected.flatten(), rtol=1e-10)


def test_the_flat_order_is_that_of_the_names():
    case = cases.make("mlp")
    full, part = case.risk().gradient(), case.risk(params=["2.bias", "0.weight"])
    pieces = dict(zip(EVERY, full.split([12, 4, 12, 3]), strict=True))
    assert part.param_names == ["0.weight", "2.bias"]
    assert part.num_params == 15
    assert torch.allclose(part.gradient(), torch.cat([pieces["0.weight"], pieces["2.bias"]]), rtol=1e-10)


REFUSED = {
    "string": ("0.*", TypeError, r"string '0\.\*'; expected a list.*\['0\.\*'\]"),
    "unknown": (["0.*", "9.*"], ValueError, r"'9\.\*' matches no parameter; names: 0\.weight"),
    "other case": (["0.Weight"], ValueError, r"'0\.Weight' matches no parameter"),
    "nobody": (lambda name: False, ValueError, r"accepts no trainable parameter; their names: 0\.weight"),
    "empty": ([], TypeError, "expected None, a predicate"),
    "tensors": (mlp().parameters(), TypeError, "expected None, a predicate on the name"),
    "number": (5, TypeError, "expected None, a predicate on the name"),
}


@pytest.mark.parametrize(("selection", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_selections(selection, error, message):
    with pytest.raises(error, match=message):
        select_parameters(mlp(), selection)


@pytest.mark.parametrize("selection", [None, ["*"], lambda name: True], ids=["none", "pattern", "predicate"])
def test_a_model_with_nothing_to_probe(selection):
    with pytest.raises(ValueError, match="the model has no parameters"):
        select_parameters(nn.Tanh(), selection)
    with pytest.raises(ValueError, match=r"no trainable parameter: all 4.*requires_grad_"):
        select_parameters(mlp().requires_grad_(False), selection)


def test_long_lists_of_names_are_cut():
    model = nn.ModuleList(nn.Linear(1, 1) for _ in range(20))
    with pytest.raises(ValueError, match=r"\.\.\. \(40 in all\)$") as caught:
        select_parameters(model, ["nothing"])
    assert len(str(caught.value)) < 250


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


def test_upcast_raises_low_precision_only():
    for dtype in (torch.bfloat16, torch.float16):
        tensor = torch.randn(3, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert upcast(tensor).dtype == torch.float32
        assert torch.equal(upcast(tensor).to(dtype), tensor)
    for dtype in (torch.float32, torch.float64, torch.int64, torch.bool):
        assert upcast(torch.ones(3, dtype=dtype)).dtype == dtype
