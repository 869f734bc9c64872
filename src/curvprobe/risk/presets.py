"""Parts of a model that are probed often, by a name of their own: what ``params="lora"`` and its like stand for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from curvprobe.errors import ArgumentError

PRESETS = ("lora", "last-block", "no-embeddings", "head")


def preset_parameters(model: nn.Module, preset: str) -> set[int]:
    """Identities of the parameters that a preset stands for, trainable or not.

    * ``lora``: low-rank adapters, whose names begin with ``lora_``, as ``peft`` has them;
    * ``last-block``: the last member of the model's last sequence of blocks of one class;
    * ``no-embeddings``: all but the weights of embeddings (and what is tied to them) and learned positions;
    * ``head``: the output embeddings of a language model, else the last linear or convolutional layer.

    Raises:
        ArgumentError: where the model has no such part, or it is more than that part.
    """
    if preset == "lora":
        found = {
            id(p) for name, p in model.named_parameters() if any(part.startswith("lora_") for part in name.split("."))
        }
        return _some(found, preset, "no parameter whose name begins with lora_")
    if preset == "last-block":
        blocks = list(_sequences_of_blocks(model))
        last = blocks[-1][-1].parameters() if blocks else ()
        return _some({id(p) for p in last}, preset, "no sequence of two or more blocks of one class")
    if preset == "no-embeddings":
        embedded = {id(p) for p in _embedded(model)}
        rest = {id(p) for p in model.parameters()} - embedded
        return _some(rest, preset, "nothing but embeddings")
    return _head(model)


def _some(found: set[int], preset: str, otherwise: str) -> set[int]:
    if not found:
        raise ArgumentError(f"params is {preset!r}, and the model has {otherwise}; give names or patterns")
    return found


def _sequences_of_blocks(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The outermost lists of modules of one class which have modules of their own, in the model's order."""
    members = list(model.children())
    listed = isinstance(model, nn.ModuleList | nn.Sequential) and len(members) > 1
    if listed and len({type(member) for member in members}) == 1 and any(True for _ in members[-1].children()):
        yield members
    else:
        for part in members:
            yield from _sequences_of_blocks(part)


def _embedded(model: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of embeddings, and parameters that are one by their own name, as learned positions are."""
    for part in model.modules():
        is_one = isinstance(part, nn.Embedding | nn.EmbeddingBag)
        yield from (p for name, p in part.named_parameters(recurse=False) if is_one or "embed" in name)


def _head(model: nn.Module) -> set[int]:
    given: Any = getattr(model, "get_output_embeddings", lambda: None)()
    layers = [part for part in model.modules() if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    if not isinstance(given, nn.Module) and not layers:
        raise ArgumentError("params is 'head', and the model has no linear or convolutional layer; give names")
    head = given if isinstance(given, nn.Module) else layers[-1]
    found, inside = {id(p) for p in head.parameters()}, set(head.modules())
    for name, part in model.named_modules():
        if part not in inside and any(id(p) in found for p in part.parameters(recurse=False)):
            raise ArgumentError(
                f"params is 'head', and the head's weight is that of {name} too, which would move with it; name it "
                "where that is meant, or choose another part"
            )
    return found
