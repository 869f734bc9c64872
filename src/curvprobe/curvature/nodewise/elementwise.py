"""Operations that act on every number by itself: their slopes and bends, and which numbers a choice takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from curvprobe.curvature.nodewise.local import Local, Pushed, lifted

Curve = Callable[[Local], tuple[Any, Any]]
"""First and second derivative of a function of every number."""


def push_curve(at: Local, curve: Curve) -> Pushed:
    """A function of every number: ``t f'``, and ``adjoint f'' t_a t_b``."""
    tangent = at.tangents[0]
    slope, bend = curve(at)
    pairs = [] if at.adjoint is None else [(tangent * (at.adjoint * bend / 2), tangent)]
    return [tangent * slope], pairs


def push_kink(at: Local, slope_of: Callable[[Local], Tensor]) -> Pushed:
    """A function of straight pieces, which bends nowhere; at a kink the slope is autograd's."""
    return [at.tangents[0] * slope_of(at)], []


def _gelu(at: Local) -> tuple[Tensor, Tensor]:
    x = at.args[0]
    if at.options.get("approximate", "none") == "tanh":
        scale, cubic = math.sqrt(2 / math.pi), 0.044715
        t = (scale * (x + cubic * x**3)).tanh()
        first, second, sech = scale * (1 + 3 * cubic * x**2), scale * 6 * cubic * x, 1 - t * t
        slope = (1 + t) / 2 + x * sech * first / 2
        return slope, sech * first + x * (sech * second - 2 * t * sech * first**2) / 2
    density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return (1 + torch.erf(x / math.sqrt(2))) / 2 + x * density, (2 - x * x) * density


def _sigmoid(y: Tensor) -> tuple[Tensor, Tensor]:
    slope = y * (1 - y)
    return slope, slope * (1 - 2 * y)


def _tanh(y: Tensor) -> tuple[Tensor, Tensor]:
    slope = 1 - y * y
    return slope, -2 * y * slope


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(x)
    slope, bend = _sigmoid(s)
    return s + x * slope, 2 * slope + x * bend


def _log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(-x)
    return s, -_sigmoid(s)[0]


def _erf(x: Tensor) -> tuple[Tensor, Tensor]:
    slope = 2 / math.sqrt(math.pi) * torch.exp(-x * x)
    return slope, -2 * x * slope


def _softplus(at: Local) -> tuple[Tensor, Tensor]:
    x, beta, threshold = at.args[0], at.argument(1, 1.0), at.argument(2, 20.0)
    straight, s = x * beta > threshold, torch.sigmoid(beta * x)
    return torch.where(straight, 1.0, s), torch.where(straight, 0.0, beta * _sigmoid(s)[0])


def _elu(at: Local) -> tuple[Tensor, Tensor]:
    x, alpha, scale, steep = at.args[0], at.argument(1, 1.0), at.argument(2, 1.0), at.argument(3, 1.0)
    curved = alpha * steep * scale * torch.exp(steep * x.clamp(max=0))
    return torch.where(x > 0, scale, curved), torch.where(x > 0, 0.0, steep * curved)


def _celu(at: Local) -> tuple[Tensor, Tensor]:
    x, alpha = at.args[0], at.argument(1, 1.0)
    curved = torch.exp(x.clamp(max=0) / alpha)
    return torch.where(x > 0, 1.0, curved), torch.where(x > 0, 0.0, curved / alpha)


def _power(at: Local) -> tuple[Any, Any]:
    x, p = at.args[:2]
    if isinstance(p, Tensor) or not isinstance(x, Tensor):
        raise NotImplementedError("a power whose exponent is a tensor")
    if p in (0, 1, 2):  # without a negative power of zero
        return (0.0, 1.0, 2 * x)[int(p)], (0.0, 0.0, 2.0)[int(p)]
    return p * x ** (p - 1), p * (p - 1) * x ** (p - 2)


