"""Projection of single examples: operation by operation, together by vmap, and one by one by double backward.

Each way in turns on the same examples and directions, in one process on one thread; the errors are those of U^T H_i U
over all examples, against the same in float64. Run: python benchmarks/projection.py
"""

import time
from argparse import Namespace
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from benchmark import Benchmark, markdown, page, shared
from models import mlp, nanochat, resnet20
from torch import nn

import curvprobe as cp
from curvprobe.curvature.nodewise.examples import NODEWISE
from curvprobe.curvature.per_example import TOGETHER

OPTIONS = {
    **shared(dim=[10, 45], repeats=3),
    "models": (["digits", "wide", "wider", "resnet20", "nanochat"], "what to measure on"),
}

WAYS = {"operations": [], "together": [NODEWISE], "alone": [NODEWISE, TOGETHER]}
"""The ways, and what is given up for each."""


def tanh(width: int, count: int) -> cp.EmpiricalRisk:
    """The digits under a tanh MLP of two layers of some width, untrained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
    x, y = mlp().data
    return cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x[:count], y[:count]))


MODELS: dict[str, Callable[[], cp.EmpiricalRisk]] = {
    "digits": lambda: mlp().risk(),
    "wide": lambda: tanh(280, 300),
    "wider": lambda: tanh(950, 60),
    "resnet20": lambda: resnet20(16).risk(),
    "nanochat": lambda: nanochat(4).risk(),
}


def measure(options: Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {"rows": [of_model(name, dim, options.repeats) for name in options.models for dim in options.dim]}


def of_model(name: str, dim: int, repeats: int) -> dict[str, Any]:
    """Seconds and errors of each way; the median ratio to the first, turn by turn."""
    risk = MODELS[name]()
    subspace, double = cp.random_subspace(risk, dim, seed=0), risk.in_double()
    ways = [way for way in WAYS if way != "together" or risk.budget.examples_together() > 1]
    exact = cp.project(double, subspace).hessian
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    errors = {}
    for _ in range(repeats):
        for way in ways:
            verdicts = risk.probed.fast_paths.verdicts
            verdicts.update({NODEWISE: True, TOGETHER: True} | dict.fromkeys(WAYS[way], False))
            start = time.perf_counter()
            found = cp.project(risk, subspace).hessian
            seconds[way].append(time.perf_counter() - start)
            errors[way] = float((found - exact).norm() / exact.norm())
    row = {
        "model": name,
        "num_params": risk.num_params,
        "n": len(risk),
        "dim": dim,
        "seconds": {way: median(found) for way, found in seconds.items()},
        "errors": errors,
        "ratio": median(min(others) / first for first, *others in zip(*seconds.values(), strict=True)),
    }
    print(row, flush=True)
    return row


def table(result: dict[str, Any]) -> str:
    head = (
        "| model | parameters | examples | D | by operations | together | one by one | "
        "times as fast as the faster of these | error | of these |"
    )
    return page(result, markdown(head, map(line, result["rows"])))


def line(row: dict[str, Any]) -> str:
    seconds = [f"{row['seconds'][way]:.3g} s" if way in row["seconds"] else "" for way in WAYS]
    errors = [row["errors"]["operations"], max(value for way, value in row["errors"].items() if way != "operations")]
    cells = [
        row["model"],
        f"{row['num_params']:,}",
        row["n"],
        row["dim"],
        *seconds,
        f"**{row['ratio']:.1f}**",
        *(f"{error:.1e}" for error in errors),
    ]
    return f"| {' | '.join(map(str, cells))} |"


BENCHMARK = Benchmark("projection", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
