"""report and compare: what is done with finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curvprobe.analysis.result import REPORT, Analysis
from curvprobe.cli.app import app
from curvprobe.cli.messages import plain_errors, say, tell
from curvprobe.cli.options import AsJson
from curvprobe.errors import ArgumentError
from curvprobe.forecasting.result import Forecast
from curvprobe.runtime.plain import to_json


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path | None, typer.Option(help="File. Default: report.html in the folder.")] = None,
    title: Annotated[str, typer.Option(help="Title of the page. Default: the folder's name.")] = "",
    names: Annotated[
        Path | None, typer.Option(help="Text file with a name for every candidate, a line each, for the ranking.")
    ] = None,
    forecast: Annotated[
        Path | None, typer.Option(help="Folder of a forecast for the same model, which gets a panel apart.")
    ] = None,
) -> None:
    """Write the report of a finished run, trajectory or forecast anew: one page that opens from disk, by itself.

    Example: curvprobe report runs/mine --title "Recipe B" --names labels.txt
    """
    with plain_errors():
        from curvprobe.analysis.record import load

        found = load(folder)
        file, called = out or folder / REPORT, title or folder.resolve().name
        if isinstance(found, Analysis):
            ahead = None if forecast is None else load(forecast)
            if not isinstance(ahead, Forecast | None):
                raise ArgumentError(f"--forecast is {str(forecast)!r}, which is the folder of no forecast")
            labels = None if names is None else _lines(names)
            written = found.to_html(file, title=called, names=labels, forecast=ahead)
        elif names is not None or forecast is not None:
            kind, option = type(found).__name__.lower(), "--names" if names is not None else "--forecast"
            raise ArgumentError(f"{option} came with {str(folder)!r}, a {kind}; it goes with an analysis")
        else:
            written = found.to_html(file, title=called)
        tell(f"written to {written}")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--names is {str(path)!r}, which cannot be read: {error}") from error


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs, two or more; the first is the baseline.")
    ],
    html: Annotated[Path | None, typer.Option(help="File: the same as a page, with the curves and overlaps.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set several finished runs side by side, at one sigma, and say which differences exceed their error.

    Example: curvprobe compare runs/seed0 runs/seed1 runs/recipe_b --html compared.html
    """
    with plain_errors():
        from curvprobe.analysis.comparison import compare as side_by_side

        found = side_by_side(folders)
        typer.echo(to_json(found.to_json()) if as_json else str(found), nl=not as_json)
        if html is not None:
            say(f"written to {found.to_html(html)}")
