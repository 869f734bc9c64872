"""How often the 95 % intervals beside Monte Carlo and trace estimates hold the truth.

On a classifier of digits, for many candidates as the next example: the controlled estimate from a few draws, and the
error of the closed form that it implies, drawn again and again from many; the truth is the mean of all. On a small
network, whose Hessian is known entirely: the full-space moment by stochastic traces. Beside ours stand 1.96 standard
errors, and Student's interval with one degree of freedom less than terms. The model is valid for all candidates
together; told is for how many its closed form is off by more than 10 %, and for how many of those called valid.
Run: python benchmarks/coverage_of_errors.py [--repetitions 400]
"""

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import torch
from benchmark import Benchmark, markdown, page

import curvprobe as cp
from curvprobe.criteria.estimators import Estimate, moment_parts, power_excess
from curvprobe.criteria.increment import fresh_increments
from curvprobe.criteria.row_errors import THRESHOLD
from curvprobe.criteria.verdicts import verdict_of
from curvprobe.numerics.intervals import freedom, standard_error, student_reach
from curvprobe.probing.joining import Joining
from curvprobe.probing.monte_carlo import candidate_increments
from curvprobe.tasks.digits import digits

OPTIONS = {
    "repetitions": (400, "sets of draws for every row"),
    "draws": (20_000, "whose mean is the truth"),
    "candidates": (40, "next examples, each with a truth of its own"),
    "products": ([8, 12, 24], "Hessian products of the full-space moment"),
    "num_probes": ([16, 32, 64, 128], "draws of a set"),
}
WAYS = ("ours", "1.96 standard errors", "Student's, n - 1")


def measure(options: Namespace) -> dict[str, Any]:
    rows = [*controlled(options), *traces(options)]
    return {"repetitions": options.repetitions, "rows": rows}


def controlled(options: Namespace) -> Iterator[dict[str, Any]]:
    """What the truth has beyond the closed form, for every candidate, at the largest sigma that is validated."""
    task = digits(200)
    risk = task.risk()
    new = risk.on(task.candidates)[: options.candidates]
    space = cp.top_eigenspace(risk, dim=10)
    sample, fresh = cp.project(risk, space), cp.project(new, space)
    grid = [10 ** (exponent / 2) for exponent in range(-10, 2)]
    sigma = cp.quadratic_validity(risk, grid, subspace=space, new=new).validated_sigma
    law = cp.SubspaceProbe(space, sigma)
    true = candidate_increments(Joining(risk, new), law, options.draws, 1)
    models = next(fresh_increments(sample, fresh, [len(sample)]))
    excess = power_excess(true, models.at(law.coordinates(options.draws, 1)).T, 2.0)
    pairs = excess.view(-1, 2, len(new)).mean(1)
    closed = sum(moment_parts(models, torch.tensor(sigma, dtype=torch.float64)))
    far = (pairs.mean(0) / closed).abs()
    for count in options.num_probes:
        hits, valid, wrong = dict.fromkeys(WAYS, 0), 0, 0
        for seed in range(options.repetitions):
            drawn = torch.randint(len(pairs), (count // 2,), generator=torch.Generator().manual_seed(seed))
            for j in range(len(new)):
                found = excess_of(pairs[drawn, j])
                count_hits(hits, found, float(pairs[:, j].mean()), count // 2)
                called = verdict_of((abs(found.value) + found.reach) / float(closed[j]), THRESHOLD) == "valid"
                valid, wrong = valid + called, wrong + (called and float(far[j]) > THRESHOLD)
        total = options.repetitions * len(new)
        yield {
            "what": f"controlled Monte Carlo, {count} draws",
            "off": float((far > THRESHOLD).double().mean()),
            "valid": valid / total,
            "off_when_valid": wrong / valid if valid else None,
            **{way: hit / total for way, hit in hits.items()},
        }


def excess_of(terms: torch.Tensor) -> Estimate:
    return Estimate(float(terms.mean()), standard_error(terms), freedom=freedom(terms))


def count_hits(hits: dict[str, int], found: Estimate, truth: float, terms: int) -> None:
    off = abs(found.value - truth)
    hits["ours"] += off <= found.reach
    hits["1.96 standard errors"] += off <= 1.96 * found.stderr
    hits["Student's, n - 1"] += off <= student_reach(found.stderr, terms - 1)


def small_network() -> tuple[cp.EmpiricalRisk, cp.EmpiricalRisk]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Linear(12, 4)).double()
        x, y = torch.randn(60, 8, dtype=torch.float64), torch.randint(4, (60,))
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x[:40], y[:40]))
    return risk, risk.on((x[40:], y[40:]))


def traces(options: Namespace) -> Iterator[dict[str, Any]]:
    """The full-space moment of several increments, against that of the whole Hessian."""
    risk, new = small_network()
    everything = cp.Subspace.from_basis(torch.eye(risk.num_params, dtype=torch.float64))
    sigma = 0.3
    sample, fresh = cp.project(risk, everything), cp.project(new, everything)
    truths = [cp.gaussian_moment(cp.increment(sample, fresh[j]), sigma=sigma).value for j in range(len(new))]
    for products in options.products:
        hits, total = dict.fromkeys(WAYS, 0), 0
        for seed in range(max(1, options.repetitions // 10)):
            for j, truth in enumerate(truths):
                found = cp.full_space_moment(risk, new[[j]], sigma=sigma, num_probes=products, seed=seed)
                terms = products if products < 12 else products - 2 * (products // 3)
                count_hits(hits, found, truth, terms)
                total += 1
        yield {
            "what": f"full-space moment, {products} products",
            "off": None,
            **{way: hit / total for way, hit in hits.items()},
        }


HEAD = f"| interval of | {' | '.join(WAYS)} | off by more than 10 % | called valid | of those off |"


def table(result: dict[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        cells = [f"{100 * row[way]:.1f} %" for way in WAYS]
        cells += [
            "" if row.get(key) is None else f"{100 * row[key]:.1f} %" for key in ("off", "valid", "off_when_valid")
        ]
        rows.append(f"| {row['what']} | {' | '.join(cells)} |")
    return page(result, markdown(HEAD, rows), note=f"Of {result['repetitions']} repetitions for each candidate")


BENCHMARK = Benchmark("coverage_of_errors", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
