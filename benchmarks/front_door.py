"""What the checks of a model, its loss and its data cost: making a risk, the check of second derivatives, the doctor.

The share of the check is of a whole solve for the top-D eigenspace, its certificate and search included, which the
check precedes once for a model. Seconds are medians, of the solve and of the doctor single.
Run: python benchmarks/front_door.py
"""

import statistics
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from benchmark import Benchmark, markdown, page, shared
from models import mlp, resnet20

import curvprobe as cp
from curvprobe.curvature.second_derivatives import check_second_derivatives
from curvprobe.experiments.machine import timed
from curvprobe.tasks import Task
from curvprobe.tasks.text import text

CPU = torch.device("cpu")
TASKS: dict[str, Callable[[], Task]] = {"digits": mlp, "resnet20": resnet20, "text": text}
OPTIONS = shared(tasks=list(TASKS), dim=10, repeats=5)


def on(name: str, dim: int, repeats: int) -> dict[str, Any]:
    """Seconds of each part on one task."""
    task = TASKS[name]()
    task.risk()  # what is done once in a process
    made = [timed(CPU, task.risk) for _ in range(repeats)]
    check_second_derivatives(task.risk(), "hessian")
    checks = [timed(CPU, check_second_derivatives, risk, "hessian")[1] for risk, _ in made]
    risk = made[0][0]
    space, solve = timed(CPU, cp.top_eigenspace, risk, dim)
    found, doctor = timed(CPU, cp.examine, task.risk(), task.candidates, dim=dim)
    return {
        "task": name,
        "examples": len(risk),
        "parameters": risk.num_params,
        "making": statistics.median(seconds for _, seconds in made),
        "check": statistics.median(checks),
        "solve": solve,
        "products": space.num_matvecs,
        "doctor": doctor,
        "summary": found.summary(),
    }


def measure(options: Namespace) -> dict[str, Any]:
    rows = []
    for name in options.tasks:
        rows.append(on(name, options.dim, options.repeats))
        print(rows[-1], flush=True)
    return {"dim": options.dim, "rows": rows}


ROW = (
    "| {task} | {parameters} | {examples} | {making:.2g} | {check:.2g} | {solve:.3g} ({products} products) | "
    "{share:.1f} % | {doctor:.2g} | {summary} |"
)


def table(result: dict[str, Any]) -> str:
    head = (
        f"| task | N | k | making a risk, s | check of second derivatives, s | solve, D = {result['dim']}, s | share | "
        "the doctor, s | what it says |"
    )
    rows = (ROW.format(**row, share=100 * row["check"] / row["solve"]) for row in result["rows"])
    return page(result, markdown(head, rows))


BENCHMARK = Benchmark("front_door", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
