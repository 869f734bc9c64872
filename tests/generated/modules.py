"""Layers by name, from which a recipe chooses."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune

from tests.generated.layers import (
    WIDTH,
    Attending,
    Bookkeeping,
    Buffered,
    Cross,
    Cube,
    Expanded,
    Frozen,
    Function,
    Gate,
    Grouped,
    Norm,
    Normed,
    Packed,
    Recurrent,
    Remembering,
    Residual,
    Rotary,
    Seeded,
    Slope,
    Strided,
    Tied,
    TiedBuffers,
    Twice,
    Twins,
    Weighted,
)

Maker = Callable[[], nn.Module]


def linear() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH)


def _pruned() -> nn.Module:
    layer = linear()
    return prune.l1_unstructured(layer, "weight", amount=0.4)


def _spectral() -> nn.Module:
    layer = parametrizations.spectral_norm(linear())
    for _ in range(3):
        layer(torch.randn(2, WIDTH))
    return layer


def _weight_norm() -> nn.Module:
    layer = linear()
    parametrize.register_parametrization(layer, "weight", Norm())
    return layer


def _hooked() -> nn.Module:
    layer = linear()
    layer.register_forward_pre_hook(lambda _, given: (1.5 * given[0],))
    layer.register_forward_hook(lambda _, given, out: out.sin() + given[0])
    return layer


def _watched() -> nn.Module:
    layer = nn.Sequential(linear(), nn.Sigmoid())
    layer.register_full_backward_hook(lambda *_: None)
    layer[0].register_forward_hook(lambda _, given, out: None)
    return layer


def _in_place() -> nn.Module:
    return nn.Sequential(linear(), nn.ReLU(inplace=True), nn.Dropout(0.3, inplace=True))


_ACTIVATIONS: tuple[Maker, ...] = (
    *(nn.Tanh, nn.GELU, nn.Softplus, nn.SiLU, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.Hardswish),
    *(nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Softsign, nn.Hardtanh, nn.ReLU6, nn.Softshrink),
    *(nn.Hardshrink, nn.Tanhshrink, nn.PReLU, nn.RReLU),
)

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu of tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "softmax": lambda x: x.softmax(-1),
    "log softmax": lambda x: x.log_softmax(-1),
    "squared relu": lambda x: x.relu().square(),
    "normalize": lambda x: functional.normalize(x + 0.5, dim=-1),
    "cumsum": lambda x: x.cumsum(-1).tanh(),
    "max": lambda x: x - x.max(-1, keepdim=True).values.tanh(),
    "sort": lambda x: x.sort(-1).values * 0.5,
    "fourier": lambda x: torch.fft.fft(x).real + 0.3 * torch.fft.fft(x).imag,
    "where": lambda x: torch.where(x > 0, x.exp().clamp(max=5.0), x.sin()),
    "abs": lambda x: x.abs().sqrt().clamp(min=0.1),
    "logsumexp": lambda x: x - x.logsumexp(-1, keepdim=True),
    "cube": lambda x: Cube.apply(x.tanh()),
    "roll": lambda x: x.roll(1, -1) * x,
    "erf": lambda x: torch.erf(x) + torch.lgamma(1.5 + x.sigmoid()),
    "variance": lambda x: x / (1e-3 + x.var(-1, keepdim=True)).sqrt(),
    "prod": lambda x: x + x.tanh().prod(-1, keepdim=True),
    "atan2": lambda x: torch.atan2(x, 2 + x.roll(1, -1).tanh()),
}

POINTWISE: dict[str, Maker] = {
    **{make.__name__: make for make in _ACTIVATIONS},
    **{name: (lambda function=function: Function(function)) for name, function in _FUNCTIONS.items()},
    "linear": linear,
    "LayerNorm": lambda: nn.LayerNorm(WIDTH),
    "LayerNorm without weights": lambda: nn.LayerNorm(WIDTH, elementwise_affine=False),
    "RMSNorm": lambda: nn.RMSNorm(WIDTH),
    "GroupNorm": Grouped,
    "BatchNorm": Normed,
    "BatchNorm without weights": lambda: Normed(affine=False),
    "Dropout": lambda: nn.Dropout(0.5),
    "AlphaDropout": nn.AlphaDropout,
    "GLU": lambda: nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GLU()),
    "bilinear": lambda: Weighted(lambda x, w: torch.einsum("...i,ijk,...j->...k", x, w, x).tanh(), (WIDTH,) * 3),
    "scalar": lambda: Weighted(lambda x, scale: x * scale.exp(), ()),
    "single": lambda: Weighted(lambda x, shift: x.sin() + shift, (1,)),
    "empty": lambda: Weighted(lambda x, none, w: x * w + none.sum(), (0,), (WIDTH,)),
    "low rank": lambda: Weighted(lambda x, a, b: x + x @ a @ b, (WIDTH, 1), (1, WIDTH)),
    "self-attention of features": lambda: Weighted(
        lambda x, q, k: (torch.softmax((x @ q)[..., :, None] * (x @ k)[..., None, :], -1) @ x[..., None])[..., 0],
        *[(WIDTH, WIDTH)] * 2,
    ),
    "unused": lambda: Weighted(lambda x, w, unused: x * w, (WIDTH,), (2, 3)),
    "slope": Slope,
    "rotary": Rotary,
    "bookkeeping": Bookkeeping,
    "expanded": Expanded,
    "pruned": _pruned,
    "old spectral_norm": lambda: nn.utils.spectral_norm(linear()),
    "strided": Strided,
    "buffered": Buffered,
    "remembering": Remembering,
    "gate": Gate,
    "seeded": lambda: Seeded(own=True),
    "seeded globally": lambda: Seeded(own=False),
    "frozen": Frozen,
    "tied": Tied,
    "in place": _in_place,
    "hooked": _hooked,
    "watched": _watched,
    "tied buffers": TiedBuffers,
    "orthogonal, exponential": lambda: parametrizations.orthogonal(linear(), orthogonal_map="matrix_exp"),
    "orthogonal, Cayley": lambda: parametrizations.orthogonal(linear(), orthogonal_map="cayley"),
    "orthogonal, Householder": lambda: parametrizations.orthogonal(linear(), orthogonal_map="householder"),
    "spectral_norm": _spectral,
    "weight norm": _weight_norm,
    "nn.Bilinear": lambda: Twins(nn.Bilinear(WIDTH, WIDTH, WIDTH)),
}
"""Layers on the last dimension of (n, WIDTH) or (n, T, WIDTH)."""


def held(layer: nn.Module) -> nn.Module:
    """The same with all parameters frozen."""
    return layer.requires_grad_(False)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda layer: layer,
    "residual": Residual,
    "twice": Twice,
    "held": held,
    "twice, residual": lambda layer: Twice(Residual(layer)),
}


# ---- images, signals and sequences


def _image_norm(norm: nn.Module) -> nn.Module:
    if norm.running_mean is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.3, 3.0)
    return norm


IMAGE: dict[str, Maker] = {
    "Conv2d": lambda: nn.Conv2d(2, 2, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(2, 2, 3, padding="same", groups=2, bias=False),
    "dilated, circular": lambda: nn.Conv2d(2, 2, 2, padding=1, dilation=2, padding_mode="circular"),
    "strided": lambda: nn.Conv2d(2, 2, (2, 1), stride=(1, 2), padding=1),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(2, 2, 2),
    "BatchNorm2d": lambda: _image_norm(nn.BatchNorm2d(2)),
    "GroupNorm": lambda: nn.GroupNorm(1, 2),
    "InstanceNorm2d": lambda: _image_norm(nn.InstanceNorm2d(2, affine=True)),
    "InstanceNorm2d, tracked": lambda: _image_norm(nn.InstanceNorm2d(2, affine=True, track_running_stats=True)),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(2, alpha=0.1),
    "MaxPool2d": lambda: nn.MaxPool2d(2, stride=1),
    "AvgPool2d": lambda: nn.AvgPool2d(2, stride=1, padding=1),
    "Upsample": lambda: nn.Upsample(scale_factor=1.5, mode="bilinear"),
    "Dropout2d": nn.Dropout2d,
    "SiLU": nn.SiLU,
    "ReLU": nn.ReLU,
    "PReLU": lambda: nn.PReLU(2),
    "Softmax2d": nn.Softmax2d,
}
"""Layers on (n, 2, H, W)."""

SIGNAL: dict[str, Maker] = {
    "Conv1d": lambda: nn.Conv1d(2, 2, 3, padding=1),
    "reflected": lambda: nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(2, 2, 2),
    "BatchNorm1d": lambda: _image_norm(nn.BatchNorm1d(2)),
    "GroupNorm": lambda: nn.GroupNorm(2, 2),
    "MaxPool1d": lambda: nn.MaxPool1d(2, stride=1),
    "LPPool1d": lambda: nn.Sequential(nn.Softplus(), nn.LPPool1d(2, 2, stride=1)),
    "AvgPool1d": lambda: nn.AvgPool1d(2, stride=1),
    "Tanh": nn.Tanh,
    "ELU": nn.ELU,
}
"""Layers on (n, 2, L)."""


SEQUENCE: dict[str, Maker] = {
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
    "RNN": lambda: Recurrent(nn.RNN, layers=2),
    "packed": Packed,
    "decoder layer": Cross,
    **{
        f"{way}, {'causal' if causal else 'both ways'}": (lambda way=way, causal=causal: Attending(way, causal))
        for way in ("layer", "mha", "function")
        for causal in (False, True)
    },
}
"""Layers on (n, T, WIDTH) and a mask (n, T) of what is not padding, which comes last."""
