"""The numbers of one trained network under other versions of torch, other numbers of threads and of processes.

Largest relative differences from the first row, of eigenvalues relative to the first one. The weights are trained once:
another version of torch, or another processor, trains others.
Run: make versions
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmark import Benchmark, markdown, page, shared

PYTHON = {"pinned": sys.executable, "oldest": ".venv/oldest/bin/python", "newest": ".venv/newest/bin/python"}
OPTIONS = {
    **shared(dim=10),
    "environments": (list(PYTHON), "whose Python runs it; those that are not there are left out"),
    "k": (1000, "examples in the sample"),
    "sigma": (0.01, "of the probe"),
}
WAYS = ((1, 1), (2, 1), (1, 2))
"""Threads, and processes, with the first environment; the others run in one process with one thread."""

TASK = """
from pathlib import Path

from curvprobe.tasks.digits import digits


def task():
    return digits({k}, cache=Path(__file__).with_name("weights.safetensors"))
"""

NUMBERS = {
    "losses": lambda r: [r["sample"]["loss"], r["sample"]["held_out_loss"]],
    "eigenvalues": lambda r: r["eigenspace"]["eigenvalues"],
    "expected": lambda r: [r["expected"]["rms"], *r["expected"]["rms_interval"]],
    "shape": lambda r: [r["expected"]["shape"], *r["expected"]["shape_interval"]],
    "monte_carlo": lambda r: [r["first_candidate"]["delta2_subspace_controlled_monte_carlo"]["value"]],
    "isotropic": lambda r: [r["first_candidate"]["delta2_isotropic_closed_form"]["value"]],
}
"""What is compared, out of a result."""


def result_of(folder: Path, python: str, threads: int, processes: int, options: Namespace) -> dict[str, Any]:
    """Of the network in the folder, which is trained there where it is not found."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    out = Path(tempfile.mkdtemp(dir=folder))
    analysis = ["-m", "curvprobe", "run", f"{folder / 'task.py'}:task", "--dim", str(options.dim), "--out", str(out)]
    shown = ["--sigma", str(options.sigma), "--surface", "0", "--quiet", "--no-report"]
    subprocess.run(
        [python, *(launcher if processes > 1 else []), *analysis, *shown],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


def apart(name: str, one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest relative difference of some of the numbers."""
    pairs = list(zip(NUMBERS[name](one), NUMBERS[name](other), strict=True))
    scale = [abs(a) if name != "eigenvalues" else abs(pairs[0][0]) for a, _ in pairs]
    return max(abs(a - b) / unit for (a, b), unit in zip(pairs, scale, strict=True))


def measure(options: Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "task.py").write_text(TASK.format(k=options.k))
        first = None
        here, *others = (PYTHON[name] for name in options.environments if Path(PYTHON[name]).exists())
        for python, threads, processes in [*((here, *way) for way in WAYS), *((other, 1, 1) for other in others)]:
            found = result_of(folder, python, threads, processes, options)
            first = first or found
            row = {"torch": found["versions"]["torch"], "threads": threads, "processes": processes}
            rows.append(row | {name: apart(name, first, found) for name in NUMBERS})
            print(rows[-1], flush=True)
    return {"k": options.k, "dim": options.dim, "sigma": options.sigma, "rows": rows}


ROW = (
    "| {torch} | {threads} | {processes} | {losses:.1g} | {eigenvalues:.1g} | {expected:.1g} | {shape:.1g} | "
    "{monte_carlo:.1g} | {isotropic:.1g} |"
)


def table(result: dict[str, Any]) -> str:
    head = (
        "| torch | threads | processes | losses | eigenvalues | expected criterion, interval | its shape, interval | "
        "Monte Carlo | isotropic criterion |"
    )
    note = f"digits, float32, k = {result['k']}, D = {result['dim']}, sigma {result['sigma']}"
    return page(result, markdown(head, (ROW.format(**row) for row in result["rows"])), note=note)


BENCHMARK = Benchmark("versions", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