BY_OUTPUT: dict[str, Callable[[Tensor], tuple[Any, Any]]] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "exp": lambda y: (y, y),
    "exp2": lambda y: (math.log(2) * y, math.log(2) ** 2 * y),
    "expm1": lambda y: (y + 1, y + 1),
    "sqrt": lambda y: (0.5 / y, -0.25 / y**3),
    "rsqrt": lambda y: (-0.5 * y**3, 0.75 * y**5),
    "reciprocal": lambda y: (-y * y, 2 * y**3),
}
"""Derivatives that are easiest in the output."""

BY_INPUT: dict[str, Callable[[Tensor], tuple[Any, Any]]] = {
    "log": lambda x: (1 / x, -1 / (x * x)),
    "log1p": lambda x: (1 / (1 + x), -1 / (1 + x) ** 2),
    "log2": lambda x: (1 / (math.log(2) * x), -1 / (math.log(2) * x * x)),
    "sin": lambda x: (x.cos(), -x.sin()),
    "cos": lambda x: (-x.sin(), -x.cos()),
    "sinh": lambda x: (x.cosh(), x.sinh()),
    "cosh": lambda x: (x.sinh(), x.cosh()),
    "atan": lambda x: (1 / (1 + x * x), -2 * x / (1 + x * x) ** 2),
    "erf": _erf,
    "silu": _silu,
    "log_sigmoid_forward": _log_sigmoid,
}
"""Derivatives in the input."""


def _by_output(at: Local, derivatives: Callable[[Tensor], tuple[Any, Any]]) -> tuple[Any, Any]:
    return derivatives(at.outputs[0])


def _by_input(at: Local, derivatives: Callable[[Tensor], tuple[Any, Any]]) -> tuple[Any, Any]:
    return derivatives(at.args[0])


CURVES: dict[str, Curve] = {
    **{name: partial(_by_output, derivatives=found) for name, found in BY_OUTPUT.items()},
    **{name: partial(_by_input, derivatives=found) for name, found in BY_INPUT.items()},
    **{"pow": _power, "gelu": _gelu, "softplus": _softplus, "elu": _elu, "celu": _celu},
}
"""Smooth functions of every number."""


def _within(at: Local, low: Any, high: Any) -> Tensor:
    """One where autograd lets the derivative of a clamp through."""
    x = at.args[0]
    inside = torch.ones_like(x, dtype=torch.bool)
    if low is not None:
        inside = inside & (x >= low)
    if high is not None:
        inside = inside & (x <= high)
    return inside.to(x.dtype)


def _hardtanh(at: Local) -> Tensor:
    x = at.args[0]
    inside: Tensor = (x > at.argument(1, -1.0)) & (x < at.argument(2, 1.0))
    return inside.to(x.dtype)


def _leaky_relu(at: Local) -> Tensor:
    x, slope = at.args[0], at.argument(1, 0.01)
    return torch.where(x > 0, torch.ones_like(x), slope)


KINKS: dict[str, Callable[[Local], Tensor]] = {
    "relu": lambda at: (at.args[0] > 0).to(at.args[0].dtype),
    "abs": lambda at: at.args[0].sign(),
    "leaky_relu": _leaky_relu,
    "threshold": lambda at: (at.args[0] > at.args[1]).to(at.args[0].dtype),
    "hardtanh": _hardtanh,
    "clamp": lambda at: _within(at, at.argument(1, None), at.argument(2, None)),
    "clamp_min": lambda at: _within(at, at.args[1], None),
    "clamp_max": lambda at: _within(at, None, at.args[1]),
}
"""Functions of every number that are made of straight pieces."""


def push_larger(at: Local) -> Pushed:
    """The larger or smaller of two numbers; of equal ones half of each, as autograd has it."""
    x, y, found = at.args[0], at.args[1], at.outputs[0]
    halves = torch.where(x == y, 0.5, 1.0).to(found.dtype)
    total = torch.zeros(at.dim, *found.shape, dtype=found.dtype, device=found.device)
    for place, value in enumerate((x, y)):
        tangent = at.tangent(place)
        if tangent is not None:
            total = total + lifted(tangent, found.dim()) * ((value == found) * halves)
    return [total], []
