"""How time and peak memory of curvature products and of the eigensolver grow.

examples    against k: products with microbatches of 8 examples, as many microbatches at every k, on the NanoChat
parameters  against N: MLPs of growing width on random data, products and a solve with a small budget
dimension   against D: seconds and products of a solve, on the digits MLP
block       against the block size b of H @ V: seconds per vector, on both models
budget      memory_budget as stated, and the peak memory that was measured, on the NanoChat

Peak memory is resident memory above that of the loaded model and data after one forward pass, each in a process of its
own. Times that are compared are medians of repeats taken in turns within one process, except where memory is measured
too. Run: python benchmarks/scaling.py [--parts block dimension] [--repeats 3]
"""

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from isolated import peak_memory, run_isolated
from machine import place, write
from models import mlp, nanochat
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.experiments.machine import describe, timed
from curvprobe.runtime.memory import freed_memory_kept
from curvprobe.tasks import Task

RESULT = Path(__file__).parent / "results" / "scaling.json"
MICROBATCH = 8
CPU = torch.device("cpu")


def in_turns(functions: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, float]:
    """Median seconds of each function; the first round is not counted."""
    seconds: dict[Any, list[float]] = {name: [] for name in functions}
    for _ in range(1 + repeats):
        for name, function in functions.items():
            seconds[name].append(timed(CPU, function)[1])
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def power_steps(risk: cp.EmpiricalRisk, products: int) -> list[float]:
    """Seconds of successive Hessian products, as in a solve: every vector comes from the product before."""
    matrix, vector, seconds = cp.hessian(risk), random_block(risk.num_params, 1)[:, 0], []
    with freed_memory_kept():
        for _ in range(products):
            vector, elapsed = timed(CPU, matrix.__matmul__, vector / vector.norm())
            seconds.append(elapsed)
    return seconds


def random_block(num_params: int, width: int) -> Tensor:
    return torch.randn(num_params, width, generator=torch.Generator().manual_seed(0))


def solve(risk: cp.EmpiricalRisk, dim: int, max_matvecs: int | None = None) -> cp.Subspace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cp.ConvergenceWarning)  # a small budget is not meant to be enough
        return cp.top_eigenspace(risk, dim=dim, max_matvecs=max_matvecs)


def ready(task: Task, **options: Any) -> cp.EmpiricalRisk:
    """The task's risk after one forward pass over the sample and the checks that come with a first product."""
    risk = cp.EmpiricalRisk(task.model, task.loss, task.data, **options)
    risk.losses()
    _ = cp.hessian(risk[:1]) @ random_block(risk.num_params, 1)
    return risk


# ---- against k


def measure_examples(k: int, products: int) -> dict[str, Any]:
    risk = ready(nanochat(k=k), microbatch_size=MICROBATCH)
    with peak_memory() as peak:
        seconds = power_steps(risk, products)
    return {
        "k": k,
        "products": products,
        "first_seconds": seconds[0],
        "later_seconds": statistics.median(seconds[1:]),
        "peak_bytes": peak.added,
    }


