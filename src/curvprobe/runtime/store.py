"""Finished stages on disk: tensors in safetensors, the rest in JSON, written atomically, found again by a hash."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from curvprobe.errors import ArgumentError
from curvprobe.runtime.digest import digest
from curvprobe.runtime.plain import plain, to_json
from curvprobe.runtime.ranks import ALONE, Ranks

T = TypeVar("T")

LOG = logging.getLogger("curvprobe")
"""Says at level INFO which stage begins and what it took; silent unless a program turns it on."""

STAGE_VERSION = 2
"""Raised when a stage file's meaning changes; older files are then computed again."""

RESULT = "result.json"
"""The file that a whole run ends in; it tells of the stages beside it, and goes when one of them is computed anew."""


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


@dataclass(frozen=True)
class Stage(Generic[T]):
    """A part of a job: its name, what its result depends on, and how it is computed.

    Attributes:
        name: of its files.
        key: nest of everything the result depends on; hashed.
        kind: of the result: a frozen dataclass of tensors and plain values, :class:`torch.Tensor`, or ``dict`` for
            plain values as JSON knows them.
        compute: makes the result where it is not found.
    """

    name: str
    key: Any
    kind: type[T]
    compute: Callable[[], T]


@dataclass(frozen=True)
class Finished:
    """A stage that was asked for.

    Attributes:
        key: hash of what it depends on; empty without a folder.
        seconds: that it took when it was computed.
        found: whether that was in an earlier run.
    """

    key: str
    seconds: float
    found: bool


@dataclass(frozen=True)
class Store:
    """A folder of stages; without a folder, stages are computed and nothing is kept.

    Args:
        directory: where stages lie, or None.
        writable: whether stages may be added.
        ranks: the processes that share the work; the first one reads and writes.

    Attributes:
        finished: every stage that was asked for, by name: what a result of this store rests on.
    """

    directory: Path | None
    finished: dict[str, Finished] = field(default_factory=dict, compare=False)
    writable: bool = True
    ranks: Ranks = ALONE

    @classmethod
    def at(cls, out: str | Path | None, ranks: Ranks = ALONE) -> Store:
        """A store in this folder, made if need be.

        Where nothing can be written it is refused at once, unless a finished run lies there: that can be read.
        """
        if out is None:
            return cls(None)
        return cls(Path(out), writable=ranks.from_first(lambda: _is_writable(Path(out))), ranks=ranks)

    def path(self, name: str) -> Path | None:
        """Of a file beside the stages; None without a folder."""
        return None if self.directory is None else self.directory / name

    @property
    def seconds(self) -> float:
        """That all stages took when they were computed."""
        return sum(stage.seconds for stage in self.finished.values())

    def result(self, stage: Stage[T]) -> T:
        """The stage's result, found or computed."""
        directory, ranks = self.directory, self.ranks
        key = "" if directory is None else digest([STAGE_VERSION, stage.name, stage.key])
        if directory is not None:
            found = ranks.from_first(lambda: read_stage(directory, stage.name, stage.kind, key))
            if found is not None:
                self.finished[stage.name] = Finished(key, found[1], True)
                LOG.info("%s: found in %s", stage.name, self.directory)
                return found[0]
            if not self.writable:
                raise ArgumentError(
                    f"nothing can be written to the folder {str(self.directory)!r}, and its stage {stage.name} is not "
                    "that of this model, data and settings; give another folder"
                )
        LOG.info("%s ...", stage.name)
        start = time.perf_counter()
        result = stage.compute()
        if isinstance(result, dict):
            result = plain(result)  # as a later run will find it
        seconds = ranks.from_first(lambda: time.perf_counter() - start)
        if directory is not None:
            with ranks.together():
                if ranks.rank == 0:
                    _forget_result(directory, stage.name, key)
                    _write(directory, stage, key, result, seconds)
        self.finished[stage.name] = Finished(key, seconds, False)
        LOG.info("%s: %.3g s", stage.name, seconds)
        return result

    def write_result(self, record: dict[str, Any]) -> None:
        """Write the run's result, with the keys of the stages that it rests on; nothing without a folder."""
        if self.directory is None or not self.writable:
            return
        with self.ranks.together():
            if self.ranks.rank == 0:
                rests_on = {name: stage.key for name, stage in self.finished.items()}
                write_atomically(self.directory / RESULT, to_json(record | {"stages": rests_on}))


