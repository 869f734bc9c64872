"""How time and peak memory of curvature products and of the eigensolver grow.

examples    against k: products with microbatches of 8 examples, as many microbatches at every k, on the NanoChat
parameters  against N: MLPs of growing width on random data, products and a solve with a small budget
beside      what whole solves spend on the basis, beside their products, against N and D
dimension   against D: seconds and products of a solve, on the digits MLP
block       against the block size b of H @ V: seconds per vector, on both models
budget      memory_budget as stated, and the peak memory that was measured, on the NanoChat

Peak memory is resident memory above that of the loaded model and data after one forward pass, each in a process of its
own. Times that are compared are medians of repeats taken in turns within one process, except where memory is measured
too. Run: python benchmarks/scaling.py [--parts block dimension] [--repeats 3]
"""

import json
import math
import statistics
import warnings
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from benchmark import Benchmark, markdown, mebibytes, page, shared
from isolated import peak_memory, run_isolated
from models import mlp, nanochat
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.experiments.machine import timed
from curvprobe.runtime.memory import freed_memory_kept
from curvprobe.tasks import Task

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


def solve(risk: cp.EmpiricalRisk, dim: int, max_matvecs: int | None = None) -> cp.Eigenspace:
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


def examples(options: Namespace) -> dict[str, Any]:
    """With few microbatches a heap is tidier than after many, whatever the k: every process goes through as many."""
    total = options.microbatches * MICROBATCH
    rows = [run_isolated(measure_examples, k, max(2, total // k)) for k in options.examples]
    for row in rows:
        row["peak_over_first"] = row["peak_bytes"] / rows[0]["peak_bytes"]
        row["later_seconds_per_example"] = row["later_seconds"] / row["k"]
    return {"model": "nanochat", "microbatch_size": MICROBATCH, "rows": rows}


def examples_table(part: dict[str, Any]) -> str:
    of = f"{part['model']}, microbatches of {part['microbatch_size']}"
    rows = (
        f"| {row['k']} | {row['later_seconds']:.3g} | {mebibytes(row['peak_bytes'])} | {row['peak_over_first']:.2f} |"
        for row in part["rows"]
    )
    return markdown(f"| k ({of}) | seconds a product | peak memory | over the first |", rows)


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


def parameters(options: Namespace) -> dict[str, Any]:
    k, dim, max_matvecs = 64, 5, 20
    rows = [run_isolated(measure_parameters, size, k, dim, max_matvecs) for size in options.parameters]
    return {"model": "random tanh MLP", "k": k, "dim": dim, "max_matvecs": max_matvecs, "rows": rows}


def parameters_table(part: dict[str, Any]) -> str:
    head = (
        f"| N ({part['model']}, k = {part['k']}) | seconds a product | seconds of a solve (D = {part['dim']}) "
        "| products | peak memory | in vectors of N |"
    )
    rows = (
        f"| {row['num_params']} | {row['later_seconds']:.2g} | {row['solve_seconds']:.3g} | {row['solve_products']} "
        f"| {mebibytes(row['peak_bytes'])} | {row['peak_vectors']:.0f} |"
        for row in part["rows"]
    )
    return markdown(head, rows)


# ---- what a solve spends beside its products


def measure_beside(num_params: int, k: int, dims: list[int]) -> list[dict[str, Any]]:
    risk = ready(random_mlp(num_params, k))
    product, rows = statistics.median(power_steps(risk, 7)[1:]), []
    for dim in dims:
        space, seconds = timed(CPU, solve, risk, dim)
        share = 1 - product * space.num_matvecs / seconds
        found = {"dim": dim, "product_seconds": product, "products": space.num_matvecs, "seconds": seconds}
        rows.append({"num_params": risk.num_params, **found, "share_beside": max(0.0, share)})
    return rows


def beside(options: Namespace) -> dict[str, Any]:
    k, dims = 64, [10, 45]
    found = [run_isolated(measure_beside, size, k, dims) for size in options.beside]
    return {"model": "random tanh MLP", "k": k, "rows": [row for rows in found for row in rows]}


def beside_table(part: dict[str, Any]) -> str:
    head = (
        f"| N ({part['model']}, k = {part['k']}) | D | products | seconds of a solve | of these beside the products: "
        "orthogonalisation |"
    )
    rows = (
        f"| {row['num_params']} | {row['dim']} | {row['products']} | {row['seconds']:.3g} "
        f"| {100 * row['share_beside']:.0f} % |"
        for row in part["rows"]
    )
    return markdown(head, rows)


# ---- against D


def dimension(options: Namespace) -> dict[str, Any]:
    risk = ready(mlp())
    seconds = in_turns({dim: partial(solve, risk, dim) for dim in options.dims}, options.repeats)
    spaces = {dim: solve(risk, dim) for dim in options.dims}
    rows = [
        {
            "dim": dim,
            "seconds": seconds[dim],
            "products": space.num_matvecs,
            "search_products": space.num_search_matvecs,
            "converged": bool(space.converged.all()),
        }
        for dim, space in spaces.items()
    ]
    return {"model": "mlp", "k": len(risk), "num_params": risk.num_params, "rows": rows}


def dimension_table(part: dict[str, Any]) -> str:
    of = f"{part['model']}, N = {part['num_params']}, k = {part['k']}"
    row = "| {dim} | {seconds:.3g} | {products} | {search_products} |"
    return markdown(f"| D ({of}) | seconds | products | of these, search |", map(row.format_map, part["rows"]))


# ---- against the block size


def block(options: Namespace) -> dict[str, Any]:
    models = {}
    for name, task in (("mlp", mlp()), ("nanochat", nanochat(k=8))):
        risk = ready(task)
        product, blocks = cp.hessian(risk).__matmul__, {b: random_block(risk.num_params, b) for b in options.widths}
        seconds = in_turns({b: partial(product, vectors) for b, vectors in blocks.items()}, options.repeats)
        per_vector = {width: total / width for width, total in seconds.items()}
        models[name] = {
            "k": len(risk),
            "num_params": risk.num_params,
            "rows": [
                {"width": width, "seconds_per_vector": value, "over_first": value / per_vector[options.widths[0]]}
                for width, value in per_vector.items()
            ],
        }
    return models


def block_table(models: dict[str, Any]) -> str:
    columns = (f"seconds a vector, {name} (k = {model['k']})" for name, model in models.items())
    widths = zip(*(model["rows"] for model in models.values()), strict=True)
    cells = ([str(rows[0]["width"]), *(f"{row['seconds_per_vector']:.3g}" for row in rows)] for rows in widths)
    return markdown(f"| block size b | {' | '.join(columns)} |", (f"| {' | '.join(row)} |" for row in cells))


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


def budget(options: Namespace) -> dict[str, Any]:
    k, dim, max_matvecs = options.budget_examples, 5, 12
    rows = [run_isolated(measure_budget, size * 2**20, k, dim, max_matvecs) for size in options.budgets]
    return {"model": "nanochat", "k": k, "dim": dim, "rows": rows}


def budget_table(part: dict[str, Any]) -> str:
    of = f"{part['model']}, k = {part['k']}, D = {part['dim']}"
    rows = (
        f"| {mebibytes(row['budget_bytes'])} | {mebibytes(row['peak_bytes'])} | {100 * row['peak_over_budget']:.0f} % "
        f"| {row['microbatch_size']} | {row['seconds']:.3g} |"
        for row in part["rows"]
    )
    return markdown(f"| memory budget ({of}) | measured peak | of the budget | microbatch | seconds |", rows)


PARTS = {
    "examples": (examples, examples_table),
    "parameters": (parameters, parameters_table),
    "beside": (beside, beside_table),
    "dimension": (dimension, dimension_table),
    "block": (block, block_table),
    "budget": (budget, budget_table),
}
OPTIONS = {
    "parts": (list(PARTS), "what to measure"),
    "examples": ([8, 32, 128, 512], "sample sizes k"),
    "microbatches": (128, "of the products at every k, two at the least"),
    "parameters": ([10**4, 10**5, 10**6, 10**7], "numbers of parameters N"),
    "beside": ([10**4, 10**5, 10**6], "numbers of parameters N of the part beside"),
    "dims": ([1, 2, 4, 8, 16, 32, 64], "dimensions D"),
    "widths": ([1, 2, 4, 8, 16], "block sizes b"),
    "budgets": ([512, 1024, 2048], "in MiB"),
    "budget_examples": (64, "sample size k of the budget part"),
    **shared(repeats=3),
}


def measure(options: Namespace) -> dict[str, Any]:
    found = {}
    for name in options.parts:
        found[name] = PARTS[name][0](options)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    return found


def table(result: dict[str, Any]) -> str:
    return page(result, *(written(result[name]) for name, (_, written) in PARTS.items() if name in result))


BENCHMARK = Benchmark("scaling", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
