"""experiment: arguments to :func:`curvprobe.experiments.run.run_experiment`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from curvprobe.cli.app import app
from curvprobe.cli.messages import plain_errors, say
from curvprobe.errors import ArgumentError


class Name(StrEnum):
    """The paper's experiments."""

    DECAY = "decay"
    RATIO = "ratio"
    VALIDITY = "validity"
    CONVERGENCE = "convergence"
    ERROR_MAP = "error-map"
    TIMING = "timing"
    FC = "fc"


RUNS = Path("runs/experiments")
"""Where results go that were not given a folder."""


class Size(StrEnum):
    """Of an experiment."""

    CPU = "cpu"
    PAPER = "paper"


class WeightsOf(StrEnum):
    """Where the weights of a growing sample come from."""

    SEQUENTIAL = "sequential"
    CONVERGED = "converged"


ExperimentName = Annotated[
    Name,
    typer.Argument(
        help="decay (Fig. 2), ratio (Fig. 3), validity (Fig. 4), convergence (Fig. 5), error-map (Fig. 6), timing "
        "(Table), or fc: fully connected classifiers at and around their solution."
    ),
]
Preset = Annotated[Size, typer.Option(help="cpu: a small model, minutes on two cores. paper: the paper's, one GPU.")]
Out = Annotated[Path | None, typer.Option(help=f"Folder for the results. Default: {RUNS}/NAME.")]
Text = Annotated[Path | None, typer.Option(help="Text in UTF-8 to train on. Default: the help topics of Python.")]
Literal = Annotated[
    bool,
    typer.Option(
        "--literal",
        help="Also compute what the paper's released procedure computes, in the same figure: deflated power "
        "iteration, separate Hessians on four rows, one next example that was trained on.",
    ),
]
Weights = Annotated[
    WeightsOf,
    typer.Option(
        help="decay and ratio: sequential streams through text and looks at the current weights; converged trains "
        "digits to a minimiser at every k, as the theory assumes."
    ),
]
Stages = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the finished points. Experiments share what lies there: decay and ratio rest on the same "
        "points. Default: OUT/stages, and without --out runs/experiments/stages for all."
    ),
]
Device = Annotated[str, typer.Option(help="Where the models live: cpu, cuda, cuda:1, ...")]
FirstSeed = Annotated[int, typer.Option(help="The first seed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell sizes, memory and time: one sequence at full size.")]


@app.command()
def experiment(
    name: ExperimentName,
    preset: Preset = Size.CPU,
    out: Out = None,
    text: Text = None,
    literal: Literal = False,
    weights: Weights = WeightsOf.SEQUENTIAL,
    stages: Stages = None,
    device: Device = "cpu",
    seed: FirstSeed = 0,
    dry_run: DryRun = False,
) -> None:
    """Repeat one of the paper's experiments with exact computation.

    Leaves result.json and figures (PNG, PDF) in the folder. Interrupted, it goes on from the last finished seed and k
    when it is repeated.

    Example: curvprobe experiment decay
    """
    with plain_errors():
        from curvprobe.experiments.options import Options
        from curvprobe.experiments.run import EXPERIMENTS, rehearse, run_experiment

        options = Options(text=text, literal=literal, weights=weights.value, seed=seed, device=_device(device))
        say(EXPERIMENTS[name.value].about + "\n")
        if dry_run:
            found = rehearse(name.value, preset=preset.value, options=options)
            typer.echo(f"about {found / 60:.0f} minutes on this machine" if isinstance(found, float) else str(found))
            return
        folder = out or RUNS / name.value
        stages = stages or (RUNS / "stages" if out is None else None)
        done = run_experiment(name.value, preset=preset.value, options=options, out=folder, stages=stages, say=say)
        typer.echo("\n".join(done.findings))
        typer.echo(f"\nWritten to {folder}/: {', '.join(path.name for path in done.paths)}")


def _device(name: str) -> str:
    try:
        torch.zeros((), device=name)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"--device is {name!r}, which cannot be used here: {str(error).splitlines()[0]}") from error
    return name
