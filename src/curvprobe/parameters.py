"""Which parameters of a model are probed, and their flat order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

Selection = Callable[[str], bool] | Sequence[str] | None
"""None (every trainable parameter), a predicate on the name, or a list of names and ``*`` patterns."""


def select_parameters(model: nn.Module, selection: Selection) -> list[str]:
    """Names of the probed parameters, in the model's order; a tied parameter once, under its first name.

    A tied parameter is selected when any of its names is. Frozen parameters (``requires_grad=False``) never are.
    """
    aliases: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    trainable = {names[0]: names for key, names in aliases.items() if tensors[key].requires_grad}
    if not aliases:
        raise ValueError("the model has no parameters; expected at least one to probe")
    if not trainable:
        raise ValueError(
            f"the model has no trainable parameter: all {len(aliases)} have requires_grad=False; "
            "call requires_grad_(True) on those to probe"
        )
    if selection is None:
        return list(trainable)
    if isinstance(selection, str):
        raise TypeError(f"params is the string {selection!r}; expected a list of names or patterns: [{selection!r}]")
    if callable(selection):
        chosen = [first for first, names in trainable.items() if any(selection(name) for name in names)]
        if not chosen:
            raise ValueError(f"the params predicate accepts no trainable parameter; their names: {_some(trainable)}")
        return chosen
    patterns = list(selection) if isinstance(selection, Iterable) else [selection]
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        kinds = sorted({type(pattern).__name__ for pattern in patterns})
        raise TypeError(
            f"params is a {type(selection).__name__} of {', '.join(kinds) or 'nothing'}; expected None, a predicate on "
            "the name, or a list of names and patterns"
        )
    every_name = [name for names in aliases.values() for name in names]
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for names in trainable.values() for name in names):
            continue
        if any(fnmatchcase(name, pattern) for name in every_name):
            raise ValueError(
                f"the params pattern {pattern!r} matches frozen parameters only; "
                "call requires_grad_(True) on them to probe them"
            )
        raise ValueError(f"the params pattern {pattern!r} matches no parameter; names: {_some(every_name)}")
    return [
        first
        for first, names in trainable.items()
        if any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
    ]


def _some(names: Sequence[str] | dict[str, list[str]]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f", ... ({len(listed)} in all)" if len(listed) > 8 else "")


def upcast(tensor: Tensor) -> Tensor:
    """The tensor, or its float32 copy where its floating-point precision is lower than float32."""
    if tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32:
        return tensor.float()
    return tensor
