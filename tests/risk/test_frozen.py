"""Frozen parameters: read where they lie, raised in use, and noticed where they change."""

import copy

import peft
import pytest
import torch
import transformers
from torch import nn

import curvprobe as cp
from curvprobe.risk.frozen import LEAN, Frozen, Raised
from tests import cases

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks by it

LOW = [torch.bfloat16, torch.float16]


class Reader(nn.Module):
    """An embedding, a recurrent layer, attention and a norm, all frozen, and a trained head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.read = nn.LSTM(8, 8, batch_first=True)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.scale = nn.Parameter(torch.randn(8))
        self.requires_grad_(False)
        self.inner = nn.Linear(8, 8)
        self.outer = nn.Parameter(torch.randn(4, 8), requires_grad=False)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens):
        x = self.norm(self.read(self.embed(tokens))[0].to(self.scale.dtype)) * self.scale
        x = torch.tanh(self.inner(x))
        x = self.attend(x, x, x, need_weights=False)[0]
        return self.head((x.mean(1) @ self.outer.T).relu().square())


def reader():
    return Reader(), cp.losses.cross_entropy, (torch.randint(11, (9, 5)), torch.arange(9) % 3)


def convolutions():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten())
    net.requires_grad_(False)
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Tanh(), net, nn.Linear(64, 3))
    return model.eval(), cp.losses.cross_entropy, (torch.randn(9, 1, 8, 8), torch.arange(9) % 3)


def adapted(base):
    is_gpt2 = hasattr(base, "transformer")
    modules = ["c_attn"] if is_gpt2 else ["q_proj", "v_proj"]
    config = peft.LoraConfig(r=2, target_modules=modules, fan_in_fan_out=is_gpt2)
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():  # as after some training: B begins at zero
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval(), cp.losses.causal_lm, torch.randint(19, (5, 7))


def gpt2():
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "bos_token_id": 1, "eos_token_id": 2}
    return adapted(transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=19, **sizes)))


def llama():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return adapted(transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=19, **sizes)))


MODELS = {"reader": reader, "convolutions": convolutions, "gpt2": gpt2, "llama": llama}


def made(name, dtype):
    """A model whose frozen parameters are of a low type, one with all of them raised, loss and data."""
    torch.manual_seed(0)
    model, loss, data = MODELS[name]()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model, copy.deepcopy(model).float(), loss, data


def close(found, expected):
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_low_frozen_parameters_give_what_raised_ones_give(name, dtype):
    model, raised, loss, data = made(name, dtype)
    risk, same = (cp.EmpiricalRisk(each, loss, data) for each in (model, raised))
    assert risk.upcast_from == (str(dtype),)
    assert torch.equal(risk.losses(), same.losses())
    close(risk.gradient(), same.gradient())
    block = torch.randn(risk.num_params, 2)
    close(cp.hessian(risk) @ block, cp.hessian(same) @ block)
    close(cp.hessian(risk.in_double()) @ block.double(), cp.hessian(same.in_double()) @ block.double())
    space = cp.random_subspace(risk, 3)
    one, other = (cp.project(each, space) for each in (risk, same))
    close(one.gradient, other.gradient)
    close(one.hessian, other.hessian)
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {dtype}


@pytest.mark.parametrize("name", MODELS)
def test_nothing_frozen_is_copied_or_kept_raised(name):
    model, _, loss, data = made(name, torch.bfloat16)
    risk = cp.EmpiricalRisk(model, loss, data)
    lies = {parameter.data_ptr() for parameter in model.parameters() if not parameter.requires_grad}
    for each in (risk, risk.in_double()):
        assert {tensor.data_ptr() for tensor in each.probed.state.kept.values()} == lies


def test_autograd_saves_no_raised_weight():
    layer = nn.Linear(500, 500).requires_grad_(False).bfloat16()
    model = nn.Sequential(nn.Linear(2, 500), nn.Tanh(), layer, nn.Tanh(), nn.Linear(500, 1))
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.randn(4, 2), torch.randn(4, 1)))
    assert risk.footprint.graph < 500 * 500  # bytes; the weight has 500,000, and a million raised


@pytest.mark.parametrize("name", MODELS)
def test_no_raised_weight_lives_on_in_a_graph(name):
    """Of a loss, or of its gradient: while they live, the weights that they need lie in the low type only."""
    model, _, loss, data = made(name, torch.bfloat16)
    probed = (risk := cp.EmpiricalRisk(model, loss, data)).probed
    with risk.undisturbed():
        leaves = probed.leaves()
        value = probed.batch_losses(leaves, next(risk.microbatches()))[0].sum()
        assert len(probed.raised._alive) == 0
        slopes = probed.first_order(value, leaves, create_graph=True)
        assert len(probed.raised._alive) == 0
        assert any(slope.requires_grad for slope in slopes)


def test_an_address_that_is_used_again_is_no_raised_tensor():
    raised, low = Raised(torch.float32), torch.ones(1000, dtype=torch.bfloat16)
    places, met = set(), 0
    for _ in range(500):
        places.add(raised.of(low).untyped_storage().data_ptr())  # gone at once
        other = torch.zeros(1000)
        met += other.data_ptr() in places
        assert raised.pack(other) is other
    assert met  # else nothing is tested


def test_a_view_of_a_raised_tensor_is_made_again():
    raised, low = Raised(torch.float32), torch.randn(1000).bfloat16()
    view = raised.of(low).view(10, 100).T[3:]
    packed = raised.pack(view)
    assert packed is not view
    assert torch.equal(raised.unpack(packed), view)
    assert torch.equal(view, low.float().view(10, 100).T[3:])


def test_head_of_a_frozen_low_model_left_to_the_loss():
    model, raised, loss, data = made("llama", torch.bfloat16)
    risk = cp.EmpiricalRisk(model.base_model.model, loss, data, forward=cp.before_head)
    same = cp.EmpiricalRisk(raised, loss, data)
    vector = torch.randn(risk.num_params)
    assert torch.allclose(risk.losses(), same.losses(), rtol=1e-6)
    close(cp.hessian(risk) @ vector, cp.hessian(same) @ vector)


class Transformed(nn.Module):
    """A transform of torch.func within its forward pass."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh()).requires_grad_(False)
        self.out = nn.Linear(6, 1)

    def forward(self, x):
        def inner(z):
            return self.out(self.net(z))

        if self.how == "jvp":
            return torch.func.jvp(inner, (x,), (torch.ones_like(x),))[1]
        if self.how == "jacrev":
            return torch.stack([torch.func.jacrev(lambda z: inner(z).sum())(z) for z in x])[:, :1]
        return torch.func.vmap(torch.func.grad(lambda z: inner(z).sum()))(x)[:, :1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("how", ["jvp", "jacrev", "vmap"])
def test_transforms_within_a_model_go_without_lean_graphs(how, dtype):
    model = Transformed(how)
    model.net.to(dtype)
    x, y = torch.randn(6, 2), torch.randn(6, 1)
    risk, same = (cp.EmpiricalRisk(each, cp.losses.mse, (x, y)) for each in (model, copy.deepcopy(model).float()))
    vector = torch.randn(risk.num_params)
    close(cp.hessian(risk) @ vector, cp.hessian(same) @ vector)
    precision = {finding.check: finding for finding in cp.examine(risk, dim=2).findings}["precision"]
    assert "cannot be evaluated in float64" not in precision.said


def test_a_fault_of_the_model_itself_leaves_lean_graphs_as_they_are():
    class Narrow(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x @ torch.ones(2, 1)  # float32 whatever the model's type

    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False).bfloat16(), Narrow(2, 1))
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.randn(4, 2), torch.randn(4, 1)))
    assert risk.probed.fast_paths.open(LEAN)


