"""What the command says on standard error, and how it ends when something is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from curvprobe.errors import CurvprobeError


def say(message: str, style: str | None = None) -> None:
    """One line on standard error, as it is."""
    Console(stderr=True).print(message, style=style, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Show warnings and what this package refuses as plain lines; other errors with their traceback. Exit code 1."""
    shown = warnings.showwarning

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"Warning: {message}")

    warnings.showwarning = show
    try:
        yield
    except CurvprobeError as error:
        say(f"Error: {error}", style="red")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        say("Interrupted; the finished stages are kept. Repeat the command to go on.")
        raise typer.Exit(130) from error
    finally:
        warnings.showwarning = shown
