"""forecast: arguments to :func:`curvprobe.forecast`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from curvprobe.analysis.result import REPORT
from curvprobe.cli.app import app
from curvprobe.cli.messages import plain_errors, reported, saved, say, tell
from curvprobe.cli.options import AsJson, Seed
from curvprobe.errors import ArgumentError
from curvprobe.forecasting.result import Forecast
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.runtime.plain import to_json
from curvprobe.runtime.store import RESULT, Store
from curvprobe.tasks import Task, load_function


@app.command()
def forecast(
    train: Annotated[
        str,
        typer.Argument(
            help="file.py:function or module:function that takes rows, a list of positions in the sample, and returns "
            "a curvprobe.Task trained on these, whose candidates are held out; or takes k, for the first k examples."
        ),
    ],
    k: Annotated[int, typer.Option(min=1, help="Examples in the sample.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result and the finished trainings, which a repetition finds.")
    ] = None,
    splits: Annotated[
        int, typer.Option(min=1, help="Splits of the sample into halves; each costs as much as a training on k.")
    ] = 4,
    processes: Annotated[int, typer.Option(min=1, help="Trainings beside one another, each in one thread.")] = 1,
    seed: Seed = 0,
    allow_overlap: Annotated[
        bool,
        typer.Option(
            "--allow-overlap", help="Take held-out examples that equal some of the sample: others with equal rows."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Forecast what twice the examples would take off the held-out loss, by training anew on parts of the sample.

    Another question than that of the other commands, which tell how stable the landscape is and forecast nothing. The
    answer comes with the share of such answers that were right in a study, or is refused with the reason.

    Example: curvprobe forecast examples/my_training.py:fit --k 200 --out runs/forecast
    """
    with plain_errors(quiet=as_json):
        from curvprobe.forecasting.forecast import FEWEST
        from curvprobe.forecasting.forecast import forecast as ahead

        if k < FEWEST:
            raise ArgumentError(f"--k is {k}; expected at least {FEWEST}")
        with Store.at(out).held():
            options: dict[str, Any] = {"splits": splits, "processes": processes, "seed": seed}
            found = ahead(TrainedTask(train), k, **options, allow_overlap=allow_overlap, out=out, say=say)
            if as_json:
                typer.echo(to_json(found.to_json()), nl=False)
                return
            tell(str(found))
            if out is not None:
                typer.echo(f"\nWritten to {out}/: {', '.join(_written(found, out))}")


def _written(found: Forecast, out: Path) -> list[str]:
    """Names of the files: the result, and the page and the figures where what draws them is installed."""
    figures = saved(lambda: _figures(found, out))
    report = [REPORT] if reported(lambda: found.to_html(out / REPORT, title=out.resolve().name)) else []
    return [RESULT, *report, *figures]


@dataclass(frozen=True)
class TrainedTask:
    """A user's function that returns a task, as a training: it can be sent to another process by its name."""

    spec: str

    @property
    def asked(self) -> Callable[..., Any]:
        """The function itself."""
        return _function(self.spec)

    def __call__(self, rows: Any) -> tuple[EmpiricalRisk, Any]:
        """The risk at the weights it was trained to, and the held-out examples."""
        task = self.asked(rows)
        if not isinstance(task, Task):
            raise ArgumentError(f"{self.spec} returned a {type(task).__name__}; expected a curvprobe.Task")
        if task.candidates is None:
            raise ArgumentError(
                f"{self.spec} returned a Task without candidates; expected examples that no training sees: "
                "Task(..., candidates=held_out)"
            )
        return task.risk(), task.candidates


@cache
def _function(spec: str) -> Callable[..., Any]:
    return load_function(spec)


def _figures(found: Forecast, out: Path) -> list[Path]:
    from curvprobe.plots import plot_forecast, save

    return save({"forecast": plot_forecast(found)}, out)
