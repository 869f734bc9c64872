"""What the command says on standard error, and how it ends when something is wrong."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from torch import OutOfMemoryError

import curvprobe
from curvprobe.analysis.sections import Section, plain, rendered
from curvprobe.cli.processes import speaks
from curvprobe.cli.signals import Terminated, orderly
from curvprobe.errors import CurvprobeError, LostError, MissingExtraError
from curvprobe.runtime import progress

_PACKAGE = Path(curvprobe.__file__).parent

_quiet: ContextVar[bool] = ContextVar("curvprobe_quiet", default=False)


def say(message: str, style: str | None = None) -> None:
    """One line on standard error, as it is; where quiet was asked for, errors only: what has a style."""
    if _quiet.get() and style is None:
        return
    Console(stderr=True).print(message, style=style, highlight=False, markup=False, soft_wrap=True)


def tell(text: str) -> None:
    """Lines on standard output; on a terminal broken between words, with what goes on moved in."""
    lines = text.split("\n")
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        lines = [textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    typer.echo("\n".join(lines))


def show_sections(found: list[Section]) -> None:
    """Titled tables between empty lines on standard output; on a terminal as wide as it is, and with bold titles."""
    typer.echo()
    if sys.stdout.isatty():
        Console().print(rendered(found))
    else:
        typer.echo(plain(found))
    typer.echo()


def saved(figures: Callable[[], list[Path]]) -> list[str]:
    """Names of the figures' files; none where the plotting library is not installed."""
    try:
        return [path.name for path in figures()]
    except MissingExtraError as error:
        say(f"No figures: {error}")
        return []


def reported(write: Callable[[], Path]) -> bool:
    """Write the report, where its packages are installed."""
    try:
        write()
    except MissingExtraError as error:
        say(f"No report: {error}")
        return False
    return True


def _from_the_users_code(error: Exception) -> str:
    """The traceback from the first line of the user's own on; the whole of it where there is none, which is a bug."""
    told = traceback.TracebackException.from_exception(error)
    ours = [Path(frame.filename).is_relative_to(_PACKAGE) for frame in told.stack]
    first = next((i for i, inside in enumerate(ours) if not inside and _is_the_users(told.stack[i].filename)), None)
    if first is None:
        return "".join(told.format()) + "This is a fault of curvprobe: please report it with these lines."
    told.stack = traceback.StackSummary.from_list(told.stack[first:])
    return "".join(told.format()).rstrip()


def _is_the_users(filename: str) -> bool:
    """Whether a file is none of an installed package, of Python, or of the machinery that loads a module."""
    return (
        not filename.startswith("<")
        and not Path(filename).is_relative_to(sys.prefix)
        and "site-packages" not in (Path(filename).parts)
        and not Path(filename).is_relative_to(sysconfig.get_path("stdlib"))
    )


@contextmanager
def plain_errors(*, quiet: bool = False) -> Iterator[None]:
    """Show warnings and what this package refuses as plain lines, errors in the user's code from there on. Exit code 1.

    Where quiet is asked for, neither warnings nor progress. After Ctrl-C the exit code is 130, after SIGTERM 143.
    """
    quiet = quiet or not speaks()
    shown, asked = warnings.showwarning, _quiet.set(quiet)

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"Warning: {message}")

    warnings.showwarning = show
    try:
        with orderly(), progress.hidden() if quiet else nullcontext():
            yield
    except CurvprobeError as error:
        if speaks() or isinstance(error, LostError):  # elsewhere the first process says so
            say(f"Error: {error}", style="red")
        raise typer.Exit(1) from error
    except (typer.Exit, typer.BadParameter):
        raise
    except (MemoryError, OutOfMemoryError) as error:
        say(f"Error: the memory does not suffice: {error}; try a smaller --memory-budget, --dim or --k", style="red")
        raise typer.Exit(1) from error
    except Exception as error:
        say(_from_the_users_code(error), style="red")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        ended = isinstance(error, Terminated)
        how = "Ended by SIGTERM" if ended else "Interrupted"
        say(f"{how}; the finished stages are kept. Repeat the command to go on.")
        raise typer.Exit(143 if ended else 130) from error
    finally:
        warnings.showwarning = shown
        _quiet.reset(asked)
