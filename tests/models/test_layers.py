"""Layers whose statistics, noise, reparametrisation or derivative need a word."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import curvprobe as cp
from tests.models.hand import agrees, first_product, refused, rows

CE = cp.losses.cross_entropy
DOUBLE = torch.float64


def between(*layers: nn.Module, width: int = 4, outputs: int | None = None) -> nn.Sequential:
    """A classifier of vectors with these layers in the middle; float64, in eval mode."""
    first, last = nn.Linear(3, width), nn.Linear(width if outputs is None else outputs, 3)
    return nn.Sequential(first, *layers, nn.Tanh(), last).double().eval()


def vectors(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, dtype=DOUBLE), torch.randint(3, (count,))


def risk_of(model: nn.Module, data: tuple[Tensor, Tensor] | None = None) -> cp.EmpiricalRisk:
    return cp.EmpiricalRisk(model, CE, vectors() if data is None else data)


def check_works(model: nn.Module, data: tuple[Tensor, Tensor] | None = None) -> None:
    x, y = vectors() if data is None else data
    agrees(cp.EmpiricalRisk(model, CE, (x, y)), model, lambda a, b: functional.cross_entropy(model(a), b), rows(x, y))


# ---- normalisation


def with_statistics(norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def test_batch_norm_in_eval_mode():
    check_works(between(with_statistics(nn.BatchNorm1d(4))))


def test_batch_norm_in_train_mode():
    with refused("model.eval()"):
        risk_of(between(nn.BatchNorm1d(4)).train())


def test_batch_norm_without_statistics():
    with refused("track_running_stats=True"):
        risk_of(between(nn.BatchNorm1d(4, track_running_stats=False)))


NORMS = {
    "group": lambda: between(nn.GroupNorm(2, 4)),
    "layer": lambda: between(nn.LayerNorm(4)),
    "rms": lambda: between(nn.RMSNorm(4)),
    "instance": lambda: between(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, affine=True), nn.Flatten()),
}


@pytest.mark.parametrize("kind", list(NORMS))
def test_norms_within_an_example(kind):
    check_works(NORMS[kind]())


# ---- reparametrised weights


def test_weight_norm():
    with refused("weight_norm"):
        first_product(risk_of(between(parametrizations.weight_norm(nn.Linear(4, 4)))))


def test_weight_norm_folded():
    model = between(parametrizations.weight_norm(nn.Linear(4, 4)))
    parametrize.remove_parametrizations(model[1], "weight")
    check_works(model)


def test_old_weight_norm():
    with pytest.warns(FutureWarning, match="deprecated"):
        layer = nn.utils.weight_norm(nn.Linear(4, 4))
    with refused("weight_norm"):
        first_product(risk_of(between(layer)))


def test_spectral_norm_in_eval_mode():
    check_works(between(parametrizations.spectral_norm(nn.Linear(4, 4))))


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm], ids=["new", "old"])
def test_spectral_norm_in_train_mode(norm):
    with refused("model.eval()"):
        risk_of(between(norm(nn.Linear(4, 4))).train())


def test_pruned_layer():
    layer = nn.Linear(4, 4)
    prune.random_unstructured(layer, "weight", amount=0.5)
    check_works(between(layer))


def test_orthogonal_layer():
    check_works(between(parametrizations.orthogonal(nn.Linear(4, 4))))


def test_orthogonal_rectangle():
    check_works(between(parametrizations.orthogonal(nn.Linear(4, 6)), outputs=6))


# ---- embeddings


class Words(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 4, **options), nn.Linear(4, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.embedding(words).cumsum(1).tanh().mean(1))


WORDS = torch.tensor([[1, 2, 0, 0], [3, 1, 4, 0], [5, 5, 2, 1], [2, 0, 0, 0], [4, 3, 5, 1]])


class Tempered(nn.Module):
    """A classifier with a temperature, whose parameter has no dimension, as in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.log_scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh() * self.log_scale.exp()


def test_scalar_parameter():
    check_works(Tempered().double())


def test_padding_row():
    check_works(Words(padding_idx=0).double(), (WORDS, torch.arange(5) % 3))


def test_max_norm():
    with refused("set its .max_norm = None"):
        risk_of(Words(max_norm=1.0).double(), (WORDS, torch.arange(5) % 3))


@pytest.mark.parametrize("option", ["scale_grad_by_freq", "sparse"])
def test_gradients_for_the_optimizer(option):
    model, y = Words(**{option: True}).double(), torch.arange(5) % 3
    plain = Words().double()
    plain.load_state_dict(model.state_dict())
    risk = cp.EmpiricalRisk(model, CE, (WORDS, y))
    agrees(risk, plain, lambda a, b: functional.cross_entropy(plain(a), b), rows(WORDS, y))
    assert getattr(model.embedding, option)


