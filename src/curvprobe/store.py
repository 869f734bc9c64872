"""Finished stages on disk: tensors in safetensors, the rest in JSON, written atomically, found again by a hash."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from curvprobe.examples import digest

T = TypeVar("T")

SCHEMA_VERSION = 1
"""Raised when a stage file's meaning changes; older files are then computed again."""


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file, from bytes or by a function of it, so that a reader or a later run sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def to_json(value: Any) -> bytes:
    """Readable, strict JSON; numbers that are not finite become null."""
    return (json.dumps(_plain(value), indent=2, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor | numpy.generic):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class Store:
    """A folder of stages; without a folder, stages are computed and nothing is kept.

    Args:
        directory: where stages lie, or None.

    Attributes:
        seconds: of every stage that was asked for, when it was computed, by name.
    """

    directory: Path | None
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    @classmethod
    def at(cls, out: str | Path | None) -> Store:
        """A store in this folder, made if need be; refused at once where nothing can be written."""
        if out is None:
            return cls(None)
        folder = Path(out)
        try:
            write_atomically(folder / ".writable", b"")
            (folder / ".writable").unlink()
        except OSError as error:
            raise ValueError(f"nothing can be written to the folder {str(out)!r}: {error}") from error
        return cls(folder)

    def stage(self, name: str, key: Any, kind: type[T], compute: Callable[[], T]) -> tuple[T, bool]:
        """The stage's result, and whether it was found rather than computed.

        Args:
            name: of the stage's files.
            key: nest of everything the result depends on; hashed.
            kind: frozen dataclass of tensors and plain values that ``compute`` returns.
            compute: makes the result where it is not found.
        """
        if self.directory is None:
            return compute(), False
        tensors_path, plain_path = (self.directory / f"{name}.{ending}" for ending in ("safetensors", "json"))
        wanted = digest([SCHEMA_VERSION, name, key])
        found = _load(tensors_path, plain_path, wanted, kind)
        if found is not None:
            self.seconds[name] = json.loads(plain_path.read_text()).get("seconds", 0.0)
            return found, True
        start = time.perf_counter()
        result = compute()
        self.seconds[name] = time.perf_counter() - start
        values = {entry.name: getattr(result, entry.name) for entry in fields(kind)}  # type: ignore[arg-type]
        tensors = {k: v.detach().cpu().contiguous() for k, v in values.items() if isinstance(v, Tensor)}
        # The JSON names its tensors by hash and comes last: without it, or with another, the stage is not finished.
        content = save(tensors)
        write_atomically(tensors_path, content)
        record = {
            "key": wanted,
            "tensors": digest(content),
            "seconds": self.seconds[name],
            "values": {k: _marked(v) for k, v in values.items() if not isinstance(v, Tensor)},
        }
        write_atomically(plain_path, to_json(record))
        return result, False


def _marked(value: Any) -> Any:
    """Numbers that JSON lacks as strings, so that they come back."""
    return {"float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        return float(value["float"])
    return tuple(value) if isinstance(value, list) else value


def _load(tensors_path: Path, plain_path: Path, wanted: str, kind: type[T]) -> T | None:
    try:
        record = json.loads(plain_path.read_text())
        if record["key"] != wanted or record["tensors"] != digest(tensors_path.read_bytes()):
            return None
        return kind(**load_file(tensors_path), **{k: _unmarked(v) for k, v in record["values"].items()})
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None  # absent, cut short, or of another version: it is computed again
