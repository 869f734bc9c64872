"""Progress bars with a rate and an estimate of the time left; silent when standard error is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_display: ContextVar[Progress | None] = ContextVar("curvprobe_progress", default=None)


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.3g}/s")


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
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as opened:
        token = _display.set(opened)
        task = opened.add_task(description, total=total)
        try:
            yield lambda units: opened.advance(task, units)
        finally:
            _display.reset(token)
