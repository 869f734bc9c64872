"""How often nominal 95 % intervals hold the truth, at a fitted logistic regression whose population is known.

For numbers of candidates m and of examples that join b, many sets of candidates are drawn; counted is how often the
interval of the expected criterion, and of the required sample size, holds the population's own value.
Run: python benchmarks/coverage_of_intervals.py [--repetitions 600]
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from machine import place, write

import curvprobe as cp
from curvprobe.criteria.expectation import features, squared_mean
from curvprobe.experiments.machine import describe
from curvprobe.numerics.intervals import student_reach

RESULT = Path(__file__).parent / "results" / "coverage_of_intervals.json"
SIGMA, TOLERANCE = 0.3, 1e-3


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


def plain(expected: cp.ExpectedCriterion) -> tuple[float, float]:
    """Student's interval about the value, for comparison."""
    reach = student_reach(expected.stderr, expected.num_candidates - 1)
    return expected.value - reach, expected.value + reach


def measure(repetitions: int, count: int) -> list[dict[str, Any]]:
    sample, whole = population(count)
    rows: list[dict[str, Any]] = []

    def add(
        what: str,
        m: int,
        b: int,
        truth: float,
        intervals: list[tuple[float, float]],
        plain: list[tuple[float, float]] | None = None,
    ) -> None:
        below, above = (sum(end) for end in zip(*((high < truth, low > truth) for low, high in intervals), strict=True))
        covered = 1 - (below + above) / repetitions
        rows.append({"what": what, "m": m, "b": b, "covered": covered, "below": below, "above": above})
        rows[-1]["population"] = count
        if plain is not None:
            rows[-1]["plain_covered"] = sum(low <= truth <= high for low, high in plain) / repetitions
        print(f"{what}, m {m}, b {b}: {100 * covered:.1f} %", flush=True)

    for m, b in ((40, 1), (100, 1), (200, 1), (500, 1), (100, 8), (200, 8), (500, 8)):
        draws = (drawn(whole, m, seed) for seed in range(repetitions))
        found = [cp.expected_criterion(sample, fresh, SIGMA, b) for fresh in draws]
        truth = true_expectation(sample, whole, b)
        add("expected criterion", m, b, truth, [one.interval for one in found], [plain(one) for one in found])
        if b == 1:
            sizes = [
                cp.required_sample_size(sample, drawn(whole, m, seed), SIGMA, TOLERANCE, widest=math.inf).interval
                for seed in range(repetitions)
            ]
            add("required size", m, b, true_size(sample, whole), sizes)
    for m in (100, 200):
        pools = [drawn(whole, m, seed) for seed in range(repetitions)]
        dispersion = 2 * cp.expected_criterion(whole, None, SIGMA, k=1).value
        intervals = [cp.expected_criterion(pool, None, SIGMA, k=1).interval for pool in pools]
        add("dispersion of a pool", m, 1, dispersion / 2, intervals)
        sizes = [cp.required_sample_size(pool, None, SIGMA, TOLERANCE, widest=math.inf).interval for pool in pools]
        add("required size, pool", m, 1, (math.sqrt(1 + 4 * dispersion / TOLERANCE**2) - 1) / 2, sizes)
    return rows


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def table(result: dict[str, Any]) -> str:
    lines = [
        "| population | interval of | candidates m | join at once b | covers | too low | too high | Student's covers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['population']} | {row['what']} | {row['m']} | {row['b']} | {100 * row['covered']:.1f} % "
        f"| {row['below']} | {row['above']} | {_percent(row.get('plain_covered'))} |"
        for row in result["rows"]
    ]
    return "\n".join([*lines, "", f"(Of {result['repetitions']} repetitions each. {place(result['machine'])}.)"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=600)
    parser.add_argument(
        "--populations", type=int, nargs="+", default=[20_000, 40_000], help="their sizes; each is a draw"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(argv)
    rows = [row for count in options.populations for row in measure(options.repetitions, count)]
    write(options.out, {"machine": describe(), "repetitions": options.repetitions, "rows": rows})


if __name__ == "__main__":
    main()
