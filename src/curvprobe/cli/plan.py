"""plan: what an analysis will take, stage by stage, before anything long runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from curvprobe.analysis.plan import plan as planned
from curvprobe.analysis.scale import Scale
from curvprobe.cli.app import app
from curvprobe.cli.loading import Source, candidates_of, sample_of, sigma_of, stages_of, task_from
from curvprobe.cli.messages import plain_errors, say
from curvprobe.cli.options import (
    AllowOverlap,
    AsJson,
    Candidates,
    Concentration,
    Context,
    Device,
    Dim,
    HuggingFace,
    K,
    Laws,
    MaxExamples,
    Memory,
    NumProbes,
    P,
    Params,
    Seed,
    Sigma,
    Stages,
    Surface,
    TaskName,
    Text,
    Tol,
    Work,
)
from curvprobe.runtime.plain import to_json
from curvprobe.tasks import Task

Examples = Annotated[
    float | None,
    typer.Option(help="Without a task: of the sample, 1e4 say; --params is then the number of the model's parameters."),
]
Gpus = Annotated[int, typer.Option(help="With --examples: accelerators that share the work.")]
Tokens = Annotated[int, typer.Option(help="With --examples: in an example.")]
Probed = Annotated[
    float | None, typer.Option(help="With --examples: parameters that are probed, the others frozen. Default: all.")
]


@app.command()
def plan(
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
    p: P = 2.0,
    max_examples: MaxExamples = None,
    laws: Laws = False,
    concentration: Concentration = False,
    surface: Surface = 21,
    stages: Stages = Work.AUTO,
    seed: Seed = 0,
    memory_budget: Memory = None,
    allow_overlap: AllowOverlap = False,
    as_json: AsJson = False,
    examples: Examples = None,
    gpus: Gpus = 1,
    tokens: Tokens = 512,
    probed: Probed = None,
) -> None:
    """Tell what `curvprobe run` with these options will take: products, time and memory of every stage, in seconds.

    Example: curvprobe plan my_task.py:task --k 500 --dim 10

    Without a task, from sizes alone: a transformer of so many parameters, on accelerators that share the examples.
    curvprobe plan --params 7e9 --examples 1e4 --gpus 8 --probed 2e7
    """
    with plain_errors():
        sizes = Sizes(task or hf, params, examples, tokens, gpus, probed)
        if sizes.told:
            typer.echo(show_scale(sizes, dim, as_json=as_json), nl=False)
            return
        show_plan(
            task_from(Source(task, hf, text, context, candidates), params, device),
            k,
            memory_budget,
            as_json=as_json,
            dim=dim,
            sigma=sigma,
            num_probes=num_probes,
            tol=tol,
            p=p,
            max_examples=max_examples,
            laws=laws,
            concentration=concentration,
            surface=surface,
            stages=stages,
            seed=seed,
            allow_overlap=allow_overlap,
        )


@dataclass(frozen=True)
class Sizes:
    """What the command was told of an analysis that is only to be reckoned."""

    task: object
    params: list[str] | None
    examples: float | None
    tokens: int
    gpus: int
    probed: float | None

    @property
    def told(self) -> bool:
        """Whether any of them was."""
        return self.examples is not None or (self.tokens, self.gpus, self.probed) != (512, 1, None)


def show_scale(sizes: Sizes, dim: int, *, as_json: bool) -> str:
    """The text of what sizes alone tell."""
    if sizes.task is not None or sizes.examples is None:
        said = "--examples, --gpus, --tokens and --probed go together, and without a task: what one takes is measured"
        raise typer.BadParameter(said)
    try:
        count = float(" ".join(sizes.params or ()))
    except ValueError:
        said = f"--params is {' '.join(sizes.params or ()) or 'left out'}; with --examples expected a number, 7e9 say"
        raise typer.BadParameter(said) from None
    found = Scale(count, sizes.examples, sizes.tokens, dim, sizes.gpus, sizes.probed)
    return to_json(found.to_json()).decode() if as_json else f"{found}\n"


def show_plan(
    task: Task, k: int | None, memory_budget: float | None, *, as_json: bool, sigma: str, stages: Work, **options: Any
) -> None:
    """Print the plan of an analysis; ``options`` are those of :func:`curvprobe.plan` by the same names."""
    if task.description:
        say(task.description)
    risk = sample_of(task, k, memory_budget)
    found = planned(
        risk,
        candidates_of(task, risk),
        sigma=sigma_of(sigma),
        stages=stages_of(stages, risk),
        **options,
    )
    typer.echo(to_json(found.to_json()) if as_json else f"{found}\n", nl=False)
