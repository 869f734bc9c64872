"""Runs that are killed within each of their stages, go on, and must end in what a run ends in that is let be.

Their processes are copies of one that has imported all before: a new interpreter's imports take longer than a run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from curvprobe.runtime.lock import TEMPORARY

SERVER = multiprocessing.get_context("forkserver")
IMPORTED = ["curvprobe.cli", "curvprobe.analysis.analyze", "curvprobe.plots.saving"]
IMPORTED += ["torch._dynamo", "scipy.stats", "matplotlib.figure", "matplotlib.backends.backend_pdf"]
"""All that a run imports. Nothing is computed in the server: the threads of what computes are not in its copies."""

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

MISSES = 3
"""Kills aimed at a stage that weigh as one that fell in it: a stage of milliseconds may be missed again and again."""

ENDED = "after the end"
"""In the place of the stage that a kill fell in, where the run had ended before it."""


def arguments(folder: Path, out: Path, *options: str) -> list[str]:
    """Of the command that analyses the small task."""
    task = folder / "task.py"
    task.write_text(TASK)
    return ["run", f"{task}:task", "--out", str(out), *OPTIONS, *options]


def launched(folder: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The analysis by two processes that torchrun starts, when it has ended."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "curvprobe"]
    command = [sys.executable, *launcher, *arguments(folder, out, *options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def _live(said: str, environment: dict[str, str], given: list[str]) -> None:
    """What a process does: the command, whose words go to a file."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    sys.argv = ["curvprobe", *given]

    from curvprobe.cli import main

    main()


def started(folder: Path, out: Path, processes: int) -> list[BaseProcess]:
    """The analysis by so many processes, which find one another as those do that torchrun starts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared = {**place, "WORLD_SIZE": str(processes), "TORCHELASTIC_RUN_ID": "endurance"} if processes > 1 else {}
    given = arguments(folder, out)
    all_of_them: list[BaseProcess] = []
    for rank in map(str, range(processes)):
        environment = shared and {**shared, "RANK": rank, "LOCAL_RANK": rank}
        all_of_them.append(SERVER.Process(target=_live, args=(f"{out}.said", environment, given)))
        all_of_them[-1].start()
    return all_of_them


def ended(processes: Sequence[BaseProcess]) -> list[int | None]:
    """Their exit codes, when they have ended."""
    end = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()  # one that hangs
    return codes


def stages_of(out: Path) -> dict[str, float]:
    """The stages of a run that has ended, in their order, the figures last, and the seconds until each was written."""
    written = {path.stem: path.stat().st_mtime for path in out.glob("*.json")}
    written["figures"] = max(path.stat().st_mtime for path in out.iterdir())
    names = sorted(written, key=written.__getitem__)
    before = (out / ".lock").stat().st_mtime, *(written[name] for name in names)
    return {name: written[name] - start for name, start in zip(names, before, strict=False)}


def killed(processes: Sequence[BaseProcess], begun: Path, after: float) -> bool:
    """Kill all of them so many seconds after a file is there; whether they still ran."""
    while not begun.exists() and all(process.is_alive() for process in processes):
        time.sleep(0.001)
    time.sleep(after)
    for process in processes:
        process.kill()
    return -signal.SIGKILL in ended(processes)


def fell_in(out: Path, stages: list[str]) -> str:
    """The stage at which a run was that is no more: the first one that did not come to be written."""
    return next(name for name in stages if not (out / f"{name}.json").exists())


def next_aim(fell: Mapping[str, int], aimed: Mapping[str, int], stages: Sequence[str], rng: random.Random) -> str:
    """The stage to aim at next: one that fewest kills fell in, unless it was aimed at often and missed."""
    return min(rng.sample(stages, len(stages)), key=lambda stage: fell[stage] + aimed[stage] / MISSES)


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


def said_by(out: Path) -> str:
    """The last words of a run's processes, the killed ones' too."""
    return Path(f"{out}.said").read_text()[-2000:]


def kills(count: int, processes: int, rng: random.Random) -> dict[str, Any]:
    """Runs that are killed, each in a folder of its own, and repeated: what differs from one that was let be."""
    found: dict[str, Any] = {"kills": count, "processes": processes, "failed": [], "different": []}
    SERVER.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole, start = folder / "whole", time.time()
        if any(ended(started(folder, whole, processes))):
            return {**found, "failed": [said_by(whole)]}
        found |= {"seconds_of_a_run": time.time() - start, "seconds_of_the_stages": stages_of(whole)}
        seconds, stages = found["seconds_of_the_stages"], list(found["seconds_of_the_stages"])
        files = dict(zip(stages, [".lock", *(f"{name}.json" for name in stages)], strict=False))
        fell, aimed, unfinished = Counter(dict.fromkeys([*stages, ENDED], 0)), Counter[str](), 0
        for i in range(count):
            out, stage = folder / f"run{i}", next_aim(fell, aimed, stages, rng)
            aimed[stage] += 1
            after = rng.uniform(0, seconds[stage])
            at_work = killed(started(folder, out, processes), out / files[stage], after)
            fell[fell_in(out, stages) if at_work else ENDED] += 1
            unfinished += any(out.glob(f".*{TEMPORARY}"))
            codes = ended(started(folder, out, processes))
            if any(codes) or "Warning" in said_by(out):
                found["failed"].append({"run": i, "codes": codes, "said": said_by(out)})
            if not any(codes):
                found["different"] += [f"run {i}: {said}" for said in differences(record_of(whole), record_of(out))]
    return {**found, "killed_in": dict(fell), "while_writing_a_file": unfinished}
