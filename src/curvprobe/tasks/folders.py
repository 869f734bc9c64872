"""Models and texts in folders and files: what transformers and peft have saved, and nothing that runs on being read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from curvprobe.errors import ArgumentError, MissingExtraError
from curvprobe.tasks.encoding import Texts


def load_folder(folder: str | Path) -> tuple[nn.Module, Any]:
    """The model and tokenizer that transformers saved in a folder, or peft's adapter on its base.

    Nothing is downloaded, and nothing in the folder is run.
    Weights are read from safetensors where they are there, and never from arbitrary pickles.

    Raises:
        ArgumentError: if the folder holds no such model, no tokenizer, or an adapter whose base is no folder here.
    """
    place = Path(folder)
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("--hf needs transformers and tokenizers: pip install 'curvprobe[text]'") from error
    if (place / "adapter_config.json").is_file():
        return _load_adapter(place)
    if not (place / "config.json").is_file():
        raise ArgumentError(f"{place} has no config.json; expected a folder that save_pretrained() wrote")
    config = transformers.AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    name = (config.architectures or [""])[0]
    cls: Any = getattr(transformers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ArgumentError(f"{place / 'config.json'} names the architecture {name!r}, which transformers has not")
    with _no_bars():
        model: nn.Module = cls.from_pretrained(place, config=config, local_files_only=True, dtype="auto")
    return model, _tokenizer(place)


@contextmanager
def _no_bars() -> Iterator[None]:
    """A block in which transformers shows no progress: reading a file takes a moment."""
    from transformers.utils import logging as module

    logging: Any = module
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load_adapter(place: Path) -> tuple[nn.Module, Any]:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError(f"{place} holds an adapter, which needs peft: pip install peft") from error
    stated = json.loads((place / "adapter_config.json").read_text()).get("base_model_name_or_path") or ""
    base = next((path for path in (Path(stated), place / stated) if (path / "config.json").is_file()), None)
    if base is None:
        raise ArgumentError(
            f"{place / 'adapter_config.json'} names the base {stated!r}, which is no folder here; write the base's "
            "folder there (base_model_name_or_path)"
        )
    model, tokenizer = load_folder(base)
    adapted: nn.Module = PeftModel.from_pretrained(model, place, is_trainable=True, local_files_only=True)
    return adapted, _tokenizer(place) if (place / "tokenizer_config.json").is_file() else tokenizer


def _tokenizer(place: Path) -> Any:
    import transformers

    if not (place / "tokenizer_config.json").is_file():
        raise ArgumentError(f"{place} has no tokenizer; write it there: tokenizer.save_pretrained({str(place)!r})")
    return transformers.AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)


def read_texts(path: str | Path) -> Texts:
    """A file's texts: those of a ``.jsonl`` file are examples, a mapping with ``text`` (and ``label``) in every line;
    any other file is a running text.

    Raises:
        ArgumentError: if there is no such file, or a line is no mapping with ``text``.
    """
    place = Path(path)
    if not place.is_file():
        raise ArgumentError(f"the file {str(place)!r} does not exist")
    content = place.read_text(encoding="utf-8")
    if place.suffix != ".jsonl":
        return content
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise ArgumentError(f"line {number} of {place} is no JSON: {error}") from None
        if row is not None and not (isinstance(row, dict) and isinstance(row.get("text"), str)):
            raise ArgumentError(f"line {number} of {place} is {line[:80]!r}; expected a mapping with a text")
        rows += [] if row is None else [row]
    return rows
