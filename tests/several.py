"""Runs a function of the tests in several processes of one group."""

import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SERVER = multiprocessing.get_context("forkserver")  # imports once, and every process is a copy of it
SERVER.set_forkserver_preload(
    [
        "tests.several",
        "curvprobe.analysis.analyze",
        "pytest",
        "rich.progress",
        "scipy.stats",
        "torch._decomp.decompositions_for_jvp",
        "torch._dynamo",
    ]
)

PATIENCE = 120


@dataclass(frozen=True)
class Outcome:
    """What became of one process: what its function returned or raised, its exit code, and after how many seconds."""

    value: Any
    error: Exception | None
    code: int
    seconds: float


def run(world: int, function: Callable, *arguments: Any) -> list[Outcome]:
    """What becomes of ``function(group, *arguments)`` in each of so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            SERVER.Process(target=_live, args=(folder, rank, world, function, arguments)) for rank in range(world)
        ]
        start = time.monotonic()
        for process in processes:
            process.start()
        found = []
        for rank, process in enumerate(processes):
            process.join(max(0.0, PATIENCE - (time.monotonic() - start)))
            if process.exitcode is None:
                process.kill()
                process.join()
            path = Path(folder, f"result-{rank}")
            value, error = pickle.loads(path.read_bytes()) if path.exists() else (None, None)
            found.append(Outcome(value, error, process.exitcode, time.monotonic() - start))
        return found


def values(world: int, function: Callable, *arguments: Any) -> list[Any]:
    """What each returns; fails where one does not."""
    found = run(world, function, *arguments)
    for outcome in found:
        if outcome.error is not None:
            raise outcome.error
        assert outcome.code == 0
    return [outcome.value for outcome in found]


def _live(folder: str, rank: int, world: int, function: Callable, arguments: tuple[Any, ...]) -> None:
    """The life of one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    outcome: tuple[Any, Exception | None]
    try:
        outcome = function(dist.group.WORLD, *arguments), None
    except Exception as error:
        outcome = None, error
    Path(folder, f".{rank}").write_bytes(pickle.dumps(outcome))
    Path(folder, f".{rank}").replace(Path(folder, f"result-{rank}"))
    dist.destroy_process_group()
