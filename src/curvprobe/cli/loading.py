"""A user's task, with what the command was asked for in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import typer
from torch import Tensor

from curvprobe.cli.options import Work, as_bytes
from curvprobe.cli.processes import group
from curvprobe.errors import ArgumentError
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.risk.parameters import Selection, select_parameters
from curvprobe.risk.presets import PRESETS
from curvprobe.tasks import Task, load_task

LARGE = 10_000_000
"""Parameters beyond which the command leaves out what its answer does not rest on."""


@dataclass(frozen=True)
class Source:
    """Where a task comes from: the user's function, or a model's folder and texts."""

    task: str | None
    hf: Path | None = None
    text: Path | None = None
    context: int | None = None
    candidates: str | None = None


def task_from(source: Source, params: list[str] | None = None, device: str | None = None) -> Task:
    """The task, with what the command was asked for in its place."""
    if (source.task is None) == (source.hf is None):
        raise typer.BadParameter("expected a task, file.py:function, or --hf and --text: one of both")
    if source.task is not None:
        if source.text or source.context or source.candidates:
            raise typer.BadParameter("--text, --context and --candidates go with --hf; a task says these itself")
        return task_with(load_task(source.task), params, device)
    if source.text is None:
        raise typer.BadParameter("--hf needs --text, the file with the model's training sample")
    assert source.hf is not None
    return task_with(_of_folder(source.hf, source.text, source, params), None, device)


def _of_folder(folder: Path, text: Path, source: Source, params: list[str] | None) -> Task:
    from curvprobe.tasks.folders import load_folder, read_texts

    held_out: Any = source.candidates
    if held_out is not None:
        held_out = int(held_out) if held_out.isdecimal() else read_texts(held_out)
    texts, (model, tokenizer) = read_texts(text), load_folder(folder)
    selection = selection_of(params)
    probed = set(select_parameters(model, selection))
    for name, parameter in model.named_parameters():  # what is frozen is neither copied nor raised
        parameter.requires_grad_(name in probed)
    return Task.from_transformers(
        model, tokenizer, texts, candidates=held_out, context=source.context, params=selection
    )


def selection_of(params: list[str] | None) -> Selection:
    """The values of --params: a preset by itself, or names and patterns."""
    if not params:
        return None
    return params[0] if len(params) == 1 and params[0] in PRESETS else params


def task_with(task: Task, params: list[str] | None, device: str | None) -> Task:
    """The task with what the command was asked for in its place."""
    if device is not None:
        task.model.to(device)
    return replace(task, params=selection_of(params)) if params else task


def sample_of(task: Task, k: int | None, memory_budget: float | None) -> EmpiricalRisk:
    """The risk on the first k examples of the task."""
    risk = task.risk(None if memory_budget is None else as_bytes(memory_budget), group())
    if k is not None and not 1 <= k <= len(risk):
        raise ArgumentError(f"--k is {k}; the task's sample has {len(risk)} examples: expected 1 to {len(risk)}")
    return risk if k is None else risk[:k]


def candidates_of(task: Task, risk: EmpiricalRisk) -> EmpiricalRisk | None:
    """The risk on the task's candidates, with as many names and pictures as there are of them."""
    if task.candidates is None:
        return None
    candidates = risk.on(task.candidates, task.collate_fn)
    for name, given in (("names", task.names), ("pictures", task.pictures)):
        if given is not None and len(given) != len(candidates):
            raise ArgumentError(f"the task has {len(given)} {name} for {len(candidates)} candidates; expected as many")
    return candidates


def pictures_of(task: Task) -> Any:
    """The candidates' pictures: as the task says, or its inputs where these are images of one channel or three."""
    data = task.candidates
    if task.pictures is not None or data is None:
        return task.pictures
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, tuple) else (data,)
    images = (part for part in parts if isinstance(part, Tensor) and part.dim() == 4 and part.shape[1] in (1, 3))
    return next(images, None)


def sigma_of(text: str) -> float | Literal["auto"]:
    """The value of --sigma."""
    return "auto" if text == "auto" else float(text)


def stages_of(work: Work, risk: EmpiricalRisk) -> Literal["full", "quick"]:
    """The value of --stages, where it is auto by the model's size."""
    return "quick" if work is Work.QUICK or (work is Work.AUTO and risk.num_params > LARGE) else "full"
