"""Tiny models, losses and data, one per kind of layer; float64 unless asked otherwise."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import curvprobe as cp


@dataclass(frozen=True)
class Case:
    model: nn.Module
    loss: Callable
    data: Any  # n examples
    candidates: Any  # m examples

    def risk(self, **options) -> cp.EmpiricalRisk:
        return cp.EmpiricalRisk(self.model, self.loss, self.data, **options)

    def batches(self, data: Any = None) -> list[Any]:
        """One batch per example."""
        data = self.data if data is None else data
        if isinstance(data, Tensor):
            return [data[i : i + 1] for i in range(len(data))]
        if isinstance(data, dict):
            n = len(next(iter(data.values())))
            return [{k: v[i : i + 1] for k, v in data.items()} for i in range(n)]
        return [tuple(t[i : i + 1] for t in data) for i in range(len(data[0]))]


class Attention(nn.Module):
    """One causal attention block through torch's fused function, with RMSNorm and an embedding."""

    def __init__(self, vocabulary: int = 7, width: int = 4, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.norm = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
        return self.head(x)


class DictModel(nn.Module):
    """A token classifier called with keyword arguments, like Hugging Face's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 3)
        self.head = nn.Linear(3, 6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(input_ids).cumsum(1).tanh()
        return {"logits": self.head(x)}


class Gate(nn.Module):
    """A mixture of two experts: some examples do not touch the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, gate = x.new_zeros(len(x), 3), x[:, 0] > 0
        for expert, rows in ((self.first, gate), (self.second, ~gate)):
            if rows.any():
                out = out.index_put((rows,), expert(x[rows]))
        return out


class SquareOnce(torch.autograd.Function):
    """The square, by a backward that autograd does not differentiate again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return 2 * ctx.saved_tensors[0] * slope


def _classifier(*layers: nn.Module, inputs: tuple[int, ...] = (3,), classes: int = 3) -> Case:
    model = nn.Sequential(*layers).double().eval()
    x, y = torch.randn(9, *inputs, dtype=torch.float64), torch.randint(classes, (9,))
    return Case(model, cp.losses.cross_entropy, (x[:6], y[:6]), (x[6:], y[6:]))


def _tokens(model: nn.Module) -> Case:
    tokens = torch.randint(7, (8, 5))
    return Case(model.double(), cp.losses.causal_lm, tokens[:5], tokens[5:])


def mlp() -> Case:
    return _classifier(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def layer_norm() -> Case:
    return _classifier(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))


def batch_norm() -> Case:
    case = _classifier(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    norm = case.model[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return case


def rms_norm() -> Case:
    return _classifier(nn.Linear(3, 5), nn.RMSNorm(5), nn.GELU(), nn.Linear(5, 3))


def convolution() -> Case:
    layers = (nn.Conv2d(1, 2, 3, padding=1), nn.Softplus(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    return _classifier(*layers, inputs=(1, 4, 4))


def regression() -> Case:
    model = nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 2)).double()
    x, y = torch.randn(9, 2, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    return Case(model, cp.losses.mse, (x[:6], y[:6]), (x[6:], y[6:]))


def attention() -> Case:
    return _tokens(Attention())


def tied() -> Case:
    return _tokens(Attention(tied=True))


def weighted() -> Case:
    """Sequences of unequal length as dict batches: token-count weights."""
    tokens = torch.randint(6, (8, 6))
    mask = torch.arange(6)[None] < torch.tensor([6, 3, 5, 2, 6, 4, 2, 6])[:, None]
    data = {"input_ids": tokens, "attention_mask": mask.long()}
    first, rest = ({k: v[rows] for k, v in data.items()} for rows in (slice(0, 5), slice(5, 8)))
    return Case(DictModel().double(), cp.losses.causal_lm, first, rest)


CASES: dict[str, Callable[[], Case]] = {
    make.__name__: make
    for make in (mlp, layer_norm, batch_norm, rms_norm, convolution, regression, attention, tied, weighted)
}


def make(name: str, seed: int = 0) -> Case:
    """A case by name, the same every time; the global generator is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CASES[name]()


# ---- vectors and matrices, and how close is close -----------------------------------------------------------------

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def close(value: Any, expected: Any) -> bool:
    value, expected = (torch.as_tensor(v).detach() for v in (value, expected))
    return value.dtype == expected.dtype and torch.allclose(value, expected, rtol=1e-10, atol=1e-13)


def block_of(n: int, b: int, seed: int = 0) -> Tensor:
    """Gaussian vectors (n, b)."""
    return torch.randn(n, b, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(spectrum: list[float], seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues, in a random frame."""
    generator = torch.Generator().manual_seed(1000 + seed)
    n = len(spectrum)
    frame = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    return (frame * torch.tensor(spectrum, dtype=torch.float64)) @ frame.T


# ---- what is watched while the package works ----------------------------------------------------------------------


def bits(tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model and the process that the package must leave alone, bit by bit."""
    cuda, legacy = torch.backends.cuda, numpy.random.get_state()  # noqa: NPY002
    return {
        "tensors": [(n, id(t), bits(t)) for n, t in [*model.named_parameters(), *model.named_buffers()]],
        "gradients": [(n, p.requires_grad, id(p.grad), bits(p.grad)) for n, p in model.named_parameters()],
        "training": [(name, module.training) for name, module in model.named_modules()],
        "torch": bits(torch.get_rng_state()),
        "numpy": (legacy[1].tobytes(), *legacy[2:]),
        "python": random.getstate(),
        "attention": (cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled()),
        "fast paths": (cuda.cudnn_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
    }


class Ledger(saved_tensors_hooks):
    """Counts the bytes that autograd holds now, the most it held at one time, and all that it was given."""

    def __init__(self) -> None:
        self.now = self.peak = self.total = 0
        ledger = self

        class Held:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor = tensor.detach()  # itself, it would keep its graph alive in a cycle
                self.size = tensor.numel() * tensor.element_size()
                ledger.now += self.size
                ledger.total += self.size
                ledger.peak = max(ledger.peak, ledger.now)

            def __del__(self) -> None:
                ledger.now -= self.size

        super().__init__(Held, lambda held: held.tensor)
