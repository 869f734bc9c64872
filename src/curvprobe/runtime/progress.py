"""Progress bars with a rate and an estimate of the time left; silent when standard error is no terminal."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from rich.progress import Progress

_display: ContextVar[Progress | None] = ContextVar("curvprobe_progress", default=None)


_hidden: ContextVar[bool] = ContextVar("curvprobe_progress_hidden", default=False)


@contextmanager
def hidden() -> Iterator[None]:
    """Show no bars within the block."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


@contextmanager
def bar(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show one bar while the block runs and yield a function that advances it by a number of units.

    Bars opened inside another bar's block share its display.
    """
    shared = _display.get()
    if shared is not None:
        task = shared.add_task(description, total=total)
        try:
            yield lambda units: shared.advance(task, units)
        finally:
            shared.remove_task(task)
        return
    opened = None if _hidden.get() else _on_a_terminal()
    if opened is None:
        yield lambda _: None
        return
    with opened:
        token = _display.set(opened)
        task = opened.add_task(description, total=total)
        try:
            yield lambda units: opened.advance(task, units)
        finally:
            _display.reset(token)


def _on_a_terminal() -> Progress | None:
    """A new display, where standard error is a terminal; of several processes in the first one only."""
    if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
        return None
    generator = random.getstate()  # rich draws from it when it is imported
    try:
        from rich import progress
        from rich.console import Console
        from rich.text import Text
    finally:
        random.setstate(generator)
    console = Console(stderr=True)
    if not console.is_terminal:
        return None

    class Rate(progress.ProgressColumn):
        """Units per second."""

        def render(self, task: progress.Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.3g}/s")

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*columns, console=console, transient=True)