def _is_writable(folder: Path) -> bool:
    """Whether files can be written there; refused where they cannot, and no finished run lies there to be read."""
    try:
        write_atomically(folder / ".writable", b"")
        (folder / ".writable").unlink()
    except OSError as error:
        if (folder / RESULT).is_file():
            return False
        raise ArgumentError(f"nothing can be written to the folder {str(folder)!r}: {error}") from error
    return True


def _write(directory: Path, stage: Stage[T], key: str, result: T, seconds: float) -> None:
    values = _as_values(stage.kind, result)
    tensors = {k: v.detach().cpu().contiguous() for k, v in values.items() if isinstance(v, Tensor)}
    # The JSON names its tensors by hash and comes last: without it, or with another, the stage is not finished.
    content = save(tensors)
    write_atomically(directory / f"{stage.name}.safetensors", content)
    record = {
        "key": key,
        "tensors": digest(content),
        "seconds": seconds,
        "values": {k: _marked(v) for k, v in values.items() if not isinstance(v, Tensor)},
    }
    write_atomically(directory / f"{stage.name}.json", to_json(record))


def _forget_result(directory: Path, name: str, key: str) -> None:
    """Remove a result that rests on another stage of this name, or on one of which it does not say what it was."""
    try:
        rests_on = json.loads((directory / RESULT).read_text()).get("stages")
    except (OSError, ValueError, AttributeError):
        return
    known = (directory / f"{name}.json").exists() if rests_on is None else rests_on.get(name, key) != key
    if known:
        (directory / RESULT).unlink(missing_ok=True)


def read_stage(
    directory: Path, name: str, kind: type[T] | Callable[..., T], key: str | None = None
) -> tuple[T, float] | None:
    """A stage's result and the seconds it took, if it lies there whole and, where a key is given, under this key."""
    try:
        record = json.loads((directory / f"{name}.json").read_text())
        if key not in (None, record["key"]):
            return None
        return _from_values(kind, read_values(directory, name)), float(record["seconds"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None  # absent, cut short, or of another version: it is computed again


def read_values(directory: Path, name: str) -> dict[str, Any]:
    """A stage's tensors and plain values by name; raises where it does not lie there whole."""
    record = json.loads((directory / f"{name}.json").read_text())
    tensors_path = directory / f"{name}.safetensors"
    if record["tensors"] != digest(tensors_path.read_bytes()):
        raise ValueError(f"the tensors of the stage {name} are not those that its record names")
    return {**load_file(tensors_path), **{k: _unmarked(v) for k, v in record["values"].items()}}


def _as_values(kind: type[Any], result: Any) -> dict[str, Any]:
    if issubclass(kind, Tensor):
        return {"tensor": result}
    if issubclass(kind, dict):
        return {"plain": result}
    return {entry.name: getattr(result, entry.name) for entry in fields(kind)}


def _from_values(kind: type[T] | Callable[..., T], values: dict[str, Any]) -> T:
    if isinstance(kind, type) and issubclass(kind, Tensor):
        return values["tensor"]  # type: ignore[no-any-return]
    if isinstance(kind, type) and issubclass(kind, dict):
        return values["plain"]  # type: ignore[no-any-return]
    made: T = kind(**values)  # type: ignore[assignment]
    return made


def _marked(value: Any) -> Any:
    """Numbers that JSON lacks as strings, so that they come back."""
    return {"float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"float"}:
        return float(value["float"])
    return tuple(value) if isinstance(value, list) else value
