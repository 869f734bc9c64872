"""What ``curvprobe demo --tolerance 1e-4`` answers, for the README and the docs: the excerpts are the output itself.

docs/numbers.md explains the table section by section.

Run: OMP_NUM_THREADS=1 python benchmarks/demo.py
"""

from argparse import Namespace
from typing import Any

from benchmark import Benchmark, shared

import curvprobe as cp
from curvprobe.tasks.digits import digits

OPTIONS = {**shared(k=1000, dim=10), "tolerance": (1e-4, "on the whole increment, in loss units")}


def measure(options: Namespace) -> dict[str, Any]:
    task = digits(options.k)
    found = cp.analyze(task.risk(), task.candidates, dim=options.dim, tolerance=options.tolerance)
    return {"answer": str(found.answer).split("\n"), "table": found.table().split("\n")}


def table(result: dict[str, Any]) -> str:
    return "\n".join(["```text", *result["answer"], "```"])


def excerpts(result: dict[str, Any]) -> dict[str, str]:
    """The sections of the table, by title, as docs/numbers.md shows them."""
    found: dict[str, list[str]] = {}
    for line in result["table"]:
        if line and not line.startswith(" "):
            found[line] = lines = []
        elif found:
            lines.append(line)
    return {title: "\n".join(["```text", title, *lines]).rstrip() + "\n```" for title, lines in found.items()}


BENCHMARK = Benchmark("demo", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
