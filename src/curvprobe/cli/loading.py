"""A user's task, with what the command was asked for in its place."""

from __future__ import annotations

from dataclasses import replace

from curvprobe.cli.options import as_bytes
from curvprobe.errors import ArgumentError
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.tasks import Task


def task_with(task: Task, params: list[str] | None, device: str | None) -> Task:
    """The task with what the command was asked for in its place."""
    if device is not None:
        task.model.to(device)
    return replace(task, params=params) if params else task


def sample_of(task: Task, k: int | None, memory_budget: float | None) -> EmpiricalRisk:
    """The risk on the first k examples of the task."""
    risk = task.risk(memory_budget=None if memory_budget is None else as_bytes(memory_budget))
    if k is not None and not 1 <= k <= len(risk):
        raise ArgumentError(f"--k is {k}; the task's sample has {len(risk)} examples: expected 1 to {len(risk)}")
    return risk if k is None else risk[:k]