def examples(sizes: list[int], microbatches: int) -> dict[str, Any]:
    """With few microbatches a heap is tidier than after many, whatever the k: every process goes through as many."""
    rows = [run_isolated(measure_examples, k, max(2, microbatches * MICROBATCH // k)) for k in sizes]
    for row in rows:
        row["peak_over_first"] = row["peak_bytes"] / rows[0]["peak_bytes"]
        row["later_seconds_per_example"] = row["later_seconds"] / row["k"]
    return {"model": "nanochat", "microbatch_size": MICROBATCH, "rows": rows}


# ---- against N


def random_mlp(num_params: int, k: int, inputs: int = 64, classes: int = 10) -> Task:
    """A tanh MLP with two hidden layers, as wide as makes about ``num_params`` parameters, untrained."""
    linear = inputs + classes + 2  # N = h^2 + linear h + classes
    hidden = round((math.sqrt(linear**2 + 4 * (num_params - classes)) - linear) / 2)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, classes)
        )
    data = (torch.randn(k, inputs, generator=generator), torch.randint(classes, (k,), generator=generator))
    return Task(model, cp.losses.cross_entropy, data)


def measure_parameters(num_params: int, k: int, dim: int, max_matvecs: int) -> dict[str, Any]:
    risk = ready(random_mlp(num_params, k))
    seconds = power_steps(risk, 4)
    with peak_memory() as peak:
        subspace, solve_seconds = timed(CPU, solve, risk, dim, max_matvecs)
    return {
        "num_params": risk.num_params,
        "first_seconds": seconds[0],
        "later_seconds": statistics.median(seconds[1:]),
        "solve_seconds": solve_seconds,
        "solve_products": subspace.num_matvecs,
        "peak_bytes": peak.added,
        "peak_vectors": peak.added / (subspace.basis.element_size() * risk.num_params),
    }


def parameters(sizes: list[int], k: int = 64, dim: int = 5, max_matvecs: int = 20) -> dict[str, Any]:
    rows = [run_isolated(measure_parameters, size, k, dim, max_matvecs) for size in sizes]
    return {"model": "random tanh MLP", "k": k, "dim": dim, "max_matvecs": max_matvecs, "rows": rows}


# ---- against D


def dimension(dims: list[int], repeats: int) -> dict[str, Any]:
    risk = ready(mlp())
    seconds = in_turns({dim: partial(solve, risk, dim) for dim in dims}, repeats)
    rows = []
    for dim in dims:
        subspace = solve(risk, dim)
        assert subspace.converged is not None
        rows.append(
            {
                "dim": dim,
                "seconds": seconds[dim],
                "products": subspace.num_matvecs,
                "search_products": subspace.num_search_matvecs,
                "converged": bool(subspace.converged.all()),
            }
        )
    return {"model": "mlp", "k": len(risk), "num_params": risk.num_params, "rows": rows}


# ---- against the block size


def block(widths: list[int], repeats: int) -> dict[str, Any]:
    models = {}
    for name, task in (("mlp", mlp()), ("nanochat", nanochat(k=8))):
        risk = ready(task)
        matrix = cp.hessian(risk)
        seconds = in_turns(
            {width: partial(matrix.__matmul__, random_block(risk.num_params, width)) for width in widths}, repeats
        )
        per_vector = {width: total / width for width, total in seconds.items()}
        models[name] = {
            "k": len(risk),
            "num_params": risk.num_params,
            "rows": [
                {"width": width, "seconds_per_vector": value, "over_first": value / per_vector[widths[0]]}
                for width, value in per_vector.items()
            ],
        }
    return models


# ---- a stated budget


def measure_budget(budget: int, k: int, dim: int, max_matvecs: int) -> dict[str, Any]:
    task = nanochat(k=k)
    task.risk().losses()
    with peak_memory() as peak:
        risk = task.risk(memory_budget=budget)
        subspace, seconds = timed(CPU, solve, risk, dim, max_matvecs)
    return {
        "budget_bytes": budget,
        "peak_bytes": peak.added,
        "peak_over_budget": peak.added / budget,
        "microbatch_size": risk.microbatch_size,
        "seconds": seconds,
        "products": subspace.num_matvecs,
    }


def budget(mebibytes: list[int], k: int, dim: int = 5, max_matvecs: int = 12) -> dict[str, Any]:
    rows = [run_isolated(measure_budget, size * 2**20, k, dim, max_matvecs) for size in mebibytes]
    return {"model": "nanochat", "k": k, "dim": dim, "rows": rows}


MIB = 2**20


def table(result: dict[str, Any]) -> str:
    parts = []
    if "examples" in result:
        part = result["examples"]
        parts += [
            f"| k ({part['model']}, microbatches of {part['microbatch_size']}) | seconds a product | peak memory "
            "| over the first |",
            "|---|---|---|---|",
            *(
                f"| {row['k']} | {row['later_seconds']:.3g} | {row['peak_bytes'] / MIB:.0f} MiB "
                f"| {row['peak_over_first']:.2f} |"
                for row in part["rows"]
            ),
            "",
        ]
    if "parameters" in result:
        part = result["parameters"]
        parts += [
            f"| N ({part['model']}, k = {part['k']}) | seconds a product | seconds of a solve (D = {part['dim']}) "
            "| products | peak memory | in vectors of N |",
            "|---|---|---|---|---|---|",
            *(
                f"| {row['num_params']} | {row['later_seconds']:.2g} | {row['solve_seconds']:.3g} "
                f"| {row['solve_products']} | {row['peak_bytes'] / MIB:.0f} MiB | {row['peak_vectors']:.0f} |"
                for row in part["rows"]
            ),
            "",
        ]
    if "dimension" in result:
        part = result["dimension"]
        parts += [
            f"| D ({part['model']}, N = {part['num_params']}, k = {part['k']}) | seconds | products "
            "| of these, search |",
            "|---|---|---|---|",
            *(
                f"| {row['dim']} | {row['seconds']:.3g} | {row['products']} | {row['search_products']} |"
                for row in part["rows"]
            ),
            "",
        ]
    if "block" in result:
        models = result["block"]
        columns = [f"seconds a vector, {name} (k = {model['k']})" for name, model in models.items()]
        parts += [
            "| block size b | " + " | ".join(columns) + " |",
            "|---|" + "---|" * len(models),
            *(
                f"| {rows[0]['width']} | " + " | ".join(f"{row['seconds_per_vector']:.3g}" for row in rows) + " |"
                for rows in zip(*(model["rows"] for model in models.values()), strict=True)
            ),
            "",
        ]
    if "budget" in result:
        part = result["budget"]
        parts += [
            f"| memory budget ({part['model']}, k = {part['k']}, D = {part['dim']}) | measured peak | of the budget "
            "| microbatch | seconds |",
            "|---|---|---|---|---|",
            *(
                f"| {row['budget_bytes'] / MIB:.0f} MiB | {row['peak_bytes'] / MIB:.0f} MiB "
                f"| {100 * row['peak_over_budget']:.0f} % | {row['microbatch_size']} | {row['seconds']:.3g} |"
                for row in part["rows"]
            ),
            "",
        ]
    return "\n".join([*parts, f"({place(result['machine'])}.)"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["examples", "parameters", "dimension", "block", "budget"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--examples", nargs="+", type=int, default=[8, 32, 128, 512], help="sample sizes k")
    parser.add_argument("--microbatches", type=int, default=128, help="of the products at every k, two at the least")
    parser.add_argument("--parameters", nargs="+", type=int, default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--dims", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--widths", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="block sizes b")
    parser.add_argument("--budgets", nargs="+", type=int, default=[512, 1024, 2048], help="in MiB")
    parser.add_argument("--budget-examples", type=int, default=64, help="sample size k of the budget part")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(argv)
    measurements = {
        "examples": partial(examples, options.examples, options.microbatches),
        "parameters": partial(parameters, options.parameters),
        "dimension": partial(dimension, options.dims, options.repeats),
        "block": partial(block, options.widths, options.repeats),
        "budget": partial(budget, options.budgets, options.budget_examples),
    }
    result: dict[str, Any] = {"machine": describe()}
    for part in options.parts:
        result[part] = measurements[part]()
        print(f"{part}: {json.dumps(result[part])}", flush=True)
    write(options.out, result)


if __name__ == "__main__":
    main()
