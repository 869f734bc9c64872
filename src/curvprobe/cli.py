"""The command: arguments to :func:`curvprobe.analyze`, and where the results lie."""

from __future__ import annotations

import math
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console

import curvprobe
from curvprobe.analysis import analyze
from curvprobe.memory import keep_freed
from curvprobe.result import Analysis
from curvprobe.risk import EmpiricalRisk
from curvprobe.store import SCHEMA_VERSION, Store, to_json, write_atomically
from curvprobe.tasks import Task, load_task

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help=f"""
Measure how much the loss landscape around a trained PyTorch model still moves when data is added, and in which
directions.

**First steps**

- `curvprobe demo` trains a small classifier and analyses it: about half a minute, nothing to download.
- `curvprobe demo --task text` does the same with a small language model: some minutes.
- `curvprobe experiment decay` repeats an experiment of the paper; `curvprobe experiment --help` lists them.
- `curvprobe run my_task.py:task --out runs/mine` analyses your own model: `task` is a function that returns
  `curvprobe.Task(model, loss, data, candidates)`.

**What a run leaves** in its folder: `result.json` (every number with its standard error and verdict), figures as PNG
and PDF, and the finished stages; a run that is interrupted goes on from the last finished stage when it is repeated.

Version {curvprobe.__version__}. Exit code: 0 done, 1 the task cannot be analysed (the message says why), 2 wrong usage.
""",
)


class BuiltIn(StrEnum):
    """Tasks that come with the package."""

    DIGITS = "digits"
    TEXT = "text"


