"""Operations that set the numbers of a group in relation to one another: softmax, norms, variances."""

from __future__ import annotations

import torch
from torch import Tensor

from curvprobe.curvature.nodewise.local import Local, Pair, Pushed, dims_behind, lifted


def _mean_by(weights: Tensor, tangent: Tensor) -> Tensor:
    """``sum_j w_j t_j`` along the last dimension, which stays; a product of matrices needs no copy of the tangents."""
    return (tangent.unsqueeze(-2) @ weights.unsqueeze(-1)).squeeze(-1)


def push_softmax(at: Local) -> Pushed:
    """``y_a = y (x_a - <y, x_a>)``; with the weights ``y (adjoint - <y, adjoint>)`` it adds a covariance."""
    dim = at.args[1]
    tangent, y = at.tangents[0], at.outputs[0].transpose(dim, -1)
    moved = tangent.transpose(dims_behind(tangent, dim), -1)
    centred = moved - _mean_by(y, moved)
    pairs: list[Pair] = []
    if at.adjoint is not None:
        adjoint = at.adjoint.transpose(dim, -1)
        weight = y * (adjoint - (y * adjoint).sum(-1, keepdim=True))
        pairs = [(centred * (weight / 2), centred)]  # the means in it vanish or combine, as the weights sum to zero
    return [(centred * y).transpose(dims_behind(tangent, dim), -1)], pairs


def push_log_softmax(at: Local) -> Pushed:
    """``y = log softmax(x)``: minus the adjoint's sum times the covariance of the tangents under the probabilities."""
    dim = at.args[1]
    tangent, p = at.tangents[0], at.outputs[0].transpose(dim, -1).exp()
    moved = tangent.transpose(dims_behind(tangent, dim), -1)
    centred = moved - _mean_by(p, moved)
    pairs: list[Pair] = []
    if at.adjoint is not None:
        weight = -at.adjoint.transpose(dim, -1).sum(-1, keepdim=True) * p
        pairs = [(centred * (weight / 2), centred)]
    return [centred.transpose(dims_behind(tangent, dim), -1)], pairs


def push_logsumexp(at: Local) -> Pushed:
    """Probabilities times tangents, and their covariance."""
    x, tangent, keep = at.args[0], at.tangents[0], bool(at.argument(2, False))
    given = at.args[1] if isinstance(at.args[1], list | tuple) else [at.args[1]]
    dims = [d % x.dim() for d in given] if x.dim() else []
    found, adjoint = at.outputs[0], at.adjoint
    if not keep:
        for d in sorted(dims):
            found, adjoint = found.unsqueeze(d), adjoint if adjoint is None else adjoint.unsqueeze(d)
    behind = [d + 1 for d in dims]
    p = torch.exp(x - found)
    mean = (tangent * p).sum(behind, keepdim=True) if behind else tangent * p
    pairs: list[Pair] = []
    if adjoint is not None:
        centred = tangent - mean
        pairs = [(centred * (adjoint * p / 2), centred)]
    return [mean if keep or not behind else mean.sum(behind)], pairs


def _normalised(
    unit: Tensor, rate: Tensor, moved: Tensor, adjoint: Tensor | None, dims: list[int]
) -> tuple[Tensor, list[Pair]]:
    """Tangents of ``unit = (x - mean) rate``, where ``rate`` makes it of size one, from those of x, centred.

    With ``s_a = mean(unit c_a)``: ``unit_a = rate (c_a - unit s_a)``, and once more along b
    ``-rate (s_b unit_a + s_a unit_b + rate unit (mean(c_a c_b) - s_a s_b))``.
    """
    along = (unit * moved).mean(dims, keepdim=True)
    tangent = rate * (moved - unit * along)
    if adjoint is None:
        return tangent, []
    count = _count(moved, dims)
    one = [d - 1 for d in dims]
    weight = -(rate * rate) * (adjoint * unit).sum(one, keepdim=True) / 2
    across = (adjoint * tangent).sum(dims, keepdim=True)
    return tangent, [(-rate * across, along), (moved * (weight / count), moved), (-weight * along, along)]


def _count(moved: Tensor, dims: list[int]) -> int:
    count = 1
    for d in dims:
        count *= moved.shape[d]
    return count


def _scaled(
    unit: Tensor,
    moved: Tensor,
    scale: Tensor | None,
    moved_scale: Tensor | None,
    moved_shift: Tensor | None,
    adjoint: Tensor | None,
) -> tuple[Tensor, list[Pair]]:
    """Tangents of ``unit scale + shift``; all of them lifted."""
    tangent = moved if scale is None else moved * scale
    pairs: list[Pair] = []
    if moved_scale is not None:
        tangent = tangent + unit * moved_scale
        if adjoint is not None:
            pairs = [(adjoint * moved, moved_scale)]
    return tangent if moved_shift is None else tangent + moved_shift, pairs


def _still(at: Local, shape: tuple[int, ...]) -> Tensor:
    """Tangents of an input that does not move, behind a scale that does."""
    return torch.zeros(at.dim, *shape, dtype=at.outputs[0].dtype, device=at.outputs[0].device)


