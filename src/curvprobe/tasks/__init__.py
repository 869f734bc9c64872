"""Tasks: a trained model with its loss, its sample and candidates outside it; built in, or from a user's file.

Imports risk and the ground; the command, experiments and benchmarks may import it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from curvprobe.errors import ArgumentError
from curvprobe.losses import Loss
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.risk.parameters import Selection


@dataclass(frozen=True, eq=False)
class Task:
    """What a run needs; see :class:`curvprobe.EmpiricalRisk` for the forms that each part may take.

    Attributes:
        model: trained, usually in eval mode.
        loss: per-example loss.
        data: the sample that the model was trained on, in order.
        candidates: examples it was not trained on, or None.
        params: which parameters to probe.
        microbatch_size: examples in one pass; None picks it.
        collate_fn: for a dataset.
        forward: ``forward(model, batch)`` for a model that is called another way.
        names: of the candidates, for the report's ranking.
        pictures: of the candidates, beside their names: (n, H, W) or (n, C, H, W) numbers, or a sequence of such.
        description: one line for the person who reads the run.
    """

    model: nn.Module
    loss: Loss
    data: Any
    candidates: Any = None
    params: Selection = None
    microbatch_size: int | None = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    description: str = ""
    forward: Callable[[nn.Module, Any], Any] | None = None
    names: Sequence[str] | None = None
    pictures: Any = None

    def risk(self, memory_budget: int | None = None) -> EmpiricalRisk:
        """The empirical risk on the sample, for work within so many bytes."""
        return EmpiricalRisk(
            self.model,
            self.loss,
            self.data,
            params=self.params,
            microbatch_size=self.microbatch_size,
            collate_fn=self.collate_fn,
            memory_budget=memory_budget,
            forward=self.forward,
        )


def load_task(spec: str, *arguments: Any) -> Task:
    """The task that ``file.py:function`` or ``module:function`` returns, called with the arguments.

    Raises:
        ValueError: if there is no such file, module or function, or it returns something else than a Task.
    """
    task = load_function(spec)(*arguments)
    if not isinstance(task, Task):
        raise ArgumentError(f"{spec} returned a {type(task).__name__}; expected a curvprobe.Task")
    return task


def load_function(spec: str) -> Callable[..., Any]:
    """The function that ``file.py:function`` or ``module:function`` names.

    Raises:
        ValueError: if there is none.
    """
    place, colon, function = spec.rpartition(":")
    if not colon or not place or not function:
        raise ArgumentError(f"the task is {spec!r}; expected file.py:function or module:function")
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise ArgumentError(f"the task's file {place!r} does not exist")
        name = f"curvprobe_task_{path.stem}"
        module_spec = importlib.util.spec_from_file_location(name, path)
        assert module_spec is not None
        assert module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module  # dataclasses and pickling look a class's module up by name
        sys.path.insert(0, str(path.parent.resolve()))  # for the task's own imports, also later ones, as python does
        module_spec.loader.exec_module(module)
    else:
        sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
                raise
            raise ArgumentError(f"the task's module {place!r} was not found; expected file.py:function too") from error
    maker = getattr(module, function, None)
    if not callable(maker):
        raise ArgumentError(f"{place} has no function {function!r}")
    return cast(Callable[..., Any], maker)
