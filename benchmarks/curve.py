"""The whole decay curve, every k up to n: one projection against the paper's procedure at every single k.

Ours: the top eigenspace at n, one projection of the n examples and a candidate, and the closed form at every k from
it. The paper's procedure has all its stages at every k, the closed form as the third; it is run at every k of the
digits MLP, and at a few k spaced evenly in log k of the language model, with its seconds at the others interpolated
linearly. The weights stay the same for every k, and so do the paper's seconds at a k whatever n.
Run: python benchmarks/curve.py [--models digits]
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy
from machine import place, write
from models import CACHE, mlp

import curvprobe as cp
from curvprobe.experiments import paper_procedure as procedure
from curvprobe.experiments.machine import describe, timed
from curvprobe.tasks.text import text

RESULT = Path(__file__).parent / "results" / "curve.json"
SIGMA = 1e-3


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


def measure(setting: Setting, sizes: list[int]) -> dict[str, object]:
    task, dim = setting.task, setting.dim
    device = task.risk().device
    ks = spaced(max(sizes), setting.num_ks)
    our_curve(task, 2, dim)  # what PyTorch sets up on a first use belongs to neither side
    paper_point(task, 2, 2, dim)

    seconds, products = [], []
    for k in ks:
        (_, count), time = timed(device, paper_point, task, k, max(sizes), dim)
        seconds.append(time)
        products.append(float(count))
        print(f"k {k}: {time:.3g} s by the paper's procedure", flush=True)

    rows = []
    for n in sizes:
        runs = [timed(device, our_curve, task, n, dim) for _ in range(setting.repeats)]
        ours, theirs = median(time for _, time in runs), summed(ks, seconds, n)
        our_products, their_products = runs[0][0][1], summed(ks, products, n)
        rows.append(
            {
                "n": n,
                "seconds": ours,
                "paper_seconds": theirs,
                "seconds_ratio": theirs / ours,
                "example_products": our_products,
                "paper_example_products": their_products,
                "products_ratio": their_products / our_products,
            }
        )
        print(f"n {n}: {ours:.3g} s, {theirs / ours:.3g} times as fast", flush=True)
    return {
        "task": task.description,
        "dim": dim,
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


def table(result: dict[str, Any]) -> str:
    lines = [
        "| model | n | paper's procedure at every k, s | curvprobe, s | ratio | ratio of example products |",
        "|---|---|---|---|---|---|",
    ]
    for name, model in result["models"].items():
        mark = "≈ " if model["interpolated"] else ""
        lines += [
            f"| {name} | {row['n']} | {mark}{row['paper_seconds']:.3g} | {row['seconds']:.3g} "
            f"| {row['seconds_ratio']:.0f} | {row['products_ratio']:.0f} |"
            for row in model["rows"]
        ]
    growth = "; ".join(_growth(name, model) for name, model in result["models"].items())
    return "\n".join([*lines, "", f"({growth}. {place(result['machine'])}.)"])


def _growth(name: str, model: dict[str, Any]) -> str:
    power = {key: f"n^{value:.2f}" for key, value in model["exponents"].items()}
    measured = f", the paper's measured at k = {', '.join(map(str, model['measured_ks']))} and interpolated"
    return (
        f"{name}: D = {model['dim']}, seconds grow as {power['paper_seconds']} and {power['seconds']}, products as "
        f"{power['paper_example_products']} and {power['example_products']}{measured if model['interpolated'] else ''}"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(argv)
    result = {
        "machine": describe(),
        "sigma": SIGMA,
        "models": {name: measure(MODELS[name](), options.sizes) for name in options.models},
    }
    write(options.out, result)


if __name__ == "__main__":
    main()
