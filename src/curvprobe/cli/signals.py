"""Ctrl-C and SIGTERM: the first ends the work where it stands and puts everything back, the second ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from curvprobe.cli.processes import launched


class Terminated(KeyboardInterrupt):
    """SIGTERM has come; what puts things back after Ctrl-C does so after this too."""


@contextmanager
def orderly() -> Iterator[None]:
    """A block that Ctrl-C and SIGTERM end by an exception, once.

    Among several processes signals stay as they are: one that is about to tell the others would wait for those that
    are ended too, and what is on disk is whole at any moment.
    """
    if launched() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def end(number: int, _: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for number in signals:
        if before[number] is not signal.SIG_IGN:  # as nohup and background jobs ask for
            signal.signal(number, end)
    try:
        yield
    finally:
        for number in signals:
            if before[number] is not None:
                signal.signal(number, before[number])
