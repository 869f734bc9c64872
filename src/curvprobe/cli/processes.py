"""The command in each of the processes that ``torchrun`` starts: they form a group, of which the first one speaks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch
import torch.distributed as dist
import typer

SHARED = ("run",)
"""Commands whose work processes can share."""


def launched() -> int:
    """How many processes torchrun has started; 1 where it was not used."""
    return int(os.environ.get("WORLD_SIZE", "1")) if dist.is_torchelastic_launched() else 1


def group() -> dist.ProcessGroup | None:
    """The processes that share the work, where there are several."""
    return dist.group.WORLD if dist.is_initialized() and dist.get_world_size() > 1 else None


def speaks() -> bool:
    """Whether this process is the one that says what is done and found."""
    return group() is None or dist.get_rank() == 0


@contextmanager
def together() -> Iterator[None]:
    """A block within the group of the processes that were started, where there are several."""
    if launched() == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if speaks() else nowhere):
            yield
    finally:
        dist.destroy_process_group()  # or its threads may end the interpreter by a signal


def refuse_alone(command: str | None) -> None:
    """Refuse a command that each process would do by itself, all into the same files."""
    if launched() > 1 and command is not None and command not in SHARED:
        raise typer.BadParameter(
            f"torchrun started {launched()} processes, which share the work of {', '.join(SHARED)} only: start "
            f"`curvprobe {command}` by itself"
        )
