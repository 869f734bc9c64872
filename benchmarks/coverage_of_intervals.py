"""How often nominal 95 % intervals hold the truth, given that they were given, over populations that are known.

Sets of m candidates are drawn again and again from a population: of losses of a known law, or the held-out examples of
trained networks. Counted is how often the interval of the expected criterion, of its shape and of the required sample
size holds the population's own value, and how often it has an upper end. Two populations show where it cannot work.
Run: python benchmarks/coverage_of_intervals.py [--repetitions 400]
"""

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from benchmark import Benchmark, markdown, page

import curvprobe as cp
from curvprobe.criteria.expectation import features, squared_mean
from curvprobe.tasks.digits import digits
from curvprobe.tasks.text import text

SIGMA, COUNT, DIM = 1e-3, 200_000, 3
K = 60
"""Examples of the sample where the losses are of a known law."""

Interval = tuple[float, float]
Population = tuple[cp.ProjectedSample, cp.ProjectedSample]

BEYOND = ("errors 1 %", "Pareto 2.5")
"""Populations where no interval from so many candidates can hold what it says: see docs/numbers.md."""


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def flat(losses: torch.Tensor) -> cp.ProjectedSample:
    """Examples that differ in their losses alone."""
    n = len(losses)
    return cp.ProjectedSample(losses, torch.ones(n), torch.zeros(n, 1), torch.zeros(n, 1, 1))


def of_losses(losses: torch.Tensor) -> Population:
    """A sample whose loss is the population's mean."""
    return flat(losses.mean().expand(K)), flat(losses)


def errors(share: float) -> Population:
    """Losses of a classifier: small, but for a share of errors."""
    draw = generator()
    losses = 0.1 * torch.rand(COUNT, generator=draw, dtype=torch.float64)
    wrong = torch.rand(COUNT, generator=draw) < share
    losses[wrong] = 2.5 + 5 * torch.rand(int(wrong.sum()), generator=draw, dtype=torch.float64)
    return of_losses(losses)


def normals(rows: int) -> torch.Tensor:
    return torch.randn(rows, COUNT, generator=generator(), dtype=torch.float64)


def pareto(index: float) -> Population:
    return of_losses(torch.rand(COUNT, generator=generator(), dtype=torch.float64) ** (-1 / index))


def student() -> Population:
    z = normals(4)
    return of_losses(z[0] / z[1:].square().mean(0).sqrt())


def network(task: cp.Task) -> Population:
    """A trained network: the sample and all candidates of a task, projected."""
    risk = task.risk()
    space = cp.top_eigenspace(risk, dim=DIM)
    return cp.project(risk, space), cp.project(risk.on(task.candidates), space)


def windows(task: cp.Task, length: int = 32) -> cp.Task:
    """The text task with shorter sequences, of which there are more."""
    return replace(task, data=task.data.view(-1, length), candidates=task.candidates.view(-1, length))


