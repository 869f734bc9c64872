"""What becomes of coverage where an interval is given only for candidates that look as if they determined it.

The same sets of candidates as in coverage_of_intervals.py, and plain bootstrap-t intervals of the expected criterion. A
gate lets an interval pass by what the set shows: its width, or the effective number of its terms, (sum x)^2 / sum x^2.
Told is how many pass, and how many of those hold the truth. Run: python benchmarks/gates.py [--repetitions 400]
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from benchmark import Benchmark, markdown, page
from coverage_of_intervals import BEYOND, POPULATIONS, SIGMA, drawn, moments

import curvprobe as cp
from curvprobe.numerics import intervals

KNOWN = [name for name in POPULATIONS if name not in BEYOND]
OPTIONS = {
    "populations": (KNOWN, "what to draw from"),
    "repetitions": (400, "sets of candidates for every row"),
    "sizes": ([40, 100, 250], "candidates in a set"),
}
Gate = Callable[[float, float], bool]
GATES: dict[str, Gate] = {
    "none": lambda width, effective: True,  # noqa: ARG005
    "width at most 4": lambda width, effective: width <= 16,  # noqa: ARG005 - of the square
    "effective number at least 15": lambda width, effective: effective >= 15,  # noqa: ARG005
}


@contextmanager
def plain_intervals() -> Iterator[None]:
    """Intervals that have an upper end for any number of terms, and that of these terms alone."""
    before = intervals.FEWEST_FOR_UPPER, intervals.ALLOWED_FOR
    intervals.FEWEST_FOR_UPPER, intervals.ALLOWED_FOR = 0, 0
    try:
        yield
    finally:
        intervals.FEWEST_FOR_UPPER, intervals.ALLOWED_FOR = before


def measure(options: Namespace) -> dict[str, Any]:
    rows = []
    for name in options.populations:
        sample, whole = POPULATIONS[name]()
        truth = sum(moments(sample, whole)) / (len(sample) + 1) ** 2
        for m in options.sizes:
            with plain_intervals():
                found = [
                    cp.expected_criterion(sample, drawn(whole, m, seed), SIGMA) for seed in range(options.repetitions)
                ]
            rows += [{"population": name, "m": m, "gate": gate} | passed(found, truth, GATES[gate]) for gate in GATES]
            print(*rows[-len(GATES) :], sep="\n", flush=True)
    return {"repetitions": options.repetitions, "rows": rows}


def passed(found: list[cp.ExpectedCriterion], truth: float, gate: Gate) -> dict[str, Any]:
    hits = []
    for one in found:
        low, high = one.interval
        if gate(high / low if low > 0 else float("inf"), effective(one.contributions)):
            hits.append(low <= truth <= high)
    return {"passed": len(hits) / len(found), "covered": sum(hits) / len(hits) if hits else None}


def effective(terms: torch.Tensor) -> float:
    return float(terms.sum().square() / terms.square().sum())


HEAD = f"| population | candidates m | {' | '.join(f'gate: {name}' for name in GATES)} |"


def table(result: dict[str, Any]) -> str:
    cells = {(row["population"], row["m"], row["gate"]): row for row in result["rows"]}
    rows = []
    for name, m in dict.fromkeys((name, m) for name, m, _ in cells):
        rows.append(f"| {name} | {m} | {' | '.join(shown(cells[name, m, gate]) for gate in GATES)} |")
    return page(
        result, markdown(HEAD, rows), note=f"Pass, and hold the truth then; {result['repetitions']} repetitions"
    )


def shown(row: dict[str, Any]) -> str:
    held = "" if row["covered"] is None else f", {100 * row['covered']:.1f} %"
    return f"{100 * row['passed']:.0f} %{held}"


BENCHMARK = Benchmark("gates", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
