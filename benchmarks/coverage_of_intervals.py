"""How often nominal 95 % intervals hold the truth, at a fitted logistic regression whose population is known.

For numbers of candidates m and of examples that join b, many sets of candidates are drawn; counted is how often the
interval of the expected criterion, and of the required sample size, holds the population's own value.
Run: python benchmarks/coverage_of_intervals.py [--repetitions 600]
"""

import math
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import torch
from benchmark import Benchmark, markdown, page

import curvprobe as cp
from curvprobe.criteria.expectation import features, squared_mean
from curvprobe.numerics.intervals import student_reach

SIGMA, TOLERANCE = 0.3, 1e-3
OPTIONS = {
    "repetitions": (600, "sets of candidates for every row"),
    "populations": ([20_000, 40_000], "their sizes; each is a draw"),
}

Interval = tuple[float, float]


def population(count: int) -> tuple[cp.ProjectedSample, cp.ProjectedSample]:
    """Sixty examples that a logistic regression was fitted to, and more of their kind, projected on 3 directions."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60 + count, 5, generator=draw, dtype=torch.float64)
    true = torch.tensor([[1.5], [-1.0], [0.5], [0.0], [0.3]], dtype=torch.float64)
    labels = (torch.rand(len(x), 1, generator=draw, dtype=torch.float64) < (x @ true).sigmoid()).double()
    model = torch.nn.Linear(5, 1, bias=False).double()
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x[:60]), labels[:60])
        loss.backward()
        return loss

    with torch.enable_grad():
        torch.nn.init.zeros_(model.weight)
        optimiser.step(closure)
    risk = cp.EmpiricalRisk(model, cp.losses.binary_cross_entropy, (x[:60], labels[:60]))
    space = cp.top_eigenspace(risk, dim=3, tol=1e-8)
    return cp.project(risk, space), cp.project(risk.on((x[60:], labels[60:])), space)


def drawn(whole: cp.ProjectedSample, count: int, seed: int) -> cp.ProjectedSample:
    chosen = whole[torch.randint(len(whole), (count,), generator=torch.Generator().manual_seed(seed)).tolist()]
    return cp.ProjectedSample(chosen.loss, chosen.weight, chosen.gradient, chosen.hessian)


def true_expectation(sample: cp.ProjectedSample, whole: cp.ProjectedSample, b: int) -> float:
    moves = b / (len(sample) + b) * (features(whole, SIGMA) - features(sample, SIGMA).mean(0))
    return float(squared_mean(moves).sum() + moves.var(0).sum() / b)


def true_size(sample: cp.ProjectedSample, whole: cp.ProjectedSample) -> float:
    """By bisection on the formula of docs/theory.md, written out anew."""
    distance, k = features(whole, SIGMA) - features(sample, SIGMA).mean(0), len(sample)
    shift, spread = float(squared_mean(distance).sum()), float(distance.var(0).sum())

    def mean_square(size: float) -> float:
        pulled = min(1.0, k / size) ** 2 * shift
        return (pulled + spread * (1 + max(0.0, size - k) / size**2)) / (size + 1) ** 2

    low, high = 1.0, 1e9
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if mean_square(middle) <= TOLERANCE**2 else (middle, high)
    return high


def required_size(sample: cp.ProjectedSample, fresh: cp.ProjectedSample | None) -> Interval:
    return cp.required_sample_size(sample, fresh, SIGMA, TOLERANCE, widest=math.inf).interval


def students(expected: cp.ExpectedCriterion) -> Interval:
    """Student's interval about the value, for comparison."""
    reach = student_reach(expected.stderr, expected.num_candidates - 1)
    return expected.value - reach, expected.value + reach


def measure(options: Namespace) -> dict[str, Any]:
    rows = []
    for count in options.populations:
        sample, whole = population(count)
        found = [
            row
            for m, b in ((40, 1), (100, 1), (200, 1), (500, 1), (100, 8), (200, 8), (500, 8))
            for row in from_candidates(sample, whole, m, b, options.repetitions)
        ]
        found += [row for m in (100, 200) for row in from_a_pool(whole, m, options.repetitions)]
        rows += [row | {"population": count} for row in found]
    return {"repetitions": options.repetitions, "rows": rows}


def from_candidates(
    sample: cp.ProjectedSample, whole: cp.ProjectedSample, m: int, b: int, repetitions: int
) -> Iterator[dict[str, Any]]:
    """Intervals from m candidates outside the sample, b of which join at once."""
    sets, truth = [drawn(whole, m, seed) for seed in range(repetitions)], true_expectation(sample, whole, b)
    found = [cp.expected_criterion(sample, fresh, SIGMA, b) for fresh in sets]
    plain = sum(low <= truth <= high for low, high in map(students, found))
    row = counted("expected criterion", m, b, truth, [one.interval for one in found])
    yield row | {"plain_covered": plain / repetitions}
    if b == 1:
        sizes = [required_size(sample, fresh) for fresh in sets]
        yield counted("required size", m, b, true_size(sample, whole), sizes)


def from_a_pool(whole: cp.ProjectedSample, m: int, repetitions: int) -> Iterator[dict[str, Any]]:
    """Intervals from a sample of m that stands for the population itself."""
    pools = [drawn(whole, m, seed) for seed in range(repetitions)]
    dispersion = 2 * cp.expected_criterion(whole, None, SIGMA, k=1).value
    intervals = [cp.expected_criterion(pool, None, SIGMA, k=1).interval for pool in pools]
    yield counted("dispersion of a pool", m, 1, dispersion / 2, intervals)
    size = (math.sqrt(1 + 4 * dispersion / TOLERANCE**2) - 1) / 2
    yield counted("required size, pool", m, 1, size, [required_size(pool, None) for pool in pools])


def counted(what: str, m: int, b: int, truth: float, intervals: list[Interval]) -> dict[str, Any]:
    """How often the intervals hold the truth, and how often they lie below and above it."""
    below, above = sum(high < truth for _, high in intervals), sum(low > truth for low, _ in intervals)
    covered = 1 - (below + above) / len(intervals)
    print(f"{what}, m {m}, b {b}: {100 * covered:.1f} %", flush=True)
    return {"what": what, "m": m, "b": b, "covered": covered, "below": below, "above": above}


HEAD = "| population | interval of | candidates m | join at once b | covers | too low | too high | Student's covers |"
ROW = "| {population} | {what} | {m} | {b} | {percent} | {below} | {above} | {plain_percent} |"


def table(result: dict[str, Any]) -> str:
    rows = (
        {**row, "percent": percent(row["covered"]), "plain_percent": percent(row.get("plain_covered"))}
        for row in result["rows"]
    )
    return page(result, markdown(HEAD, map(ROW.format_map, rows)), note=f"Of {result['repetitions']} repetitions each")


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


BENCHMARK = Benchmark("coverage_of_intervals", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
