"""Runs that are killed at any moment and go on, runs of several processes that end in order, files that are damaged.

Run: make endurance [ARGS="--kills 30 --launches 50 --examples 2000"]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import fuzz  # noqa: E402
from kills import ended, kills, launched, record_of, started  # noqa: E402

from curvprobe.experiments.machine import describe  # noqa: E402
from curvprobe.runtime.plain import to_json  # noqa: E402
from curvprobe.runtime.store import write_atomically  # noqa: E402

RESULTS = HERE / "results.json"


def launches(count: int) -> dict[str, Any]:
    """Runs of two processes that are let be: how they end."""
    codes: Counter[int] = Counter()
    aborted = []
    with tempfile.TemporaryDirectory() as place:
        for i in range(count):
            end = launched(Path(place), Path(place) / f"run{i}", "--stages", "quick")
            codes[end.returncode] += 1
            if any(word in end.stderr for word in ("SIGABRT", "Signal 6", "Aborted", "terminate called")):
                aborted.append({"run": i, "said": end.stderr[-2000:]})
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
        ended(started(folder, folder / "run", 1))
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


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "kills": lambda options: [kills(options.kills, processes, random.Random(options.seed)) for processes in (1, 2)],
    "launches": lambda options: launches(options.launches),
    "fuzz": lambda options: fuzzed(options.examples),
}


def main() -> None:
    """Try all, or some and keep the others' results, and fail where something did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of one process, and as many of two (default: 30)")
    parser.add_argument("--launches", type=int, default=50, help="of two processes (default: 50)")
    parser.add_argument("--examples", type=int, default=2000, help="of each kind of file (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to try (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of every process that is started
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.parts:
        start, machine = time.time(), {**describe(), "load": os.getloadavg()}
        found[name] = PARTS[name](options)
        found.setdefault("measured", {})[name] = {"machine": machine, "seconds": time.time() - start}
        print(json.dumps(found[name], indent=2), flush=True)
    found["sound"] = found.keys() >= PARTS.keys() and sound(found)
    write_atomically(options.out, to_json(found))
    print(f"written to {options.out}: {'all sound' if found['sound'] else 'NOT SOUND'}")
    sys.exit(not found["sound"])


if __name__ == "__main__":
    main()
