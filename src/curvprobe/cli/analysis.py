"""demo, run and doctor: arguments to :func:`curvprobe.analyze` and :func:`curvprobe.examine`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from curvprobe.analysis.analyze import analyze
from curvprobe.analysis.conditions import Condition
from curvprobe.analysis.doctor import examine
from curvprobe.analysis.examination import Examination
from curvprobe.analysis.result import REPORT, Analysis
from curvprobe.analysis.table import sections
from curvprobe.cli.app import app
from curvprobe.cli.formats import ReportFormat, workflow_commands, write_junit
from curvprobe.cli.loading import Source, candidates_of, pictures_of, sample_of, sigma_of, stages_of, task_from
from curvprobe.cli.messages import plain_errors, reported, saved, say, show_sections, tell
from curvprobe.cli.options import (
    AllowOverlap,
    As,
    AsJson,
    Candidates,
    Compile,
    Concentration,
    Context,
    Device,
    Dim,
    DryRun,
    FailIf,
    Full,
    HuggingFace,
    K,
    Laws,
    MaxExamples,
    Memory,
    NoReport,
    NumProbes,
    On,
    P,
    Params,
    Quiet,
    Seed,
    Sigma,
    Stages,
    Surface,
    TaskName,
    Text,
    Tol,
    Tolerance,
    ToleranceOn,
    Work,
)
from curvprobe.cli.plan import show_plan
from curvprobe.cli.processes import speaks
from curvprobe.errors import CurvprobeError
from curvprobe.runtime.plain import to_json
from curvprobe.runtime.store import Store
from curvprobe.tasks import Task

FAILED = 3
"""Exit code where a condition of --fail-if is met."""


class BuiltIn(StrEnum):
    """Tasks that come with the package."""

    DIGITS = "digits"
    TEXT = "text"


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
    tolerance_on: ToleranceOn = On.TOTAL,
    p: P = 2.0,
    max_examples: MaxExamples = None,
    laws: Laws = False,
    concentration: Concentration = False,
    surface: Surface = 21,
    stages: Stages = Work.AUTO,
    seed: Seed = 0,
    memory_budget: Memory = None,
    compiled: Compile = False,
    allow_overlap: AllowOverlap = False,
    fail_if: FailIf = None,
    report_format: As = None,
    no_report: NoReport = False,
    full: Full = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a built-in task and analyse it. Nothing is downloaded.

    Example: curvprobe demo --task text --dim 5 --out runs/text
    """
    folder = out or Path("runs") / task.value
    with plain_errors(quiet=quiet), Store.at(folder).held():
        say(f"Training the {task.value} task (kept in {folder / 'model.safetensors'}) ...")
        built = _build(task, k, seed, folder / "model.safetensors")
        _analyse(
            built,
            None,
            sigma,
            folder,
            memory_budget,
            Shown(full, as_json, quiet, tuple(fail_if or ()), not no_report, report_format),
            dim=dim,
            num_probes=num_probes,
            tol=tol,
            tolerance=tolerance,
            tolerance_on=tolerance_on.value,
            p=p,
            max_examples=max_examples,
            laws=laws,
            concentration=concentration,
            surface=surface,
            stages=stages,
            seed=seed,
            compile=compiled,
            allow_overlap=allow_overlap,
        )


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    task: TaskName = None,
    hf: HuggingFace = None,
    text: Text = None,
    context: Context = None,
    candidates: Candidates = None,
    k: K = None,
    params: Params = None,
    device: Device = None,
    dim: Dim = 10,
    sigma: Sigma = "auto",
    num_probes: NumProbes = 64,
    tol: Tol = 1e-3,
    tolerance: Tolerance = None,
    tolerance_on: ToleranceOn = On.TOTAL,
    p: P = 2.0,
    max_examples: MaxExamples = None,
    laws: Laws = False,
    concentration: Concentration = False,
    surface: Surface = 21,
    stages: Stages = Work.AUTO,
    seed: Seed = 0,
    memory_budget: Memory = None,
    compiled: Compile = False,
    allow_overlap: AllowOverlap = False,
    fail_if: FailIf = None,
    report_format: As = None,
    no_report: NoReport = False,
    full: Full = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Analyse your own trained model.

    Example: curvprobe run my_task.py:task --k 500 --dim 10 --out runs/mine

    A language model or a classifier of Hugging Face in a folder, or an adapter of peft:
    curvprobe run --hf my_model --text corpus.txt --candidates held_out.txt --params last-block --out runs/mine

    Several processes share the examples, each with the whole model; the first one speaks and writes:
    torchrun --nproc-per-node 2 -m curvprobe run my_task.py:task --out runs/mine
    """
    with plain_errors(quiet=quiet):
        loaded = task_from(Source(task, hf, text, context, candidates), params, device)
        costly: dict[str, Any] = {
            "dim": dim,
            "num_probes": num_probes,
            "tol": tol,
            "p": p,
            "max_examples": max_examples,
            "laws": laws,
            "concentration": concentration,
            "surface": surface,
            "stages": stages,
            "seed": seed,
            "allow_overlap": allow_overlap,
        }
        if dry_run:
            show_plan(loaded, k, memory_budget, as_json=as_json, sigma=sigma, **costly)
            return
        _analyse(
            loaded,
            k,
            sigma,
            out,
            memory_budget,
            Shown(full, as_json, quiet, tuple(fail_if or ()), not no_report, report_format),
            tolerance=tolerance,
            tolerance_on=tolerance_on.value,
            compile=compiled,
            **costly,
        )


@app.command()
def doctor(
    task: TaskName = None,
    hf: HuggingFace = None,
    text: Text = None,
    context: Context = None,
    candidates: Candidates = None,
    k: K = None,
    params: Params = None,
    device: Device = None,
    dim: Dim = 10,
    memory_budget: Memory = None,
    allow_overlap: AllowOverlap = False,
) -> None:
    """Check your own trained model, loss and data before an analysis: a line for each check, with what to do.

    **pass**: nothing was found. **doubt**: it could not be decided, or you should know it. **fail**: an analysis would
    be refused; exit code 1. Second derivatives, noise, dependence on the batch, attention, precision, parameters that
    are not reached, memory and time: in under a minute, since some examples are looked at, not all.

    Example: curvprobe doctor my_task.py:task --k 500 --dim 10
    """
    with plain_errors():
        loaded = task_from(Source(task, hf, text, context, candidates), params, device)
        if loaded.description:
            say(loaded.description)
        try:
            risk = sample_of(loaded, k, memory_budget)
        except CurvprobeError as error:
            if not error.check:  # of the command's own arguments
                raise
            found = Examination.refused(error)
        else:
            found = examine(risk, loaded.candidates, dim=dim, allow_overlap=allow_overlap)
    typer.echo(str(found))
    if found.verdict == "fail":
        raise typer.Exit(1)


def _build(task: BuiltIn, k: int | None, seed: int, cache: Path) -> Task:
    size: dict[str, Any] = {} if k is None else {"k": k}
    if task is BuiltIn.DIGITS:
        from curvprobe.tasks.digits import digits

        return digits(**size, seed=seed, cache=cache)
    from curvprobe.tasks.text import text

    return text(**size, seed=seed, cache=cache)


@dataclass(frozen=True)
class Shown:
    """What a command prints on standard output, the conditions at which it fails, whether it writes a report, and in
    which form a pipeline reads the outcome."""

    full: bool
    as_json: bool
    quiet: bool
    fail_if: tuple[str, ...]
    report: bool
    also: ReportFormat | None


def _analyse(
    task: Task,
    k: int | None,
    sigma: str,
    out: Path,
    memory_budget: float | None,
    shown: Shown,
    *,
    stages: Work,
    **options: Any,
) -> None:
    """Analyse and say what was found; ``options`` are those of :func:`curvprobe.analyze` by the same names."""
    if task.description:
        say(task.description)
    risk = sample_of(task, k, memory_budget)
    chosen = stages_of(stages, risk)
    candidates = candidates_of(task, risk)
    with Store.at(out, risk.ranks).held():  # until its figures and its report are written too
        analysis = analyze(risk, candidates, sigma=sigma_of(sigma), out=out, stages=chosen, **options)
        if speaks():
            _print(analysis, task, shown, out, quick=chosen == "quick")
        _end(analysis, shown, out)


def _print(analysis: Analysis, task: Task, shown: Shown, out: Path, *, quick: bool) -> None:
    """Write the figures and the report, and say what was found and where it lies."""

    def figures() -> list[Path]:
        from curvprobe.plots import save_figures

        return save_figures(analysis, out)

    named = {} if task.candidates is None else {"names": task.names, "pictures": pictures_of(task)}
    writable = Store.at(out).writable  # a finished run may be read where nothing can be added
    count = len(saved(figures)) // 2 if writable else 0
    has_report = shown.report and writable and reported(lambda: analysis.to_html(out / REPORT, **named))
    if shown.as_json:
        typer.echo(to_json(analysis.to_json()), nl=False)
    elif not shown.quiet:
        tell(str(analysis.answer))
        if shown.full:
            show_sections(sections(analysis))
        files = ["result.json", *([REPORT] if has_report else []), *([f"{count} figures"] if count else [])]
        tell(f"written to {out}/: {', '.join(files)}" + ("" if shown.full else "; all tables: --full"))
        if quick:
            tell("left out: the criterion with isotropic probes, the picture of the loss (--stages full)")


def _end(analysis: Analysis, shown: Shown, out: Path) -> None:
    """Tell a pipeline how it ended, and fail where a condition is met."""
    outcomes = {text: Condition.parse(text).met_by(analysis) for text in shown.fail_if}
    if shown.also is ReportFormat.JUNIT and speaks():
        write_junit(out, analysis.answer, outcomes)
    elif shown.also is ReportFormat.GITHUB:
        # Commands are read from either stream; that of --json holds nothing else.
        typer.echo("\n".join(workflow_commands(analysis.answer, outcomes)), err=shown.as_json)
    met = [reason for reason in outcomes.values() if reason is not None]
    for reason in met:
        say(f"Failed: {reason}", style="red")
    if met:
        raise typer.Exit(FAILED)
