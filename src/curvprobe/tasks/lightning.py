"""A module of Lightning with its data as a task; its own training step is the loss, or one that is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, default_collate

from curvprobe.errors import ArgumentError, ArgumentTypeError, CannotProbeError, CannotProbeTypeError
from curvprobe.losses import Loss
from curvprobe.risk.parameters import Selection
from curvprobe.tasks import Task


def task_of_module(
    module: nn.Module, datamodule: Any, *, loss: Loss | None = None, params: Selection = None, candidates: bool = True
) -> Task:
    """See :meth:`curvprobe.Task.from_lightning`."""
    training = _loader(datamodule, "train_dataloader")
    held_out = _loader(datamodule, "val_dataloader") if candidates and _has(datamodule, "val_dataloader") else None
    if held_out is not None and held_out.collate_fn is not training.collate_fn:
        raise ArgumentError(
            "train_dataloader and val_dataloader put examples together in ways of their own; pass candidates=False, "
            "or make a curvprobe.Task by hand"
        )
    own: dict[str, Any] = {"loss": loss} if loss is not None else _own_step(module)
    name = type(module).__name__
    through = "a loss that was given" if loss is not None else "its own training step, an example at a time"
    return Task(
        model=module.eval(),
        data=training.dataset,
        candidates=None if held_out is None else held_out.dataset,
        params=params,
        collate_fn=None if training.collate_fn is default_collate else training.collate_fn,
        description=f"{name} of Lightning, by {through}; {_size(training)} training examples, "
        + ("no candidates" if held_out is None else f"{_size(held_out)} of validation as candidates"),
        **own,
    )


def _size(loader: DataLoader[Any]) -> int:
    dataset: Any = loader.dataset
    return len(dataset)


# ---- data


def _has(datamodule: Any, name: str) -> bool:
    """Whether an object has this method, not only the empty one of Lightning's own classes."""
    if name in getattr(datamodule, "__dict__", {}):  # as LightningDataModule.from_datasets() sets it
        return True
    found = getattr(type(datamodule), name, None)
    return found is not None and not getattr(found, "__module__", "").startswith(("lightning.", "pytorch_lightning."))


def _loader(datamodule: Any, name: str) -> DataLoader[Any]:
    """The loader that a datamodule makes, prepared as a Trainer does it."""
    if not _has(datamodule, name):
        raise ArgumentTypeError(
            f"datamodule is a {type(datamodule).__name__} without {name}; expected a LightningDataModule"
        )
    for hook, arguments in (("prepare_data", ()), ("setup", ("fit",))):
        if name == "train_dataloader" and hasattr(datamodule, hook):
            getattr(datamodule, hook)(*arguments)
    loader = getattr(datamodule, name)()
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    if not isinstance(loader, DataLoader):
        raise CannotProbeTypeError(f"{name} returned a {type(loader).__name__}; expected one torch DataLoader")
    if isinstance(loader.dataset, IterableDataset) or (loader.batch_size is None and loader.batch_sampler is None):
        raise CannotProbeError(
            f"{name} has a stream of examples; expected a data set whose examples can be read again by their position"
        )
    return loader


# ---- the module's own loss


def _own_step(module: nn.Module) -> dict[str, Any]:
    """Parts of a task that evaluate a module by its training step."""
    step = getattr(module, "training_step", None)
    if not callable(step) or not _has(module, "training_step"):
        raise ArgumentTypeError(
            f"module is a {type(module).__name__} without training_step; expected a LightningModule, or loss="
        )
    if not getattr(module, "automatic_optimization", True):
        raise CannotProbeError(
            "the module optimizes by hand in its training step (automatic_optimization=False), so that it hands out no "
            "loss; give one: loss=, which is called as loss(module(x), batch)"
        )
    return {"loss": step_loss, "forward": training_step, "microbatch_size": 1}


def training_step(module: nn.Module, batch: Any) -> Any:
    """What a module's training step returns for a batch, while it logs nothing."""
    step: Callable[..., Any] = module.training_step  # type: ignore[assignment]
    kinds = [parameter.kind for parameter in inspect.signature(step).parameters.values()]
    positional = sum(
        kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds
    )
    with _unlogged(module):  # its position too where there is room, as Lightning has it, whatever it is called
        return step(batch, 0) if positional > 1 or inspect.Parameter.VAR_POSITIONAL in kinds else step(batch)


@contextmanager
def _unlogged(module: nn.Module) -> Iterator[None]:
    """A block in which a module's log methods do nothing: there is no Trainer, or its loop is over."""
    names = [name for name in ("log", "log_dict") if hasattr(module, name) and name not in vars(module)]
    for name in names:
        object.__setattr__(module, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name in names:
            object.__delattr__(module, name)


def step_loss(outputs: Any, batch: Any) -> Tensor:  # noqa: ARG001 - a loss is given the batch
    """The loss of one example, (1,), from what a training step returned."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise CannotProbeTypeError(
            f"training_step returned {type(outputs).__name__}; expected a loss, or a mapping with one under 'loss'"
        )
    return loss.reshape(1)
