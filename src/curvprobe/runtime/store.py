"""Finished stages on disk: tensors in safetensors, the rest in JSON, written atomically, found again by a hash."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from safetensors.torch import load, save
from torch import Tensor

from curvprobe.errors import ArgumentError, WriteError
from curvprobe.runtime.digest import digest
from curvprobe.runtime.lock import TEMPORARY, only_run
from curvprobe.runtime.plain import plain, to_json
from curvprobe.runtime.ranks import ALONE, Ranks

T = TypeVar("T")

LOG = logging.getLogger("curvprobe")
"""Says at level INFO which stage begins and what it took; silent unless a program turns it on."""

STAGE_VERSION = 3
"""Raised when a stage file's meaning changes; older files are then computed again."""

RESULT = "result.json"
"""The file that a whole run ends in; it tells of the stages beside it, and goes when one of them is computed anew."""


Content = bytes | Callable[[IO[bytes]], object]
"""Of a file: bytes, or a function that writes them."""


def write_atomically(path: Path, content: Content) -> None:
    """Write a file, from bytes or by a function of it, so that a reader or a later run sees all of it or none.

    Raises:
        WriteError: where it cannot be written; what lay there before is kept, and nothing else left behind.
    """
    _write_all({path: content})


def _write_all(contents: Mapping[Path, Content], before: Callable[[], object] = lambda: None) -> None:
    """Write files that belong together: none is replaced before all are on the disk, and ``before`` has been called."""
    written: dict[Path, Path] = {}
    path = next(iter(contents))
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
            written[path] = Path(temporary)
            with os.fdopen(handle, "wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
        before()
        for path, part in written.items():
            os.replace(part, path)
    except BaseException as error:
        for part in written.values():
            part.unlink(missing_ok=True)
        # torch's own writer says that it lost its place, in the course of what the disk said
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(reason, OSError):
            raise WriteError(_unwritten(path, reason)) from reason
        raise


def _unwritten(path: Path, error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "make room for it" if full else "give another folder, or see to this one"
    return (
        f"{path.name} could not be written to the folder {str(path.parent)!r}: {error.strerror or error}; what lay "
        f"there before is kept, the finished stages too: {remedy}, and repeat the run to go on"
    )


@dataclass(frozen=True)
class Stage(Generic[T]):
    """A part of a job: its name, what its result depends on, and how it is computed.

    Attributes:
        name: of its files.
        key: nest of everything the result depends on; hashed.
        kind: of the result: a frozen dataclass of tensors and plain values, :class:`torch.Tensor`, or ``dict`` for
            plain values as JSON knows them.
        compute: makes the result where it is not found.
        whole: the result as it is kept, where each of several processes has a part of it; they call it together.
        divided: their parts of what the first of them has found, which is given to it alone.
    """

    name: str
    key: Any
    kind: type[T]
    compute: Callable[[], T]
    whole: Callable[[T], T] | None = None
    divided: Callable[[T | None], T] | None = None


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

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block in which no other run works in the folder; blocks within one another are one run.

        Raises:
            ArgumentError: where another one does; names its process.
        """
        if self.directory is None or not self.writable:
            yield
            return
        with ExitStack() as first:
            directory = self.directory
            self.ranks.from_first(lambda: first.enter_context(only_run(directory)))
            yield

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
            found = self._found_by_first(directory, stage, key)
            if found is not None:
                self.finished[stage.name] = Finished(key, found[1], True)
                LOG.info("%s: found in %s", stage.name, self.directory)
                return found[0]
        LOG.info("%s ...", stage.name)
        start = time.perf_counter()
        result = stage.compute()
        if isinstance(result, dict):
            result = plain(result)  # as a later run will find it
        seconds = ranks.from_first(lambda: time.perf_counter() - start)
        if directory is not None:
            kept = result if stage.whole is None else stage.whole(result)
            with ranks.together():
                if ranks.rank == 0:
                    _write(directory, stage, key, kept, seconds)
        self.finished[stage.name] = Finished(key, seconds, False)
        LOG.info("%s: %.3g s", stage.name, seconds)
        return result

    def _found_by_first(self, directory: Path, stage: Stage[T], key: str) -> tuple[T, float] | None:
        """The stage as the first process finds it, and the seconds that it took; or this one's part of it."""
        if stage.divided is None or not self.ranks.several:
            return self.ranks.from_first(lambda: self._found(directory, stage, key))
        mine: list[T] = []

        def seconds() -> float | None:
            found = self._found(directory, stage, key)
            mine.extend([] if found is None else [found[0]])
            return None if found is None else found[1]

        took = self.ranks.from_first(seconds)
        return None if took is None else (stage.divided(mine[0] if mine else None), took)

    def _found(self, directory: Path, stage: Stage[T], key: str) -> tuple[T, float] | None:
        """The stage as it lies there; None, and said why, where it is to be computed."""
        try:
            return _read(directory, stage.name, stage.kind, key)
        except _OtherError as other:
            reason = "is not that of this model, data and settings"
            if (directory / f"{stage.name}.json").exists():
                LOG.info("%s: %s.json %s", stage.name, directory / stage.name, other)
        except _DamagedError as damage:
            reason = f"is damaged: {damage}"
            if self.writable:
                warnings.warn(f"{damage}; the stage {stage.name} is computed again", stacklevel=2)
        if not self.writable:
            raise ArgumentError(
                f"nothing can be written to the folder {str(directory)!r}, and its stage {stage.name} {reason}; give "
                "another folder"
            )
        return None

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
        (folder / ".writable").unlink(missing_ok=True)  # another process may look too
    except OSError as error:
        if (folder / RESULT).is_file():
            return False
        reason = error.__cause__ or error
        raise ArgumentError(f"nothing can be written to the folder {str(folder)!r}: {reason}") from error
    return True


def _write(directory: Path, stage: Stage[T], key: str, result: T, seconds: float) -> None:
    values = _as_values(stage.kind, result)
    tensors = {k: v.detach().cpu().contiguous() for k, v in values.items() if isinstance(v, Tensor)}
    # The JSON names its tensors by hash and comes last: without it, or with another, the stage is not finished.
    content = save(tensors)
    record = {
        "schema_version": STAGE_VERSION,
        "key": key,
        "tensors": digest(content),
        "seconds": seconds,
        "values": {k: _marked(v) for k, v in values.items() if not isinstance(v, Tensor)},
    }
    record["checksum"] = _checksum(stage.name, json.loads(to_json(record)))
    _write_all(
        {directory / f"{stage.name}.safetensors": content, directory / f"{stage.name}.json": to_json(record)},
        before=lambda: _forget_result(directory, stage.name, key),
    )


def _checksum(name: str, record: dict[str, Any]) -> str:
    """Of all that the JSON of a stage holds, and by the tensors' hash of these too; tells accidents, not forgeries."""
    rest = {k: v for k, v in record.items() if k != "checksum"}
    return digest([name, json.dumps(rest, sort_keys=True)])


def _forget_result(directory: Path, name: str, key: str) -> None:
    """Remove a result that rests on another stage of this name, or on one of which it does not say what it was."""
    try:
        record = json.loads((directory / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    rests_on = record.get("stages") if isinstance(record, dict) else {}
    beside = (directory / f"{name}.json").exists()
    replaced = rests_on.get(name, key) != key if isinstance(rests_on, dict) else beside
    if replaced:
        (directory / RESULT).unlink(missing_ok=True)


class _OtherError(Exception):
    """There is no such stage, or it is another one's."""


class _DamagedError(Exception):
    """What lies there is not what was written, or not to be understood."""


def read_stage(
    directory: Path, name: str, kind: type[T] | Callable[..., T], key: str | None = None
) -> tuple[T, float] | None:
    """A stage's result and the seconds it took, if it lies there whole and, where a key is given, under this key.

    Stages of earlier versions are read too. One that is damaged is said to be, and not read.
    """
    try:
        return _read(directory, name, kind, key, earlier=True)
    except _OtherError:
        return None
    except _DamagedError as damage:
        warnings.warn(f"{damage}; the stage {name} is not read", stacklevel=2)
        return None


def _read(
    directory: Path, name: str, kind: type[T] | Callable[..., T], key: str | None, *, earlier: bool = False
) -> tuple[T, float]:
    """A stage that lies there whole; ``earlier`` takes those of earlier versions, whose plain values nothing guards."""
    path = directory / f"{name}.json"
    record = _record(path, name, earlier=earlier)
    if key not in (None, record.get("key")):
        raise _OtherError("is of another model, other data or other settings")
    path = path.with_name(f"{name}.safetensors")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _DamagedError(f"{path} cannot be read ({error.strerror})") from error
    if record.get("tensors") != digest(content):
        raise _DamagedError(f"{path} does not hold the tensors that were written: it was cut short or changed")
    try:
        values = {**load(content), **{k: _unmarked(v) for k, v in record["values"].items()}}
        return _from_values(kind, values), float(record["seconds"])
    except Exception as error:  # whatever a constructor makes of values that are none of its kind
        raise _DamagedError(f"{directory / name}.json holds no such stage ({error!r:.200})") from error


def _record(path: Path, name: str, *, earlier: bool) -> dict[str, Any]:
    """What the JSON of a stage says, as it was written."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _OtherError("is not there") from None
    except OSError as error:
        raise _DamagedError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _DamagedError(f"{path} is cut short or changed: it is no JSON ({error})") from error
    if not isinstance(record, dict):
        raise _DamagedError(f"{path} holds no stage but something else")
    version = record.get("schema_version")
    if version is None and "checksum" not in record:  # before version 3
        if earlier:
            return record
        raise _OtherError("is of an earlier version")
    if type(version) is int and version > STAGE_VERSION:
        raise _DamagedError(
            f"{path} has schema version {version!s:.12}, and this version of curvprobe reads up to {STAGE_VERSION}: it "
            "is of a newer one"
        )
    if version != STAGE_VERSION or record.get("checksum") != _checksum(name, record):
        raise _DamagedError(f"{path} was changed since it was written: its checksum is another")
    return record


def _as_values(kind: type[Any], result: Any) -> dict[str, Any]:
    if issubclass(kind, Tensor):
        return {"tensor": result}
    if issubclass(kind, dict):
        return {"plain": result}
    return {entry.name: getattr(result, entry.name) for entry in fields(kind) if not entry.kw_only}


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
