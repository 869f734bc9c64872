"""Runs that are killed within each of their stages, go on, and must end in what a run ends in that is let be."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from curvprobe.runtime.lock import TEMPORARY

PATIENCE = 600
TIMES = {"seconds", "load_average"}
"""Entries of a result that differ from run to run."""

TASK = """
import torch
import curvprobe as cp

def task():
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 80, dtype=torch.float64)[:, None]
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    return cp.Task(model, cp.losses.mse, (x[::2], x[::2].sin()), (x[1::2], x[1::2].sin()))
"""

OPTIONS = ("--dim", "3", "--num-probes", "4", "--surface", "5", "--tolerance", "0.1", "--no-report")

ENDED = "after the end"
"""In the place of the stage that a kill fell in, where the run had ended before it."""


def command(folder: Path, out: Path, processes: int, *options: str) -> list[str]:
    """The analysis of the small task by one process or several."""
    task = folder / "task.py"
    task.write_text(TASK)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [] if processes == 1 else launcher
    return [sys.executable, *start, "-m", "curvprobe", "run", f"{task}:task", "--out", str(out), *OPTIONS, *options]


def finished(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The command, when it has ended."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE, env=environment)


def stages_of(out: Path) -> dict[str, float]:
    """The stages of a run that has ended, in their order, the figures last, and the seconds until each was written."""
    written = {path.stem: path.stat().st_mtime for path in out.glob("*.json")}
    written["figures"] = max(path.stat().st_mtime for path in out.iterdir())
    names = sorted(written, key=written.__getitem__)
    before = (out / ".lock").stat().st_mtime, *(written[name] for name in names)
    return {name: written[name] - start for name, start in zip(names, before, strict=False)}


def killed(arguments: list[str], begun: Path, after: float) -> bool:
    """Kill the command and all its processes so many seconds after a file is there; whether it still ran."""
    process = psutil.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def wait_for(path: Path) -> None:
        while not path.exists() and process.poll() is None:
            time.sleep(0.001)

    wait_for(begun.with_name(".lock"))
    # Sought now, since that takes as long as a stage; launched processes have sessions of their own.
    with suppress(psutil.NoSuchProcess):
        running = [process, *process.children(recursive=True)]
        wait_for(begun)
        time.sleep(after)
        for one in running:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(running, timeout=30)
    return bool(process.wait() != 0)


def fell_in(out: Path, stages: list[str]) -> str:
    """The stage at which a run was that is no more: the first one that did not come to be written."""
    return next(name for name in stages if not (out / f"{name}.json").exists())


def aims(stages: list[str], count: int, rng: random.Random) -> list[str]:
    """Stages for as many kills: each as often as every other, but for one; in any order."""
    chosen = [stage for _ in range(count // len(stages)) for stage in stages]
    chosen += rng.sample(stages, count % len(stages))
    return rng.sample(chosen, count)


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Entries that are not the same, but for times."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other} - TIMES):
            yield from differences(one.get(key), other.get(key), f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, parts in enumerate(zip(one, other, strict=True)):
            yield from differences(*parts, f"{path}[{i}]")
    elif one != other:
        yield f"{path.lstrip('.')}: {one!r:.40} and {other!r:.40}"


def record_of(out: Path) -> Any:
    """A run's result."""
    return json.loads((out / "result.json").read_text())


def kills(count: int, processes: int, rng: random.Random) -> dict[str, Any]:
    """Runs that are killed, each in a folder of its own, and repeated: what differs from one that was let be."""
    found: dict[str, Any] = {"kills": count, "processes": processes, "failed": [], "different": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        start = time.time()
        whole = finished(command(folder, folder / "whole", processes))
        if whole.returncode != 0:
            return {**found, "failed": [whole.stderr[-2000:]]}
        found["seconds_of_a_run"] = time.time() - start
        expected, seconds = record_of(folder / "whole"), stages_of(folder / "whole")
        stages = list(seconds)
        fell, unfinished = Counter(dict.fromkeys([*stages, ENDED], 0)), 0
        for i, stage in enumerate(aims(stages, count, rng)):
            out = folder / f"run{i}"
            before = dict(zip(stages, [".lock", *(f"{name}.json" for name in stages)], strict=False))[stage]
            at_work = killed(command(folder, out, processes), out / before, rng.uniform(0, seconds[stage]))
            fell[fell_in(out, stages) if at_work else ENDED] += 1
            unfinished += any(out.glob(f".*{TEMPORARY}"))
            again = finished(command(folder, out, processes))
            if again.returncode != 0 or "Warning" in again.stderr:
                found["failed"].append({"run": i, "code": again.returncode, "said": again.stderr[-2000:]})
            if again.returncode == 0:
                found["different"] += [f"run {i}: {said}" for said in differences(expected, record_of(out))]
    return {**found, "seconds_of_the_stages": seconds, "killed_in": dict(fell), "while_writing_a_file": unfinished}
