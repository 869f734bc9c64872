"""Trained weights kept in a file, so that a run that is repeated does not train again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from curvprobe.runtime.store import write_atomically


def load_or_train(model: nn.Module, train: Callable[[], None], cache: Path | None, key: str) -> None:
    """Load the model's weights from ``cache`` where they were kept under the same key; else train and keep them."""
    if cache is not None and cache.exists():
        try:
            with safe_open(cache, framework="pt") as file:
                if (file.metadata() or {}).get("key") == key:
                    model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
                    return
        except (SafetensorError, OSError, RuntimeError, json.JSONDecodeError):
            pass  # unreadable or of another shape: train again
    with torch.device("cpu"):  # an optimiser makes tensors, too
        train()
    if cache is not None:
        write_atomically(cache, save(dict(model.state_dict()), metadata={"key": key}))
