"""Run a function in a fresh process, and measure the peak memory of a block of code (Linux)."""

import ctypes
import gc
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class UnfinishedError(Exception):
    """The process ran past its limit, or died."""


def run_isolated(function: Callable[..., Any], *arguments: Any, limit: float | None = None) -> Any:
    """What a module-level function returns in a new process; ``limit`` in seconds.

    Nothing is shared with earlier measurements: no warm caches, no freed memory that is used again.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, function, arguments))
    process.start()
    sender.close()  # so that a child that dies ends the pipe
    try:
        if not receiver.poll(limit):
            process.kill()
            raise UnfinishedError(f"more than {limit:g} s")
        return receiver.recv()
    except EOFError:
        process.join()
        raise UnfinishedError(f"the process ended with exit code {process.exitcode}") from None
    finally:
        process.join()


def _send_result(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(function(*arguments))


@dataclass
class Peak:
    """Bytes of resident memory before a block, and the most there were within it."""

    before: int = 0
    highest: int = 0

    @property
    def added(self) -> int:
        """Highest above the level before."""
        return self.highest - self.before


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure a block; the result is complete when the block has ended."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back to the system, or the block would use it for nothing
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    peak = Peak(before=_status("VmRSS"))
    yield peak
    peak.highest = _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith(field + ":"))
    return 1024 * int(kibibytes)
