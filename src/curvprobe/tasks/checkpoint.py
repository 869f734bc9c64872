"""Weights from a file, put into a model that is made for them; nothing in the file is run."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from curvprobe.errors import ArgumentError

_WITHIN = ("state_dict", "model_state_dict", "model", "module", "net", "network")
"""Entries of a checkpoint in which training loops keep the weights."""

_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What wrappers (DataParallel, torch.compile, a LightningModule's attribute) put before the names."""

_FILES = ("model.safetensors", "*.safetensors", "pytorch_model.bin", "*.pt", "*.pth", "*.ckpt")
"""Files of a folder that are looked for, in this order."""


def load_weights(model: nn.Module, path: str | Path) -> Path:
    """Put a file's weights into the model, and say which file it was.

    Args:
        model: of the architecture that was trained; changed in place.
        path: a file of safetensors or of torch, or a folder with one.

    Raises:
        ArgumentError: if there is no such file, it holds more than tensors, or others than the model's.
    """
    place = _file(Path(path))
    weights = _without_wrappers(read_weights(place), set(model.state_dict()))
    found, own = set(weights), model.state_dict()
    # Tied weights may be saved once; buffers that are not saved are none of the state.
    missing = sorted(set(own) - found - _tied_to(model, found))
    unknown = sorted(found - set(own))
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(found & set(own))
        if isinstance(own[name], Tensor) and weights[name].shape != own[name].shape
    ]
    for what, names in (("lacks", missing), ("has unknown", unknown), ("has other shapes:", shapes)):
        if names:
            listed = ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
            raise ArgumentError(f"{place} {what} {listed}; expected the weights of a {type(model).__name__} like this")
    model.load_state_dict(weights, strict=False)
    return place


def _file(path: Path) -> Path:
    """The file itself, or the folder's."""
    if path.is_dir():
        path = next((file for pattern in _FILES for file in sorted(path.glob(pattern))), path / _FILES[0])
    if not path.is_file():
        raise ArgumentError(f"the checkpoint {str(path)!r} does not exist")
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file by name, at its top or where training loops keep them; nothing in the file is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses about a file that it then refuses
            safe = path.suffix == ".safetensors"
            content: Any = load_file(path) if safe else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ArgumentError(
            f"no state dictionary could be read from {str(path)!r} ({_first_line(error)}); only tensors are read, no "
            "objects: write torch.save(model.state_dict(), path) or safetensors.torch.save_model(model, path)"
        ) from error
    within = [content.get(name) for name in _WITHIN] if _is_mapping(content) else []
    for place in (*within, content):
        tensors = {n: value for n, value in place.items() if isinstance(value, Tensor)} if _is_mapping(place) else {}
        if tensors:
            return tensors
    keys = ", ".join(map(str, list(content)[:8])) if _is_mapping(content) else f"a {type(content).__name__}"
    raise ArgumentError(
        f"{str(path)!r} holds {keys}; expected a state dictionary, there or under one of {', '.join(_WITHIN)}"
    )


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _without_wrappers(weights: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """The weights by the model's names, without what wrappers have put before them."""
    while not set(weights) & own:
        inner = ({n.removeprefix(p): w for n, w in weights.items() if n.startswith(p)} for p in _WRAPPERS)
        stripped = next((found for found in inner if found), None)
        if stripped is None:
            break
        weights = stripped
    return weights


def _tied_to(model: nn.Module, found: set[str]) -> set[str]:
    """Other names of tensors that were found."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    there = {id(tensor) for name, tensor in named if name in found}
    return {name for name, tensor in named if id(tensor) in there}