def frozen_case():
    model = copy.deepcopy(cases.make("mlp").model).float()
    model[0].requires_grad_(False)
    case = cases.make("mlp")
    return model, cp.EmpiricalRisk(model, case.loss, case.data)


CHANGES = {
    "in place": lambda weight: weight.add_(1.0),
    "through data": lambda weight: weight.data.mul_(1.001),
    "one number": lambda weight: weight.view(-1)[1].add_(1.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_frozen_parameter_that_changes_is_noticed(change):
    model, risk = frozen_case()
    risk.losses()
    with torch.no_grad():
        change(model[0].weight)
    with pytest.raises(ValueError, match=r"frozen parameter 0\.weight has changed since the risk was made.*deepcopy"):
        cp.hessian(risk) @ torch.ones(risk.num_params)
    with pytest.raises(ValueError, match="has changed"):
        risk[:1].gradient()


def test_training_of_what_is_trained_does_not_matter():
    model, risk = frozen_case()
    before = risk.gradient()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    assert torch.equal(risk[:].gradient(), before)


def test_trainable_parameters_that_are_left_out_are_copied():
    case = cases.make("mlp")
    model = copy.deepcopy(case.model)
    risk = cp.EmpiricalRisk(model, case.loss, case.data, params=["2.*"])
    before = risk.losses()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert torch.equal(risk[:].losses(), before)


def test_a_frozen_embedding_that_cuts_its_norms_is_left_as_it_was():
    model = nn.Sequential(nn.Embedding(7, 4, max_norm=0.5).requires_grad_(False), nn.Flatten(), nn.Linear(8, 3))
    before = model[0].weight.clone()
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (torch.randint(7, (6, 2)), torch.arange(6) % 3))
    assert float((cp.hessian(risk) @ torch.ones(risk.num_params)).norm()) > 0
    assert torch.equal(model[0].weight, before)


def test_a_model_that_changes_a_frozen_parameter_in_its_forward_is_refused():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = nn.Parameter(torch.zeros(1), requires_grad=False)
            self.head = nn.Linear(2, 1)

        def forward(self, x):
            with torch.no_grad():
                self.seen.add_(1.0)
            return self.head(x)

    with pytest.raises(ValueError, match="frozen parameter seen has changed"):
        cp.EmpiricalRisk(Counter(), cp.losses.mse, (torch.randn(4, 2), torch.randn(4, 1)))


ODD = {
    "nan": torch.tensor([1.0, float("nan"), 2.0]),
    "complex": torch.randn(3, dtype=torch.complex64),
    "whole numbers": torch.arange(40).view(8, 5).T,
    "empty": torch.empty(0, 3),
    "one number": torch.tensor(2.0),
    "booleans": torch.tensor([True, False]),
}


@pytest.mark.parametrize("tensor", ODD.values(), ids=ODD)
def test_frozen_tensors_of_any_kind_are_watched(tensor):
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    frozen = Frozen.of({"odd": tensor})
    frozen.check()
    if tensor.numel():
        with torch.no_grad():
            tensor.data.view(-1)[0:1] = ~tensor.data.view(-1)[0:1] if tensor.dtype == torch.bool else 7
        with pytest.raises(ValueError, match="the frozen parameter odd has changed"):
            frozen.check()
