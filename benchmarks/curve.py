"""The whole decay curve, every k up to n: one projection against the paper's procedure at every single k.

Ours: the top eigenspace at n, one projection of the n examples and a candidate, and the closed form at every k from
it. The paper's procedure has all its stages at every k, the closed form as the third; it is run at every k of the
digits MLP, and at a few k spaced evenly in log k of the language model, with its seconds at the others interpolated
linearly. The weights stay the same for every k, and so do the paper's seconds at a k whatever n.
Run: python benchmarks/curve.py [--models digits]
"""

from argparse import Namespace
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy
import torch
from benchmark import Benchmark, markdown, page, shared
from models import CACHE, mlp

import curvprobe as cp
from curvprobe.experiments import paper_procedure as procedure
from curvprobe.experiments.machine import timed
from curvprobe.tasks.text import text

SIGMA = 1e-3
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """A trained model and the dimension of the subspace.

    ``num_ks`` is at how many k the paper's procedure is run (None: all), ``repeats`` how often ours is at every n.
    """

    task: cp.Task
    dim: int
    num_ks: int | None
    repeats: int


def small_text() -> cp.Task:
    size = {"hidden_size": 32, "intermediate_size": 128, "num_layers": 1}
    return text(512, **size, cache=CACHE / "curve.safetensors")


MODELS = {
    "digits": lambda: Setting(mlp(), dim=10, num_ks=None, repeats=3),
    "text": lambda: Setting(small_text(), dim=2, num_ks=6, repeats=1),
}
OPTIONS = {**shared(models=list(MODELS)), "sizes": ([32, 64, 128], "numbers n of examples")}


def pool(task: cp.Task, n: int) -> procedure.Batch:
    """The first n examples of the sample, and a candidate."""
    return procedure.join(procedure.take(task.data, slice(0, n)), procedure.take(task.candidates, slice(0, 1)))


def our_curve(task: cp.Task, n: int, dim: int) -> tuple[cp.DecayCurve, int]:
    """The curve, and the products of one example with one vector that it took."""
    risk = cp.EmpiricalRisk(task.model, task.loss, pool(task, n))
    subspace = cp.top_eigenspace(risk[:n], dim=dim)
    curve = cp.decay_curve(cp.project(risk, subspace), sigma=SIGMA)
    return curve, subspace.num_matvecs * n + dim * (n + 1)


def paper_point(task: cp.Task, k: int, n: int, dim: int) -> tuple[float, int]:
    """The paper's value at one k, and the products of one example with one vector that it took."""
    mean, examples = procedure.MeanLoss(task.model, task.loss), pool(task, n)
    before, after = procedure.take(examples, slice(0, k)), procedure.take(examples, slice(0, k + 1))
    pairs = procedure.power_iteration(mean, before, dim)
    model = procedure.coefficients(mean, pairs.basis, before, after)
    return procedure.closed_form(model, SIGMA), pairs.num_matvecs * k + dim * (2 * k + 1)


def spaced(last: int, count: int | None) -> list[int]:
    """Whole numbers from 1 to ``last``: all, or a few evenly spaced in their logarithm."""
    if count is None or count >= last:
        return list(range(1, last + 1))
    return sorted({round(k) for k in numpy.geomspace(1, last, count)})


def summed(ks: list[int], costs: list[float], n: int) -> float:
    """The cost of every k from 1 to n, those between the measured ones interpolated linearly."""
    return float(numpy.interp(range(1, n + 1), ks, costs).sum())


def exponent(sizes: list[int], costs: list[float]) -> float:
    """The b of costs ~ n^b, by least squares."""
    return float(numpy.polyfit(numpy.log(sizes), numpy.log(costs), 1)[0])


def measure(options: Namespace) -> dict[str, Any]:
    return {"sigma": SIGMA, "models": {name: of_model(MODELS[name](), options.sizes) for name in options.models}}


def of_model(setting: Setting, sizes: list[int]) -> dict[str, Any]:
    our_curve(setting.task, 2, setting.dim)  # what PyTorch sets up on a first use belongs to neither side
    paper_point(setting.task, 2, 2, setting.dim)
    ks = spaced(max(sizes), setting.num_ks)
    seconds, products = paper_costs(setting, ks, max(sizes))
    rows = []
    for n in sizes:
        costs = {"paper_seconds": summed(ks, seconds, n), "paper_example_products": summed(ks, products, n)}
        rows.append({"n": n, **costs, **our_costs(setting, n)})
        rows[-1]["seconds_ratio"] = rows[-1]["paper_seconds"] / rows[-1]["seconds"]
        rows[-1]["products_ratio"] = rows[-1]["paper_example_products"] / rows[-1]["example_products"]
        print(f"n {n}: {rows[-1]['seconds']:.3g} s, {rows[-1]['seconds_ratio']:.3g} times as fast", flush=True)
    return {
        "task": setting.task.description,
        "dim": setting.dim,
        "repeats": setting.repeats,
        "measured_ks": ks,
        "measured_seconds": seconds,
        "interpolated": len(ks) < max(sizes),
        "rows": rows,
        "exponents": {
            name: exponent(sizes, [row[name] for row in rows])
            for name in ("seconds", "paper_seconds", "example_products", "paper_example_products")
        },
    }


def paper_costs(setting: Setting, ks: list[int], n: int) -> tuple[list[float], list[float]]:
    """Seconds and example products of the paper's procedure at every one of these k."""
    seconds, products = [], []
    for k in ks:
        (_, count), time = timed(CPU, paper_point, setting.task, k, n, setting.dim)
        seconds.append(time)
        products.append(float(count))
        print(f"k {k}: {time:.3g} s by the paper's procedure", flush=True)
    return seconds, products


def our_costs(setting: Setting, n: int) -> dict[str, float]:
    """Seconds and example products of our whole curve."""
    runs = [timed(CPU, our_curve, setting.task, n, setting.dim) for _ in range(setting.repeats)]
    return {"seconds": median(time for _, time in runs), "example_products": runs[0][0][1]}


HEAD = "| model | n | paper's procedure at every k, s | curvprobe, s | ratio | ratio of example products |"
ROW = "| {model} | {n} | {mark}{paper_seconds:.3g} | {seconds:.3g} | {seconds_ratio:.0f} | {products_ratio:.0f} |"


def table(result: dict[str, Any]) -> str:
    rows = (
        {**row, "model": name, "mark": "≈ " if model["interpolated"] else ""}
        for name, model in result["models"].items()
        for row in model["rows"]
    )
    note = "; ".join(growth(name, model) for name, model in result["models"].items())
    return page(result, markdown(HEAD, map(ROW.format_map, rows)), note=note)


def growth(name: str, model: dict[str, Any]) -> str:
    power = {key: f"n^{value:.2f}" for key, value in model["exponents"].items()}
    measured = f", the paper's measured at k = {', '.join(map(str, model['measured_ks']))} and interpolated"
    return (
        f"{name}: D = {model['dim']}, seconds grow as {power['paper_seconds']} and {power['seconds']}, products as "
        f"{power['paper_example_products']} and {power['example_products']}{measured if model['interpolated'] else ''}"
    )


BENCHMARK = Benchmark("curve", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
