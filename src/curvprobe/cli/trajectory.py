"""trajectory: arguments to :func:`curvprobe.trajectory`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from curvprobe.analysis.result import REPORT
from curvprobe.cli.app import app
from curvprobe.cli.messages import plain_errors, reported, saved, say
from curvprobe.cli.options import AllowOverlap, Dim, Memory, P, Seed, Tol, as_bytes
from curvprobe.errors import ArgumentError
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.runtime.plain import to_json
from curvprobe.runtime.store import RESULT, Store, write_atomically
from curvprobe.tasks import load_task


@app.command()
def trajectory(
    train: Annotated[
        str,
        typer.Argument(
            help="file.py:function or module:function that takes k and returns a curvprobe.Task trained on the first k "
            "examples. The largest one's candidates serve every size."
        ),
    ],
    ks: Annotated[str, typer.Option(help="Sample sizes, as 50,100,200.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    sigma: Annotated[float, typer.Option(help="Standard deviation of the probe in parameter units.")],
    dim: Dim = 10,
    tol: Tol = 1e-3,
    p: P = 2.0,
    seed: Seed = 0,
    memory_budget: Memory = None,
    allow_overlap: AllowOverlap = False,
) -> None:
    """Follow the criteria along k, with weights that are trained anew for every sample size.

    Example: curvprobe trajectory examples/my_training.py:train --ks 25,50,100,200 --sigma 0.01 --out runs/path
    """
    with plain_errors():
        from curvprobe.analysis.trajectory import trajectory as follow

        sizes = _sizes(ks)
        budget = None if memory_budget is None else as_bytes(memory_budget)
        largest = load_task(train, sizes[-1])  # first: its candidates are outside every smaller sample too
        if largest.description:
            say(largest.description)

        def trained(k: int) -> EmpiricalRisk:
            return (largest if k == sizes[-1] else load_task(train, k)).risk(memory_budget=budget)

        options: dict[str, Any] = {"dim": dim, "sigma": sigma, "tol": tol, "seed": seed, "p": p}
        options["allow_overlap"] = allow_overlap
        with Store.at(out).held():
            path = follow(trained, sizes, candidates=largest.candidates, **options, out=out)
            _say_what_trained(out / RESULT, train)
            typer.echo(str(path))
            figures = saved(lambda: _trajectory_figures(path, out))
            report = [REPORT] if reported(lambda: path.to_html(out / REPORT, title=out.resolve().name)) else []
        typer.echo(f"\nWritten to {out}/: {', '.join(['result.json', *report, *figures])}")


def _trajectory_figures(path: Any, out: Path) -> list[Path]:
    from curvprobe.plots import plot_trajectory, save

    return save({"trajectory": plot_trajectory(path)}, out)


def _say_what_trained(result: Path, train: str) -> None:
    """Add to a trajectory's result what the command alone knows: the function that trained its models."""
    record = json.loads(result.read_text())
    record["config"]["train"] = train
    write_atomically(result, to_json(record))


def _sizes(ks: str) -> list[int]:
    try:
        sizes = [int(k) for k in ks.split(",")]
    except ValueError:
        raise ArgumentError(f"--ks is {ks!r}; expected whole numbers such as 50,100,200") from None
    if sizes != sorted(set(sizes)):
        raise ArgumentError(f"--ks is {ks!r}; expected ascending sample sizes")
    return sizes
