"""Installed packages that ship trained networks: their files, their weights, and modules without what these ask for."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def folder(package: str) -> Path:
    """Where an installed package lies; nothing of it is run."""
    return Path(_spec(package).submodule_search_locations[0])


def _spec(package: str) -> Any:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{package} is not installed; `make acceptance` installs what is needed, and runs this"
        )
    return found


def weights(path: Path) -> Mapping[str, Any]:
    """What a file of weights holds: tensors and plain values, no code."""
    content: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def bare(package: str, **names: Any) -> None:
    """Have the modules of a package imported without its ``__init__``, which asks for more than the network needs."""
    found = _spec(package)
    made = _place(package, names)
    made.__spec__, made.__path__ = found, list(found.submodule_search_locations)


def stand_in(module: str, **names: Any) -> None:
    """Put an empty module with these names in the place of one that a network's code imports and never calls."""
    _place(module, names)


def _place(name: str, names: Mapping[str, Any]) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(names)
    sys.modules[name] = made
    above, _, last = name.rpartition(".")
    if above in sys.modules:
        setattr(sys.modules[above], last, made)
    return made
