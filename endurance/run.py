"""Runs that are killed at any moment and go on, runs of several processes that end in order, files that are damaged.

Run: make endurance [ARGS="--kills 30 --launches 50 --examples 2000"]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import fuzz  # noqa: E402

from curvprobe.experiments.machine import describe  # noqa: E402
from curvprobe.runtime.plain import to_json  # noqa: E402
from curvprobe.runtime.store import write_atomically  # noqa: E402

RESULTS = HERE / "results.json"
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

AFTER = 0.25
"""Share of the kills that come at any time to the end, the figures' too; the others while the stages are at work."""


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


def killed(arguments: list[str], out: Path, after: float) -> bool:
    """Kill the command and all its processes so many seconds after its folder is there; whether it still ran."""
    process = psutil.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not out.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(after)
    with suppress(psutil.NoSuchProcess):
        running = [process, *process.children(recursive=True)]  # launched processes have sessions of their own
        for one in running:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(running, timeout=30)
    return bool(process.wait() != 0)


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
    found: dict[str, Any] = {"kills": count, "processes": processes, "killed_at_work": 0, "failed": [], "different": []}
    stages: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        start = time.time()
        whole = finished(command(folder, folder / "whole", processes))
        if whole.returncode != 0:
            return {**found, "failed": [whole.stderr[-2000:]]}
        expected = record_of(folder / "whole")
        begun = (folder / "whole" / ".lock").stat().st_mtime
        spans = ((folder / "whole" / "result.json").stat().st_mtime - begun, time.time() - begun)
        found |= {"seconds_of_a_run": time.time() - start, "seconds_of_its_stages": spans[0]}
        for i in range(count):
            out = folder / f"run{i}"
            moment = rng.uniform(0, spans[rng.random() < AFTER])
            at_work = killed(command(folder, out, processes), out, moment)
            found["killed_at_work"] += at_work
            stages[len([path for path in out.glob("*.json") if path.name != "result.json"])] += 1
            again = finished(command(folder, out, processes))
            if again.returncode != 0 or "Warning" in again.stderr:
                found["failed"].append({"run": i, "code": again.returncode, "said": again.stderr[-2000:]})
            if again.returncode == 0:
                found["different"] += [f"run {i}: {said}" for said in differences(expected, record_of(out))]
    return {**found, "stages_when_killed": {str(number): times for number, times in sorted(stages.items())}}


def launches(count: int) -> dict[str, Any]:
    """Runs of two processes that are let be: how they end."""
    codes: Counter[int] = Counter()
    aborted = []
    with tempfile.TemporaryDirectory() as place:
        for i in range(count):
            ended = finished(command(Path(place), Path(place) / f"run{i}", 2, "--stages", "quick"))
            codes[ended.returncode] += 1
            if any(word in ended.stderr for word in ("SIGABRT", "Signal 6", "Aborted", "terminate called")):
                aborted.append({"run": i, "said": ended.stderr[-2000:]})
    return {"launches": count, "codes": {str(code): times for code, times in codes.items()}, "aborted": aborted}


def tried(strategy: st.SearchStrategy[Any], examples: int, check: Callable[[Any], str]) -> dict[str, Any]:
    """What as many examples end in, by the word for it, and the first that ends in something else."""
    outcomes: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=20_000, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def each(example: Any) -> None:
        outcomes[check(example)] += 1

    wrong = None
    try:
        each()
    except Exception as error:
        wrong = "\n".join([repr(error)[:2000], *getattr(error, "__notes__", [])])[:4000]
    return {"examples": examples, "ended": dict(outcomes), "wrong": wrong}


def fuzzed(examples: int) -> dict[str, Any]:
    """Damaged and hostile files: a result, a stage, the solver's state."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        finished(command(folder, folder / "run", 1))
        record, whole = record_of(folder / "run"), folder / "whole"
        whole.mkdir()
        fuzz.goes_on(whole)
        stage = {name: (whole / name).read_bytes() for name in ("kept.json", "kept.safetensors")}
        files = folder / "run" / "result.json", whole / "state"

        def load(content: bytes) -> str:
            files[0].write_bytes(content)
            return fuzz.loads(folder / "run")

        def go_on(changed: tuple[str, bytes]) -> str:
            for name, content in stage.items():
                (whole / name).write_bytes(content)
            (whole / changed[0]).write_bytes(changed[1])
            return fuzz.goes_on(whole)

        def resume(content: bytes) -> str:
            files[1].write_bytes(content)
            return fuzz.continues(files[1])

        tensors, values = (fuzz.mutated_bytes(stage[name]) for name in ("kept.safetensors", "kept.json"))
        values |= fuzz.mutated_json(json.loads(stage["kept.json"]))
        stages = st.tuples(st.just("kept.json"), values) | st.tuples(st.just("kept.safetensors"), tensors)
        results = fuzz.mutated_json(record) | fuzz.mutated_bytes(json.dumps(record).encode())
        return {
            "result.json": tried(results, examples, load),
            "a stage": tried(stages, examples, go_on),
            "the solver's state": tried(fuzz.mutated_bytes(fuzz.unfinished(files[1])), examples, resume),
        }


def sound(found: dict[str, Any]) -> bool:
    """Whether all ended as it should."""
    return (
        not any(part["failed"] or part["different"] for part in found["kills"])
        and not found["launches"]["aborted"]
        and found["launches"]["codes"].keys() <= {"0"}
        and all(part["wrong"] is None for part in found["fuzz"].values())
    )


def told(part: dict[str, Any]) -> dict[str, Any]:
    """The same, printed."""
    print(json.dumps(part, indent=2), flush=True)
    return part


def main() -> None:
    """Try all, write the result file, and fail where something did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of one process, and as many of two (default: 30)")
    parser.add_argument("--launches", type=int, default=50, help="of two processes (default: 50)")
    parser.add_argument("--examples", type=int, default=2000, help="of each kind of file (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file")
    options = parser.parse_args()
    rng, start = random.Random(options.seed), time.time()
    found: dict[str, Any] = {"machine": {**describe(), "load": os.getloadavg()}, "kills": []}
    for processes in (1, 2):
        found["kills"].append(told(kills(options.kills, processes, rng)))
    found["launches"] = told(launches(options.launches))
    found["fuzz"] = told(fuzzed(options.examples))
    found |= {"seconds": time.time() - start, "sound": sound(found)}
    write_atomically(options.out, to_json(found))
    print(f"written to {options.out}: {'all sound' if found['sound'] else 'NOT SOUND'}")
    sys.exit(not found["sound"])


if __name__ == "__main__":
    main()
