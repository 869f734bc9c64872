"""One run at a time in a folder: a lock that the system takes back from a process that dies."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from curvprobe.errors import ArgumentError

LOG = logging.getLogger("curvprobe")

_LOCK, _HOLDER = ".lock", ".running"

TEMPORARY = ".unfinished"
"""Ending of a file that is being written; its name begins with a dot."""

_DEBRIS = 60.0
"""Seconds after which nobody writes to such a file any more."""


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """A block in which no other process or thread runs in this folder; within one another, the same run.

    Raises:
        ArgumentError: names the process that is at work there.
    """
    lock = FileLock(folder / _LOCK, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise ArgumentError(
            f"another run is at work in the folder {str(folder)!r}: {_holder(folder)}; expected a folder of its own "
            "for each: give another one, or wait until that run has ended"
        ) from None
    except (OSError, NotImplementedError) as error:
        LOG.info("the folder %s is not locked, which its file system does not know (%s)", folder, error)
        yield
        return
    outermost = lock.lock_counter == 1
    try:
        if outermost:
            _clear(folder)
            with suppress(OSError):  # on a full disk the lock holds all the same
                (folder / _HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        if outermost:
            with suppress(OSError):
                (folder / _HOLDER).unlink()
        lock.release()


def _holder(folder: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return (folder / _HOLDER).read_text(encoding="utf-8").strip()[:200] or "a process that has just begun"
    return "a process that has just begun"


def _clear(folder: Path) -> None:
    """Remove what a process that was killed was writing."""
    for path in folder.glob(f".*{TEMPORARY}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _DEBRIS:
                path.unlink()
