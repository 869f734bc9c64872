"""What is known of every operation: a table by its name in ATen, with a test of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from curvprobe.curvature.nodewise import normalisations, products
from curvprobe.curvature.nodewise.elementwise import CURVES, KINKS, push_curve, push_kink, push_larger
from curvprobe.curvature.nodewise.local import Local, Pushed, Rule, dims_behind, lifted

FLAT = frozenset(
    {
        *("detach", "sign", "floor", "ceil", "round", "trunc", "zeros_like", "ones_like", "full_like", "empty_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "zero", "fill"),
    }
)
"""Operations whose derivative is zero."""

LINEAR = (
    *(
        "alias",
        "view",
        "_unsafe_view",
        "t",
        "transpose",
        "permute",
        "expand",
        "slice",
        "select",
        "squeeze",
        "unsqueeze",
    ),
    *("clone", "_to_copy", "neg", "sum", "mean", "split", "split_with_sizes", "unbind", "unfold", "repeat", "flip"),
    *("roll", "cumsum", "diagonal", "tril", "triu", "index", "index_select", "gather", "diag_embed", "constant_pad_nd"),
    *("nll_loss_forward", "nll_loss2d_forward", "avg_pool2d", "avg_pool3d"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "im2col", "pixel_shuffle"),
    *("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d"),
)
"""Operations that are linear in the one tensor that may move."""

ADDITIVE = (
    *("cat", "stack", "where", "index_put", "scatter", "scatter_add", "index_add"),
    *("slice_scatter", "select_scatter", "diagonal_scatter"),
)
"""Operations that are linear in several tensors together: one that does not move has the tangent zero."""

PICKING = ("max", "min", "topk", "sort", "median", "kthvalue", "cummax", "cummin")
"""Operations that pick numbers along a dimension, and say which."""


def push_linear(at: Local) -> Pushed:
    """The operation itself, on the tangents."""
    moved, rebuild = _moving(at)
    if at.function.__name__.startswith("constant_pad_nd"):  # what it pads with does not move
        return [vmap(lambda t: torch.nn.functional.pad(t, at.args[1]))(moved[0])], []
    found = vmap(lambda *ts: at.function(*rebuild(ts), **at.options))(*moved)
    return _several(found), []


def push_additive(at: Local) -> Pushed:
    """The operation itself on the tangents, with zeros where nothing moves."""
    moved, rebuild = _moving(at, zero=True)
    return _several(vmap(lambda *ts: at.function(*rebuild(ts), **at.options))(*moved)), []


def _several(found: Any) -> list[Tensor | None]:
    """Tangents of the results that have some."""
    results = list(found) if isinstance(found, tuple | list) else [found]
    return [r if r.is_floating_point() else None for r in results]


def _moving(at: Local, *, zero: bool = False) -> tuple[list[Tensor], Callable[[tuple[Tensor, ...]], Any]]:
    """Tangents of the arguments that move, and the arguments with tangents in the place of values."""
    values, structure = pytree.tree_flatten(at.args)
    tangents = pytree.tree_leaves(at.tangents, is_leaf=lambda leaf: leaf is None)
    places = [i for i, tangent in enumerate(tangents) if isinstance(tangent, Tensor)]

    def still(value: Any) -> Any:
        floats = zero and isinstance(value, Tensor) and value.is_floating_point()
        return torch.zeros_like(value) if floats else value

    def rebuild(given: tuple[Tensor, ...]) -> Any:
        leaves = [still(value) for value in values]
        for place, tangent in zip(places, given, strict=True):
            leaves[place] = tangent
        return pytree.tree_unflatten(leaves, structure)

    return [tangents[place] for place in places], rebuild


def push_sum(at: Local, sign: int = 1) -> Pushed:
    """``x + alpha y`` or ``x - alpha y``, where one of the two may be a number or spread over the other."""
    alpha = sign * at.options.get("alpha", at.argument(2, 1))
    shape = at.outputs[0].shape
    x, y = (t if t is None else lifted(t, len(shape)) for t in (at.tangent(0), at.tangent(1)))
    if y is None:
        assert x is not None
        return [x.expand(at.dim, *shape)], []
    return [(alpha * y).expand(at.dim, *shape) if x is None else torch.add(x, y, alpha=alpha)], []


def push_reversed(at: Local) -> Pushed:
    """``rsub``: ``y - alpha x``."""
    alpha, shape = at.options.get("alpha", at.argument(2, 1)), at.outputs[0].shape
    x, y = (t if t is None else lifted(t, len(shape)) for t in (at.tangent(0), at.tangent(1)))
    if x is None:
        assert y is not None
        return [y.expand(at.dim, *shape)], []
    return [(-alpha * x).expand(at.dim, *shape) if y is None else torch.sub(y, x, alpha=alpha)], []


def push_masked_fill(at: Local) -> Pushed:
    """Tangents where nothing is filled in; a value that moves is refused."""
    if at.tangent(2) is not None:
        raise NotImplementedError("masked_fill with a value that moves")
    shape = at.outputs[0].shape
    return [lifted(at.tangents[0], len(shape)).masked_fill(at.args[1], 0.0).expand(at.dim, *shape)], []


def push_embedding(at: Local) -> Pushed:
    """Rows of the tangents of a table."""
    indices = at.args[1]
    rows = at.tangents[0].index_select(1, indices.reshape(-1))
    return [rows.reshape(at.dim, *indices.shape, -1)], []


def push_picking(at: Local) -> Pushed:
    """The tangents of the numbers that were picked."""
    tangent, picked = at.tangents[0], at.outputs[1]
    place = 2 if at.function.__name__.startswith(("topk", "kthvalue")) else 1
    dim = dims_behind(tangent, at.argument(place, -1))
    reduced = picked.dim() < tangent.dim() - 1
    indices = (picked.unsqueeze(dim - 1) if reduced else picked).expand(
        at.dim, *(picked.unsqueeze(dim - 1) if reduced else picked).shape
    )
    found = tangent.gather(dim, indices)
    return [found.squeeze(dim) if reduced else found, None], []


def push_extreme(at: Local) -> Pushed:
    """``amax`` and ``amin``: the mean of the tangents of all numbers that are the largest, as autograd has it."""
    x, tangent, found = at.args[0], at.tangents[0], at.outputs[0]
    keep, given = bool(at.argument(2, False)), at.argument(1, [])
    dims = [d % x.dim() for d in given] or list(range(x.dim()))
    if not keep:
        for d in sorted(dims):
            found = found.unsqueeze(d)
    share = (x == found).to(x.dtype)
    share = share / share.sum(dims, keepdim=True)
    return [(tangent * share).sum([d + 1 for d in dims], keepdim=keep)], []


def push_max_pool(at: Local) -> Pushed:
    """``max_pool2d_with_indices``: places are counted over the last two dimensions."""
    tangent, picked = at.tangents[0], at.outputs[1]
    indices = picked.flatten(-2).expand(at.dim, *picked.flatten(-2).shape)
    return [tangent.flatten(-2).gather(-1, indices).reshape(at.dim, *picked.shape), None], []


RULES: dict[str, Rule] = {
    **dict.fromkeys(LINEAR, push_linear),
    **dict.fromkeys(ADDITIVE, push_additive),
    **dict.fromkeys(PICKING, push_picking),
    **{name: partial(push_curve, curve=curve) for name, curve in CURVES.items()},
    **{name: partial(push_kink, slope_of=slope) for name, slope in KINKS.items()},
    "add": push_sum,
    "sub": partial(push_sum, sign=-1),
    "rsub": push_reversed,
    "masked_fill": push_masked_fill,
    "embedding": push_embedding,
    "amax": push_extreme,
    "amin": push_extreme,
    "maximum": push_larger,
    "minimum": push_larger,
    "max_pool2d_with_indices": push_max_pool,
    "mm": products.push_mm,
    "addmm": products.push_addmm,
    "bmm": products.push_bmm,
    "baddbmm": products.push_baddbmm,
    "mv": products.push_mv,
    "mul": products.push_mul,
    "div": products.push_div,
    "convolution": products.push_convolution,
    "_softmax": normalisations.push_softmax,
    "_safe_softmax": normalisations.push_softmax,
    "_log_softmax": normalisations.push_log_softmax,
    "logsumexp": normalisations.push_logsumexp,
    "native_layer_norm": normalisations.push_layer_norm,
    "native_group_norm": normalisations.push_group_norm,
    "native_batch_norm": normalisations.push_batch_norm,
    "var": normalisations.push_variance,
    "mse_loss": normalisations.push_square_error,
}

STRAIGHT = frozenset(
    {
        *(*LINEAR, *ADDITIVE, *PICKING, *KINKS, "add", "sub", "rsub", "masked_fill", "embedding", "amax", "amin"),
        *("maximum", "minimum", "max_pool2d_with_indices"),
    }
)
"""Operations that add nothing."""

FACTORS = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "mul": (0, 1),
    "mv": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
    "convolution": (0, 1),
}
"""Places of the two factors of a product, which adds something where both move."""


def bends(name: str, args: tuple[Any, ...], moves: Callable[[Any], bool]) -> bool:
    """Whether an operation with these arguments adds to the second derivative; ``moves`` tells of an argument."""
    if name in STRAIGHT:
        return False
    if name in FACTORS:
        return all(moves(args[place]) for place in FACTORS[name])
    if name == "div":
        return moves(args[1])
    return True