K = Annotated[int | None, typer.Option(help="Examples in the sample: the first K of the task's data. Default: all.")]
Dim = Annotated[int, typer.Option(help="Dimension D of the top eigenspace of the Hessian.")]
Sigma = Annotated[
    str,
    typer.Option(
        help="Standard deviation of the probe in parameter units, or 'auto': the largest at which the quadratic "
        "model is validated."
    ),
]
NumProbes = Annotated[int, typer.Option(help="Monte-Carlo draws.")]
Tol = Annotated[float, typer.Option(help="Bound on the eigenpairs' residuals, relative to the first eigenvalue.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Memory = Annotated[
    float | None,
    typer.Option(
        help="GiB that the work may take beyond the model and the data. Default: half of what is free.", metavar="GIB"
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(help="RMS increment in loss units for which to tell the required sample size. Default: not told."),
]
Laws = Annotated[
    bool,
    typer.Option("--laws", help="Also tell the criterion under other probing laws: two more eigenspaces."),
]
Concentration = Annotated[
    bool,
    typer.Option(
        "--concentration",
        help="Also tell how much of the full-space signal the top-D directions, and others, capture: four more "
        "eigenspaces.",
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the Hessian product: minutes at first, for jobs that take long.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"curvprobe {curvprobe.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    task: Annotated[BuiltIn, typer.Option(help="digits: seconds to train. text: about a minute.")] = BuiltIn.DIGITS,
    out: Annotated[Path | None, typer.Option(help="Folder for the results. Default: runs/TASK.")] = None,
    k: K = None,
    dim: Dim = 10,
    sigma: Sigma = "auto",
    num_probes: NumProbes = 64,
    tol: Tol = 1e-3,
    tolerance: Tolerance = None,
    laws: Laws = False,
    concentration: Concentration = False,
    seed: Seed = 0,
    memory_budget: Memory = None,
    compiled: Compile = False,
) -> None:
    """Train a built-in task and analyse it. Nothing is downloaded.

    Example: curvprobe demo --task text --dim 5 --out runs/text
    """
    folder = out or Path("runs") / task.value
    with _plain_errors():
        Store.at(folder)
        _say(f"Training the {task.value} task (kept in {folder / 'model.safetensors'}) ...")
        built = _build(task, k, seed, folder / "model.safetensors")
        _analyse(
            built,
            None,
            sigma,
            folder,
            memory_budget,
            dim=dim,
            num_probes=num_probes,
            tol=tol,
            tolerance=tolerance,
            laws=laws,
            concentration=concentration,
            seed=seed,
            compile=compiled,
        )


@app.command()
def run(
    task: Annotated[str, typer.Argument(help="file.py:function or module:function that returns a curvprobe.Task.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    k: K = None,
    dim: Dim = 10,
    sigma: Sigma = "auto",
    num_probes: NumProbes = 64,
    tol: Tol = 1e-3,
    tolerance: Tolerance = None,
    laws: Laws = False,
    concentration: Concentration = False,
    seed: Seed = 0,
    memory_budget: Memory = None,
    compiled: Compile = False,
) -> None:
    """Analyse your own trained model.

    Example: curvprobe run my_task.py:task --k 500 --dim 10 --out runs/mine
    """
    with _plain_errors():
        _analyse(
            load_task(task),
            k,
            sigma,
            out,
            memory_budget,
            dim=dim,
            num_probes=num_probes,
            tol=tol,
            tolerance=tolerance,
            laws=laws,
            concentration=concentration,
            seed=seed,
            compile=compiled,
        )


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
    seed: Seed = 0,
    memory_budget: Memory = None,
) -> None:
    """Follow the criteria along k, with weights that are trained anew for every sample size.

    Example: curvprobe trajectory examples/my_training.py:train --ks 25,50,100,200 --sigma 0.01 --out runs/path
    """
    with _plain_errors():
        from curvprobe.trajectory import trajectory as follow

        sizes = _sizes(ks)
        budget = None if memory_budget is None else _bytes(memory_budget)
        largest = load_task(train, sizes[-1])  # first: its candidates are outside every smaller sample too
        if largest.description:
            _say(largest.description)

        def trained(k: int) -> EmpiricalRisk:
            return (largest if k == sizes[-1] else load_task(train, k)).risk(memory_budget=budget)

        path = follow(
            trained,
            sizes,
            candidates=largest.candidates,
            dim=dim,
            sigma=sigma,
            tol=tol,
            seed=seed,
            out=out,
        )
        typer.echo(str(path))
        config = {"train": train, "ks": sizes, "dim": dim, "sigma": sigma, "tol": tol, "seed": seed}
        record = {"schema_version": SCHEMA_VERSION, "version": curvprobe.__version__, "config": config}
        write_atomically(out / "result.json", to_json(record | {"trajectory": path.to_json()}))
        names = ["result.json"]
        try:
            from curvprobe.plots import plot_trajectory, save

            names += [path.name for path in save({"trajectory": plot_trajectory(path)}, out)]
        except ImportError as error:
            _say(f"No figures: {error}")
        typer.echo(f"\nWritten to {out}/: {', '.join(names)}")


def _sizes(ks: str) -> list[int]:
    try:
        sizes = [int(k) for k in ks.split(",")]
    except ValueError:
        raise ValueError(f"--ks is {ks!r}; expected whole numbers such as 50,100,200") from None
    if sizes != sorted(set(sizes)):
        raise ValueError(f"--ks is {ks!r}; expected ascending sample sizes")
    return sizes


class Name(StrEnum):
    """The paper's experiments."""

    DECAY = "decay"
    RATIO = "ratio"
    VALIDITY = "validity"
    CONVERGENCE = "convergence"
    ERROR_MAP = "error-map"
    TIMING = "timing"
    FC = "fc"


class Size(StrEnum):
    """Of an experiment."""

    CPU = "cpu"
    PAPER = "paper"


class WeightsOf(StrEnum):
    """Where the weights of a growing sample come from."""

    SEQUENTIAL = "sequential"
    CONVERGED = "converged"


@app.command()
def experiment(
    name: Annotated[
        Name,
        typer.Argument(
            help="decay (Fig. 2), ratio (Fig. 3), validity (Fig. 4), convergence (Fig. 5), error-map (Fig. 6), timing "
            "(Table), or fc: fully connected classifiers at and around their solution."
        ),
    ],
    preset: Annotated[
        Size, typer.Option(help="cpu: a small model, minutes on two cores. paper: the paper's sizes, one GPU.")
    ] = Size.CPU,
    out: Annotated[Path | None, typer.Option(help="Folder for the results. Default: runs/experiments/NAME.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Text in UTF-8 to train on. Default: the help topics of Python.")
    ] = None,
    literal: Annotated[
        bool,
        typer.Option(
            "--literal",
            help="Also compute what the paper's released procedure computes, in the same figure: deflated power "
            "iteration, separate Hessians on four rows, one next example that was trained on.",
        ),
    ] = False,
    weights: Annotated[
        WeightsOf,
        typer.Option(
            help="decay and ratio: sequential streams through text and looks at the current weights; converged trains "
            "digits to a minimiser at every k, as the theory assumes."
        ),
    ] = WeightsOf.SEQUENTIAL,
    stages: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the finished points. Default: OUT/stages. Give decay and ratio the same one: they rest on "
            "the same runs."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the models live: cpu, cuda, cuda:1, ...")] = "cpu",
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell sizes, memory and time: one sequence at full size.")
    ] = False,
) -> None:
    """Repeat one of the paper's experiments with exact computation.

    Leaves result.json and figures (PNG, PDF) in the folder. Interrupted, it goes on from the last finished seed and k
    when it is repeated.

    Example: curvprobe experiment decay --out runs/decay
    """
    with _plain_errors():
        from curvprobe.experiments.options import Options
        from curvprobe.experiments.run import EXPERIMENTS, rehearse, run_experiment

        options = Options(text=text, literal=literal, weights=weights.value, seed=seed, device=_device(device))
        _say(EXPERIMENTS[name.value].ABOUT + "\n")
        if dry_run:
            found = rehearse(name.value, preset=preset.value, options=options)
            typer.echo(f"about {found / 60:.0f} minutes on this machine" if isinstance(found, float) else str(found))
            return
        folder = out or Path("runs/experiments") / name.value
        done = run_experiment(name.value, preset=preset.value, options=options, out=folder, stages=stages, say=_say)
        typer.echo("\n".join(done.findings))
        typer.echo(f"\nWritten to {folder}/: {', '.join(path.name for path in done.paths)}")


def _device(name: str) -> str:
    try:
        torch.zeros((), device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device is {name!r}, which cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def _build(task: BuiltIn, k: int | None, seed: int, cache: Path) -> Task:
    size: dict[str, Any] = {} if k is None else {"k": k}
    if task is BuiltIn.DIGITS:
        from curvprobe.tasks.digits import digits

        return digits(**size, seed=seed, cache=cache)
    from curvprobe.tasks.text import text

    return text(**size, seed=seed, cache=cache)


def _analyse(task: Task, k: int | None, sigma: str, out: Path, memory_budget: float | None, **options: Any) -> None:
    """Analyse and say what was found; ``options`` are those of :func:`curvprobe.analyze` by the same names."""
    if task.description:
        _say(task.description)
    risk = task.risk(memory_budget=None if memory_budget is None else _bytes(memory_budget))
    if k is not None and not 1 <= k <= len(risk):
        raise ValueError(f"--k is {k}; the task's sample has {len(risk)} examples: expected 1 to {len(risk)}")
    chosen: float | Literal["auto"] = "auto" if sigma == "auto" else _number(sigma)
    analysis = analyze(
        risk if k is None else risk[:k],
        None if task.candidates is None else risk.on(task.candidates, task.collate_fn),
        sigma=chosen,
        out=out,
        **options,
    )
    typer.echo(str(analysis))
    typer.echo(f"\nWritten to {out}/: {', '.join(['result.json', *_save_figures(analysis, out)])}")


def _save_figures(analysis: Analysis, out: Path) -> list[str]:
    try:
        from curvprobe.plots import save_figures

        return [path.name for path in save_figures(analysis, out)]
    except ImportError as error:
        _say(f"No figures: {error}")
        return []


def _number(sigma: str) -> float:
    try:
        return float(sigma)
    except ValueError:
        raise ValueError(f"--sigma is {sigma!r}; expected 'auto' or a positive number") from None


def _bytes(gib: float) -> int:
    if not 0 < gib < math.inf:
        raise ValueError(f"--memory-budget is {gib}; expected a positive number of GiB")
    return int(gib * 2**30)


def _say(message: str, style: str | None = None) -> None:
    """One line on standard error, as it is."""
    Console(stderr=True).print(message, style=style, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Show warnings and this package's own errors as plain lines; others with their traceback. Exit code 1."""
    shown = warnings.showwarning

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _say(f"Warning: {message}")

    warnings.showwarning = show
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if not Path(raised_in).is_relative_to(Path(curvprobe.__file__).parent):
            raise  # in the task's code, or a defect here: the traceback is needed
        _say(f"Error: {error}", style="red")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        _say("Interrupted; the finished stages are kept. Repeat the command to go on.")
        raise typer.Exit(130) from error
    finally:
        warnings.showwarning = shown


def main() -> None:
    """Entry point of the ``curvprobe`` command."""
    keep_freed()
    sys.exit(app())