def test_lazy_layer():
    with refused("dummy batch"):
        risk_of(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3)))


# ---- noise


def test_dropout_in_eval_mode():
    check_works(between(nn.Dropout(0.5)))


def test_dropout_in_train_mode():
    with refused("model.eval()"):
        risk_of(between(nn.Dropout(0.5)).train())


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_functional_dropout():
    with refused("functional dropout"):
        risk_of(between(Lambda(lambda x: functional.dropout(x, 0.1))))


class StochasticDepth(nn.Module):
    """Leaves a layer out for one example in twenty."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x + self.layer(x)
        return x + self.layer(x) * (torch.rand(len(x), 1) > 0.05) / 0.95


def test_stochastic_depth_in_eval_mode():
    check_works(between(StochasticDepth()))


@pytest.mark.parametrize("seed", range(5))
def test_stochastic_depth_in_train_mode(seed):
    model, data = between(StochasticDepth()).train(), vectors(40)
    torch.manual_seed(seed)
    with refused("model.eval()"):
        risk_of(model, data)


# ---- derivatives


def test_relu_in_place():
    check_works(between(nn.ReLU(inplace=True)))


def test_what_relu_gave_changed_in_place():
    with refused("write x = x + y for x += y"):
        risk_of(between(Lambda(lambda x: functional.relu(x).add_(x))))


def test_what_relu_gave_changed_in_place_behind_what_is_frozen():
    model = between(Lambda(lambda x: functional.relu(x).add_(x)))
    model[0].requires_grad_(False)
    check_works(model)


def test_kinks_of_relu():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    for layer in model[::2]:
        nn.init.zeros_(layer.bias)
    x, y = vectors()
    x[0] = 0  # every unit of the first layer is on its kink
    check_works(model, (x, y))


def test_piecewise_constant_layer():
    with refused("params="):
        first_product(risk_of(between(Lambda(lambda x: x + (x.round() - x).detach()))))


def test_detached_backbone():
    with refused("leave out the parameters behind it with params="):
        first_product(risk_of(between(Lambda(torch.Tensor.detach))))


def test_detached_backbone_that_is_left_out():
    model, (x, y) = between(Lambda(torch.Tensor.detach)), vectors()
    model[0].requires_grad_(False)
    check_works(model, (x, y))


class Reversal(torch.autograd.Function):
    """Hands the gradient on with the other sign."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope):
        return -slope


def test_gradient_reversal():
    with refused("params="):
        first_product(risk_of(between(Lambda(Reversal.apply))))


class Cube(torch.autograd.Function):
    """A backward that autograd can differentiate again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0] ** 2 * slope


class CubeOnce(Cube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return Cube.backward(ctx, slope)


class CubeByDetaching(Cube):
    @staticmethod
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * slope


def test_custom_function():
    check_works(between(Lambda(Cube.apply)))


def test_fake_quantisation():
    quantise = Lambda(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127))
    with refused("replace it"):
        first_product(risk_of(between(quantise)))


@pytest.mark.parametrize("alter", [lambda g: g.clamp(-1e-3, 1e-3), lambda g: 2 * g], ids=["clipped", "scaled"])
def test_gradient_hook(alter):
    def hooked(x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(alter)
        return x

    with refused("leave out the parameters behind it with params="):
        first_product(risk_of(between(Lambda(hooked))))


@pytest.mark.parametrize(
    "operation", [lambda x: torch.cdist(x[:, None], x[:, None] + 1)[:, 0], None], ids=["cdist", "embedding bag"]
)
def test_operation_without_a_second_derivative(operation):
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(5, 4), nn.Linear(4, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.bag(tokens).tanh())

    with refused("replace it by operations that have one"):
        if operation is None:
            tokens = torch.randint(5, (4, 3))
            first_product(cp.EmpiricalRisk(Bags(), cp.losses.cross_entropy, (tokens, torch.arange(4) % 3)))
        else:
            first_product(risk_of(between(Lambda(operation), outputs=1)))


def test_custom_function_once_differentiable():
    with refused("replace it"):
        first_product(risk_of(between(Lambda(CubeOnce.apply))))


def test_custom_function_with_a_wrong_second_derivative():
    with refused("replace it"):
        first_product(risk_of(between(Lambda(CubeByDetaching.apply))))


class Checkpointed(nn.Module):
    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.options = {"use_reentrant": use_reentrant}

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layer, x, **self.options)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    with refused("activation checkpointing"):
        risk_of(between(Checkpointed(use_reentrant=use_reentrant)))


def test_distance_at_zero():
    def distance(x: Tensor) -> Tensor:
        return torch.cat([x, (x - x.detach()).norm(dim=1, keepdim=True)], 1)

    with refused("no finite second derivative"):
        first_product(risk_of(between(Lambda(distance), outputs=5)))
