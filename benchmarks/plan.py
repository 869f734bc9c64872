"""What ``curvprobe plan`` says beforehand against what an analysis then takes, on models of different kinds.

The plan and the analysis are made in a process each. Seconds are the processor's, with one thread, so that other work
on the machine counts little; of stages that take longer than ``--least``. A stage is right within the factor where what
it took lies between the two numbers of the plan, or off them by no more than the factor. Memory is the peak of the
process's resident memory, and how much of that came on top of the loaded model and data.
Run: python benchmarks/plan.py
"""

import contextlib
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from benchmark import Benchmark, markdown, mebibytes, page, shared
from isolated import peak_memory, run_isolated
from plan_models import KINDS

import curvprobe as cp
from curvprobe.analysis import unit_costs

FACTOR = 1.5
"""That a plan may be off."""

OPTIONS = {
    **shared(models=list(KINDS), dim=10),
    "stages": (["full", "quick"], "how much of an analysis"),
    "least": (0.3, "seconds from which on a stage is compared"),
}


@contextlib.contextmanager
def processor_seconds() -> Iterator[None]:
    """A block in which the plan's clock is the processor's."""
    with mock.patch.object(unit_costs, "perf_counter", time.process_time):
        yield


def made(name: str) -> tuple[cp.EmpiricalRisk, Any]:
    """The risk and the candidates of a trained model, after one pass over the sample."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what is said of a model does not matter here
    task = KINDS[name]()
    risk = task.risk()
    risk.losses()
    return risk, task.candidates


def planned(name: str, dim: int, stages: str) -> dict[str, Any]:
    """The plan, with the seconds that it took."""
    risk, candidates = made(name)
    start = time.process_time()
    with processor_seconds():
        plan = cp.plan(risk, candidates, dim=dim, stages=stages)
    seconds = time.process_time() - start
    return {
        "examples": len(risk),
        "parameters": risk.num_params,
        "took": seconds,
        "stages": {row.name: asdict(row) for row in plan.stages},
        "memory": plan.total.memory,
    }


def actual(name: str, dim: int, stages: str) -> dict[str, Any]:
    """The analysis: processor seconds of every stage, the eigenspace's products, and the memory of the process."""
    risk, candidates = made(name)
    began: dict[str, float] = {}

    def told(stage: str, _: int, __: int) -> None:
        began[stage] = time.process_time()

    with peak_memory() as peak, mock.patch("curvprobe.analysis.analyze.assemble", timed_assemble(began)):
        found = cp.analyze(risk, candidates, dim=dim, stages=stages, progress=told)
    times = list(began.items())
    return {
        "seconds": {stage: later - at for (stage, at), (_, later) in pairwise(times)},
        "products": found.subspace.num_matvecs,
        "before": peak.before,
        "added": peak.added,
    }


def timed_assemble(began: dict[str, float]) -> Any:
    """The function that makes the result of the stages, which says when it begins."""
    from curvprobe.analysis.assembly import assemble

    def assembled(*arguments: Any) -> cp.Analysis:
        began["result"] = time.process_time()
        return assemble(*arguments)

    return assembled


def off(low: float, high: float, found: float) -> float:
    """How far from a range: 1 within it, above 1 where more was planned than found, below where less."""
    return low / found if found < low else high / found if found > high else 1.0


def compared(name: str, dim: int, stages: str, least: float) -> dict[str, Any]:
    """The plan and the analysis of one model."""
    plan, done = (run_isolated(function, name, dim, stages) for function in (planned, actual))
    rows = [
        {"stage": stage, "planned": plan["stages"][stage]["seconds"], "seconds": seconds}
        for stage, seconds in done["seconds"].items()
        if seconds > least
    ]
    for row in rows:
        row["off"] = off(*row["planned"], row["seconds"])
    low, high = (sum(row["seconds"][side] for row in plan["stages"].values()) for side in (0, 1))
    products = plan["stages"]["eigenspace"]["products"]
    whole = done["before"] + done["added"]
    return {
        "model": name,
        "stages": stages,
        **{key: plan[key] for key in ("examples", "parameters", "took")},
        "products": {"planned": products, "found": done["products"], "off": off(*products, done["products"])},
        "rows": rows,
        "seconds": {"planned": [low, high], "found": sum(done["seconds"].values())},
        "sum_off": off(low, high, sum(done["seconds"].values())),
        "memory": {"planned": plan["memory"], "before": done["before"], "added": done["added"]},
        "memory_off": (done["before"] + plan["memory"]) / whole,
        "added_off": plan["memory"] / max(1, done["added"]),
    }


def measure(options: Namespace) -> dict[str, Any]:
    found = []
    for name in options.models:
        for stages in options.stages:
            found.append(compared(name, options.dim, stages, options.least))
            print(found[-1], flush=True)
    return {"dim": options.dim, "least": options.least, "compared": found}


def ranged(low: float, high: float, form: str) -> str:
    """Two numbers, or one where they read the same."""
    low_text, high_text = (form.format(side) for side in (low, high))
    return high_text if low_text == high_text else f"{low_text} to {high_text}"


def line(found: dict[str, Any]) -> str:
    """The row of one model."""
    rows, products, memory = found["rows"], found["products"], found["memory"]
    ratios = [row["off"] for row in rows]
    extremes = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "none"
    cells = (
        f"{found['model']}, {found['stages']}",
        f"{found['parameters']}",
        f"{found['took']:.1f}",
        f"{ranged(*products['planned'], '{:d}')}; {products['found']}",
        f"{ranged(*found['seconds']['planned'], '{:.2g}')}; {found['seconds']['found']:.2g}",
        f"{sum(1 / FACTOR <= ratio <= FACTOR for ratio in ratios)} of {len(ratios)}",
        extremes,
        f"{mebibytes(memory['before'] + memory['planned'])}; {mebibytes(memory['before'] + memory['added'])}",
        f"{mebibytes(memory['planned'])}; {mebibytes(memory['added'])}",
    )
    return f"| {' | '.join(cells)} |"


def table(result: dict[str, Any]) -> str:
    head = (
        "| model | N | the plan itself, s | products of the eigenspace, planned; found | seconds in all, planned; "
        f"found | stages over {result['least']:g} s within a factor {FACTOR} | planned over found, of these | peak of "
        "the process, planned; found | of it on top of model and data |"
    )
    return page(
        result,
        markdown(head, map(line, result["compared"])),
        note=f"D = {result['dim']}; processor seconds, one thread",
    )


BENCHMARK = Benchmark("plan", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