def logistic() -> Population:
    """A fitted logistic regression: 60 examples, and many of their kind."""
    x = torch.randn(60 + COUNT // 5, 5, generator=(draw := generator()), dtype=torch.float64)
    true = torch.tensor([1.5, -1.0, 0.5, 0.0, 0.3], dtype=torch.float64)
    labels = (torch.rand(len(x), generator=draw, dtype=torch.float64) < (x @ true).sigmoid()).double()[:, None]
    model = torch.nn.Linear(5, 1, bias=False).double()
    weights = torch.zeros(5, dtype=torch.float64)
    for _ in range(30):  # Newton's method
        p = (x[:60] @ weights).sigmoid()
        weights -= torch.linalg.solve((x[:60].T * p * (1 - p)) @ x[:60], x[:60].T @ (p - labels[:60, 0]))
    model.weight.data = weights[None]
    task = cp.Task(model, cp.losses.binary_cross_entropy, (x[:60], labels[:60]), (x[60:], labels[60:]))
    return network(task)


POPULATIONS: dict[str, Callable[[], Population]] = {
    "errors 2 %": lambda: errors(0.02),
    "lognormal": lambda: of_losses(normals(1)[0].exp()),
    "t3": student,
    "Pareto 3": lambda: pareto(3.0),
    "logistic": logistic,
    "digits": lambda: network(digits(300)),
    "text": lambda: network(windows(text(16, candidates=100))),
    "errors 1 %": lambda: errors(0.01),
    "Pareto 2.5": lambda: pareto(2.5),
}
OPTIONS = {
    "populations": (list(POPULATIONS), "what to draw from"),
    "repetitions": (400, "sets of candidates for every row"),
    "sizes": ([20, 40, 100, 250, 500], "candidates in a set"),
}


def drawn(whole: cp.ProjectedSample, count: int, seed: int) -> cp.ProjectedSample:
    chosen = whole[torch.randint(len(whole), (count,), generator=torch.Generator().manual_seed(seed)).tolist()]
    return cp.ProjectedSample(chosen.loss, chosen.weight, chosen.gradient, chosen.hessian)


def moments(sample: cp.ProjectedSample, whole: cp.ProjectedSample, first: int = 0) -> tuple[float, float]:
    """Squared shift and spread of the population about the sample, of the features from this one on."""
    distance = (features(whole, SIGMA) - features(sample, SIGMA).mean(0))[:, first:]
    return float(squared_mean(distance).sum()), float(distance.var(0).sum())


def size_at(shift: float, spread: float, k: int, tolerance: float) -> float:
    """By bisection on the formula of docs/theory.md, written out anew."""

    def mean_square(size: float) -> float:
        pulled = min(1.0, k / size) ** 2 * shift
        return (pulled + spread * (1 + max(0.0, size - k) / size**2)) / (size + 1) ** 2

    low, high = 1.0, 1e15
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if mean_square(middle) <= tolerance**2 else (middle, high)
    return high


def measure(options: Namespace) -> dict[str, Any]:
    rows = []
    for name in options.populations:
        sample, whole = POPULATIONS[name]()
        shift, spread = moments(sample, whole)
        truth = (shift + spread) / (len(sample) + 1) ** 2
        tolerance = math.sqrt(truth) / 3
        size = size_at(shift, spread, len(sample), tolerance)
        shape = sum(moments(sample, whole, first=1)) / (len(sample) + 1) ** 2
        for m in options.sizes:
            expected, shapes, required = [], [], []
            for seed in range(options.repetitions):
                fresh = drawn(whole, m, seed)
                found = cp.expected_criterion(sample, fresh, SIGMA)
                expected.append(found.interval)
                shapes.append(found.shape_interval)
                required.append(cp.required_sample_size(sample, fresh, SIGMA, tolerance).interval)
            rows.append({"population": name, "m": m, "what": "expected criterion"} | counted(truth, expected))
            rows.append({"population": name, "m": m, "what": "required size"} | counted(size, required))
            if shape > 0:  # losses alone have none
                rows.append({"population": name, "m": m, "what": "shape"} | counted(shape, shapes))
            print(*rows[-3:], sep="\n", flush=True)
    return {"repetitions": options.repetitions, "rows": rows}


def counted(truth: float, intervals: list[Interval]) -> dict[str, Any]:
    """How often the intervals have an upper end, and hold the truth."""
    held = [low <= truth <= high for low, high in intervals]
    bounded = [one for one, (_, high) in zip(held, intervals, strict=True) if math.isfinite(high)]
    widths = sorted(high / low for low, high in intervals if low > 0)
    return {
        "covered": sum(held) / len(held),
        "lower_end_holds": sum(low <= truth for low, _ in intervals) / len(intervals),
        "bounded": len(bounded) / len(held),
        "covered_when_bounded": sum(bounded) / len(bounded) if bounded else None,
        "width": widths[len(widths) // 2] if widths else math.inf,
    }


HEAD = (
    "| population | candidates m | expected criterion covers | upper end, covers then | its shape covers | "
    "upper end, covers then | required size covers | upper end, covers then |"
)


def table(result: dict[str, Any]) -> str:
    kinds = {(row["population"], row["m"], row["what"]): row for row in result["rows"]}
    rows = []
    for name, m in dict.fromkeys((name, m) for name, m, _ in kinds):
        what = ("expected criterion", "shape", "required size")
        cells = [cell for one in what for cell in shown(kinds.get((name, m, one)))]
        limit = " (out of reach)" if name in BEYOND else ""
        rows.append(f"| {' | '.join([name + limit, str(m), *cells])} |")
    return page(result, markdown(HEAD, rows), note=f"Of {result['repetitions']} repetitions each")


def shown(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    then = row["covered_when_bounded"]
    bounded = f"{100 * row['bounded']:.0f} %" + (f", {100 * then:.1f} %" if then is not None else "")
    return f"{100 * row['covered']:.1f} %", bounded


BENCHMARK = Benchmark("coverage_of_intervals", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
