"""Which parameters of a model are probed, their flat order, and copies of them and of all that goes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from curvprobe.errors import ArgumentError, ArgumentTypeError, CannotProbeError, CannotProbeTypeError
from curvprobe.risk.divided import Divided, local
from curvprobe.risk.frozen import Frozen, is_lower
from curvprobe.risk.presets import PRESETS, preset_parameters

Selection = Callable[[str], bool] | Sequence[str] | str | None
"""None (every trainable parameter), a predicate on the name, a list of names and ``*`` patterns, or a preset."""


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
        raise CannotProbeError("the model has no parameters; expected at least one to probe")
    if not trainable:
        raise CannotProbeError(
            f"the model has no trainable parameter: all {len(aliases)} have requires_grad=False; "
            "call requires_grad_(True) on those to probe"
        )
    if selection is None:
        return list(trainable)
    if isinstance(selection, str):
        return _preset(model, selection, {names[0]: key for key, names in aliases.items()}, trainable)
    if callable(selection):
        chosen = [first for first, names in trainable.items() if any(selection(name) for name in names)]
        if not chosen:
            raise ArgumentError(f"the params predicate accepts no trainable parameter; their names: {_some(trainable)}")
        return chosen
    every_name = [name for names in aliases.values() for name in names]
    return _matched(selection, trainable, every_name)


def _preset(model: nn.Module, selection: str, identities: dict[str, int], trainable: Iterable[str]) -> list[str]:
    """First names of the trainable parameters that a preset stands for."""
    if selection not in PRESETS:
        raise ArgumentTypeError(
            f"params is the string {selection!r}; expected a list of names or patterns: [{selection!r}], or one of "
            + ", ".join(map(repr, PRESETS))
        )
    meant = preset_parameters(model, selection)
    chosen = [name for name in trainable if identities[name] in meant]
    if not chosen:
        raise ArgumentError(
            f"params is {selection!r}, whose parameters are all frozen; call requires_grad_(True) on those to probe"
        )
    return chosen


def _matched(selection: object, trainable: dict[str, list[str]], every_name: list[str]) -> list[str]:
    """First names of the trainable parameters that match one of the patterns; every pattern must match one."""
    patterns: list[Any] = list(selection) if isinstance(selection, Iterable) else [selection]
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        kinds = sorted({type(pattern).__name__ for pattern in patterns})
        raise ArgumentTypeError(
            f"params is a {type(selection).__name__} of {', '.join(kinds) or 'nothing'}; expected None, a predicate on "
            "the name, or a list of names and patterns"
        )
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for names in trainable.values() for name in names):
            continue
        if any(fnmatchcase(name, pattern) for name in every_name):
            raise ArgumentError(
                f"the params pattern {pattern!r} matches frozen parameters only; "
                "call requires_grad_(True) on them to probe them"
            )
        raise ArgumentError(f"the params pattern {pattern!r} matches no parameter; names: {_some(every_name)}")
    return [
        first
        for first, names in trainable.items()
        if any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
    ]


def _some(names: Sequence[str] | dict[str, list[str]]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f", ... ({len(listed)} in all)" if len(listed) > 8 else "")


@dataclass(frozen=True)
class State:
    """A model's probed parameters, its other parameters and its buffers, by name.

    Attributes:
        probed: copies, none below float32.
        kept: the other parameters, in their own types: frozen ones where they lie, copies of those that might train.
        buffers: copies, none below float32.
        frozen: those of the kept ones that are not copied.
        dtype, device: of the probed parameters.
        upcast_from: lower types that are raised.
    """

    probed: dict[str, Tensor]
    kept: dict[str, Tensor]
    buffers: dict[str, Tensor]
    frozen: Frozen
    dtype: torch.dtype
    device: torch.device
    upcast_from: tuple[str, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of them, by name."""
        return {**self.kept, **self.buffers, **self.probed}

    @cached_property
    def has_lower(self) -> bool:
        """Whether a kept parameter is to be raised where it is used."""
        return any(is_lower(tensor, self.dtype) for tensor in self.kept.values())

    def in_double(self) -> State:
        """The same in float64; what is not probed is raised where it is used."""
        with torch.inference_mode(False):
            probed, buffers = (
                {name: t.double() if t.is_floating_point() else t for name, t in part.items()}
                for part in (self.probed, self.buffers)
            )
        return replace(self, probed=probed, buffers=buffers, dtype=torch.float64)


def copy_state(model: nn.Module, names: Sequence[str], divided: Divided | None = None) -> State:
    """The state of a model of which the parameters called ``names`` are probed; what this process holds of each."""

    def held(name: str) -> Tensor:
        parameter = params[name].detach()
        return local(parameter) if divided is None else divided.held(parameter, name)

    with torch.inference_mode(False), torch.no_grad():
        params = dict(model.named_parameters())
        probed = {name: upcast(held(name)).clone() for name in names}
        others = {name: p for name, p in params.items() if name not in probed and not _is_more_than_a_tensor(p)}
        moving = _changed_by_forward(model)
        frozen = {name: held(name) for name, p in others.items() if _stays(p) and id(p) not in moving}
        kept = {name: frozen[name] if name in frozen else held(name).clone() for name in others}
        buffers = {name: upcast(b.detach()).clone() for name, b in model.named_buffers()}
    dtypes, devices = ({getattr(p, of) for p in probed.values()} for of in ("dtype", "device"))
    if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
        raise CannotProbeTypeError(
            f"the probed parameters have dtypes {sorted(map(str, dtypes))}; expected one real type"
        )
    if len(devices) > 1 or next(iter(devices)).type == "meta":
        raise CannotProbeError(f"the probed parameters are on {sorted(map(str, devices))}; expected one real device")
    raised = {str(p.dtype) for p in params.values() if _is_low(p)}
    dtype, device = next(iter(dtypes)), next(iter(devices))
    return State(probed, kept, buffers, Frozen.of(frozen), dtype, device, tuple(sorted(raised)))


def _stays(parameter: nn.Parameter) -> bool:
    """Whether a parameter is what no optimizer changes, and tells when it is changed."""
    usual = parameter.layout is torch.strided and not parameter.is_inference() and not parameter.is_meta
    return usual and not parameter.requires_grad


def _changed_by_forward(model: nn.Module) -> set[int]:
    """Identities of the embeddings' weights that a forward pass cuts to their largest norm, in place."""
    embeddings = (part for part in model.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag))
    return {id(part.weight) for part in embeddings if part.max_norm is not None}


def _is_more_than_a_tensor(parameter: nn.Parameter) -> bool:
    """Whether a frozen parameter is quantised, with attributes that say how: it is used as it is, not copied."""
    attributes = any(not name.startswith("_") for name in vars(parameter))
    return attributes and (type(parameter) is not nn.Parameter or not parameter.is_floating_point())


def upcast(tensor: Tensor) -> Tensor:
    """The tensor, or its float32 copy where its floating-point precision is lower than float32."""
    return tensor.float() if _is_low(tensor) else tensor


def _is_low(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32
