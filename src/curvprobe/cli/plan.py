"""plan: what an analysis will take, stage by stage, before anything long runs."""

from __future__ import annotations

from typing import Any

import typer

from curvprobe.analysis.plan import plan as planned
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
    laws: Laws = False,
    concentration: Concentration = False,
    surface: Surface = 21,
    stages: Stages = Work.AUTO,
    seed: Seed = 0,
    memory_budget: Memory = None,
    allow_overlap: AllowOverlap = False,
    as_json: AsJson = False,
) -> None:
    """Tell what `curvprobe run` with these options will take: products, time and memory of every stage, in seconds.

    Example: curvprobe plan my_task.py:task --k 500 --dim 10
    """
    with plain_errors():
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
            laws=laws,
            concentration=concentration,
            surface=surface,
            stages=stages,
            seed=seed,
            allow_overlap=allow_overlap,
        )


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