def push_layer_norm(at: Local) -> Pushed:
    """``native_layer_norm(x, shape, scale, shift, eps)``."""
    x, shape, scale = at.args[0], at.args[1], at.args[2]
    _, mean, rate = at.outputs
    unit, rank = (x - mean) * rate, x.dim()
    dims = list(range(rank + 1 - len(shape), rank + 1))
    moved = at.tangent(0)
    moved = _still(at, tuple(x.shape)) if moved is None else moved
    inner = at.adjoint if scale is None or at.adjoint is None else at.adjoint * scale
    tangent, pairs = _normalised(unit, rate, moved - moved.mean(dims, keepdim=True), inner, dims)
    scales, shifts = (None if t is None else lifted(t, rank) for t in (at.tangent(2), at.tangent(3)))
    tangent, more = _scaled(unit, tangent, scale, scales, shifts, at.adjoint)
    return [tangent, None, None], pairs + more


def push_group_norm(at: Local) -> Pushed:
    """``native_group_norm(x, scale, shift, n, channels, positions, groups, eps)``."""
    x, scale, _, n, channels, _, groups = at.args[:7]
    _, mean, rate = at.outputs
    grouped = (n, groups, -1)
    unit = (x.reshape(grouped) - mean.reshape(n, groups, 1)) * rate.reshape(n, groups, 1)
    moved = at.tangent(0)
    moved = _still(at, tuple(x.shape)) if moved is None else moved
    moved = moved.reshape(at.dim, *grouped)
    moved = moved - moved.mean([3], keepdim=True)
    by_channel = (channels, *[1] * (x.dim() - 2))
    wide = None if scale is None else scale.reshape(by_channel)
    inner = at.adjoint if wide is None or at.adjoint is None else at.adjoint * wide
    inner = None if inner is None else inner.reshape(grouped)
    tangent, pairs = _normalised(unit, rate.reshape(n, groups, 1), moved, inner, [3])
    scales, shifts = (None if t is None else t.reshape(at.dim, 1, *by_channel) for t in (at.tangent(1), at.tangent(2)))
    tangent, more = _scaled(unit.reshape(x.shape), tangent.reshape(at.dim, *x.shape), wide, scales, shifts, at.adjoint)
    return [tangent, None, None], pairs + more


def push_batch_norm(at: Local) -> Pushed:
    """``native_batch_norm(x, scale, shift, mean, variance, training, momentum, eps)``, by either statistics."""
    x, scale, _, mean, variance, training, _, eps = at.args[:8]
    by_channel = (-1, *[1] * (x.dim() - 2))
    mean, rate = at.outputs[1:3] if training else (mean, torch.rsqrt(variance + eps))
    rate = rate.reshape(by_channel)
    unit = (x - mean.reshape(by_channel)) * rate
    wide = None if scale is None else scale.reshape(by_channel)
    moved, pairs = at.tangent(0), list[Pair]()
    if moved is None:
        moved = _still(at, tuple(x.shape))
    elif training:  # as an instance-norm, whose channels are those of all examples
        dims = [1, *range(3, x.dim() + 1)]
        inner = at.adjoint if wide is None or at.adjoint is None else at.adjoint * wide
        moved, pairs = _normalised(unit, rate, moved - moved.mean(dims, keepdim=True), inner, dims)
    else:
        moved = moved * rate
    scales, shifts = (None if t is None else t.reshape(at.dim, 1, *by_channel) for t in (at.tangent(1), at.tangent(2)))
    tangent, more = _scaled(unit, moved, wide, scales, shifts, at.adjoint)
    return [tangent, None, None], pairs + more


def push_variance(at: Local) -> Pushed:
    """``var(x, dims, correction=, keepdim=)``: ``2 <c, t_a> / (n - correction)``, and the same of two tangents."""
    x, tangent = at.args[0], at.tangents[0]
    given = at.argument(1, None)
    dims = list(range(x.dim())) if given is None or given == [] else [d % x.dim() for d in given]
    behind = [d + 1 for d in dims]
    correction, keep = at.options.get("correction", 1), at.options.get("keepdim", False)
    centred = tangent - tangent.mean(behind, keepdim=True)
    free = _count(tangent, behind) - (1 if correction is None else correction)
    deviation = x - x.mean(dims, keepdim=True)
    found = (2 / free) * (deviation * centred).sum(behind, keepdim=keep)
    pairs: list[Pair] = []
    if at.adjoint is not None:
        adjoint = at.adjoint
        if not keep:
            for d in sorted(dims):
                adjoint = adjoint.unsqueeze(d)
        pairs = [(centred * (adjoint / free), centred)]
    return [found], pairs


def push_square_error(at: Local) -> Pushed:
    """``mse_loss(x, y, reduction)``."""
    x, y, reduction = at.args[0], at.args[1], at.argument(2, 1)
    rank = max(x.dim(), y.dim())
    moved = _difference(at, rank)
    difference, count = x - y, max(x.numel(), y.numel())
    by = 1 / count if reduction == 1 else 1.0
    found = 2 * by * difference * moved
    pairs: list[Pair] = [] if at.adjoint is None else [(moved * (by * at.adjoint), moved)]
    return [found if reduction == 0 else found.flatten(1).sum(1)], pairs


def _difference(at: Local, rank: int) -> Tensor:
    x, y = at.tangent(0), at.tangent(1)
    if y is None:
        assert x is not None
        return lifted(x, rank)
    return -lifted(y, rank) if x is None else lifted(x, rank) - lifted(y, rank)
