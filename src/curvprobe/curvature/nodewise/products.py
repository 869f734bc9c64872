"""Products of two tensors: what they add couples the tangents of one factor with those of the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from curvprobe.curvature.nodewise.local import Local, Pair, Pushed, lifted


def push_mm(at: Local) -> Pushed:
    """``X @ W`` with tangents (D, t, d) and (D, d, o)."""
    tangent, pairs = _mm(at, at.args[0], at.args[1], at.tangent(0), at.tangent(1), at.adjoint)
    return [tangent], pairs


def push_addmm(at: Local) -> Pushed:
    """``beta C + alpha X @ W``."""
    alpha, beta = at.options.get("alpha", 1), at.options.get("beta", 1)
    adjoint = at.adjoint if at.adjoint is None else alpha * at.adjoint if alpha != 1 else at.adjoint
    tangent, pairs = _mm(at, at.args[1], at.args[2], at.tangent(1), at.tangent(2), adjoint)
    return [_plus(tangent if alpha == 1 or tangent is None else alpha * tangent, at, beta)], pairs


def _plus(tangent: Tensor | None, at: Local, beta: float) -> Tensor:
    """Tangents of a product, with those of what is added to it."""
    added, found = at.tangent(0), at.outputs[0]
    if added is None:
        assert tangent is not None
        return tangent
    added = lifted(added if beta == 1 else beta * added, found.dim())
    return added.expand(at.dim, *found.shape) if tangent is None else tangent + added


def _mm(
    at: Local, x: Tensor, w: Tensor, moved_x: Tensor | None, moved_w: Tensor | None, adjoint: Tensor | None
) -> tuple[Tensor | None, list[Pair]]:
    """For many examples all directions of a weight are columns of one matrix, which they share; one example alone is
    multiplied with each direction, in a batch that needs no copies."""
    total = None if moved_x is None else moved_x @ w
    if moved_w is None:
        return total, []
    dim, inner, columns = moved_w.shape
    bends, back = None if moved_x is None else adjoint, None
    if at.alone:
        beside = x.expand(dim, *x.shape)
        total = torch.bmm(beside, moved_w) if total is None else torch.baddbmm(total, beside, moved_w)
        back = None if bends is None else torch.bmm(bends.expand(dim, *bends.shape), moved_w.mT)
    else:
        by_weight = (x @ moved_w.mT.reshape(dim * columns, inner).T).reshape(len(x), dim, columns).transpose(0, 1)
        total = by_weight if total is None else total + by_weight
        if bends is not None:
            flat = moved_w.permute(2, 0, 1).reshape(columns, dim * inner)
            back = (bends @ flat).reshape(len(x), dim, inner).transpose(0, 1)
    return total, [] if moved_x is None or back is None else [(moved_x, back)]


def push_bmm(at: Local) -> Pushed:
    """Batched matrices, such as attention's."""
    tangent, pairs = _bmm(at.args[0], at.args[1], at.tangent(0), at.tangent(1), at.adjoint)
    return [tangent], pairs


def push_baddbmm(at: Local) -> Pushed:
    """``beta C + alpha X @ W`` of batched matrices."""
    alpha, beta = at.options.get("alpha", 1), at.options.get("beta", 1)
    adjoint = None if at.adjoint is None else alpha * at.adjoint
    tangent, pairs = _bmm(at.args[1], at.args[2], at.tangent(1), at.tangent(2), adjoint)
    return [_plus(tangent if tangent is None else alpha * tangent, at, beta)], pairs


def _bmm(
    x: Tensor, y: Tensor, moved_x: Tensor | None, moved_y: Tensor | None, adjoint: Tensor | None
) -> tuple[Tensor | None, list[Pair]]:
    parts = [moved_x @ y] if moved_x is not None else []
    parts += [x @ moved_y] if moved_y is not None else []
    total = sum(parts[1:], start=parts[0]) if parts else None
    if moved_x is None or moved_y is None or adjoint is None:
        return total, []
    if x.numel() <= y.numel():
        return total, [(moved_x, adjoint @ moved_y.mT)]
    return total, [(moved_y, moved_x.mT @ adjoint)]


def push_mv(at: Local) -> Pushed:
    """A matrix times a vector."""
    adjoint = None if at.adjoint is None else at.adjoint[:, None]
    moved = at.tangent(1)
    column = None if moved is None else moved[..., None]
    tangent, pairs = _mm(at, at.args[0], at.args[1][:, None], at.tangent(0), column, adjoint)
    assert tangent is not None
    return [tangent[..., 0]], pairs


def push_mul(at: Local) -> Pushed:
    """Numbers times numbers, where one of the two may be spread over the other."""
    x, y = at.args[0], at.args[1]
    moved_x, moved_y = at.tangent(0), at.tangent(1)
    shape = at.outputs[0].shape
    if moved_x is not None and moved_y is not None:
        moved_x, moved_y = lifted(moved_x, len(shape)), lifted(moved_y, len(shape))
        pairs = [] if at.adjoint is None else [(moved_x, at.adjoint * moved_y)]
        return [torch.addcmul(moved_x * y, moved_y, x)], pairs
    moved, constant = (moved_x, y) if moved_x is not None else (moved_y, x)
    assert moved is not None
    return [(lifted(moved, len(shape)) * constant).expand(at.dim, *shape)], []


def push_div(at: Local) -> Pushed:
    """A quotient ``q = x / y``: ``q_a = (x_a - q y_a) / y``, and ``-(q_a y_b + q_b y_a) / y``."""
    if at.options.get("rounding_mode") is not None:
        raise NotImplementedError("a quotient that is rounded")
    y, quotient = at.args[1], at.outputs[0]
    moved_x, moved_y = at.tangent(0), at.tangent(1)
    rank, shape = quotient.dim(), (at.dim, *quotient.shape)
    above = None if moved_x is None else lifted(moved_x, rank)
    if moved_y is None:
        assert above is not None
        return [(above / y).expand(shape)], []
    below = lifted(moved_y, rank)
    tangent = ((0 if above is None else above) - quotient * below) / y
    return [tangent.expand(shape)], [] if at.adjoint is None else [(tangent * (-at.adjoint / y), below)]


def push_convolution(at: Local) -> Pushed:
    """``convolution(x, w, bias, ...)``: all directions of a weight are channels of one convolution."""
    x, w, _, *settings = at.args
    moved_x, moved_w, moved_bias = (at.tangent(place) for place in range(3))
    parts = []
    if moved_x is not None:
        parts.append(vmap(lambda t: at.function(t, w, None, *settings))(moved_x))
    if moved_w is not None:
        parts.append(vmap(lambda t: at.function(x, t, None, *settings))(moved_w))
    if moved_bias is not None:
        spread = moved_bias.reshape(at.dim, 1, -1, *[1] * (at.outputs[0].dim() - 2))
        parts.append(spread.expand(at.dim, *at.outputs[0].shape))
    tangent = sum(parts[1:], start=parts[0])
    if moved_x is None or moved_w is None or at.adjoint is None:
        return [tangent], []
    adjoint = at.adjoint

    def pulled(t: Tensor) -> Any:
        return torch.ops.aten.convolution_backward(adjoint, x, t, None, *settings, [True, False, False])[0]

    return [tangent], [(moved_x, vmap(pulled)(moved_w))]
