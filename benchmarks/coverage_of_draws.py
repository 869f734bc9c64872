"""How often intervals from some drawn examples hold what all examples of the sample give.

Of a sample that is differentiated as a whole, m examples are drawn for the eigenspace and m for the rest, again and
again, as `analyze(max_examples=)` draws them. Counted is how often the intervals of the curvatures along the directions
found and of the first candidate's criterion hold what the whole sample gives; and how often those of the expectation
and of the required size, over candidates drawn anew too, hold what these are of the sample and their population.
*without a draw*: the same expectation from all examples, where only the candidates are drawn.
Run: python benchmarks/coverage_of_draws.py [--repetitions 300]
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from benchmark import Benchmark, markdown, page
from coverage_of_intervals import size_at

import curvprobe as cp
from curvprobe.criteria.drawn import draw_error
from curvprobe.criteria.features import features
from curvprobe.numerics.strata import draw, reaches

DIM, SIGMA, K, CANDIDATES, POPULATION = 3, 0.05, 4000, 250, 4000

Everything = tuple[cp.ProjectedSample, cp.ProjectedSample]
"""A sample and candidates in all parameters."""


def fitted(model: torch.nn.Module, loss: Callable[..., Any], data: tuple[torch.Tensor, ...]) -> Everything:
    """The first examples as a sample to which the model was fitted, and the others, projected on all parameters."""
    task = cp.Task(model, loss, tuple(part[:K] for part in data), tuple(part[K:] for part in data))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        found = loss(model(task.data[0]), task.data)
        summed, weight = found if isinstance(found, tuple) else (found, torch.ones_like(found))
        value = summed.sum() / weight.sum()
        value.backward()
        return value

    optimizer.step(closure)
    risk = task.risk()
    basis = cp.Subspace.from_basis(torch.eye(risk.num_params, dtype=torch.float64))
    return cp.project(risk, basis), cp.project(risk.on(task.candidates), basis)


def inputs(width: int, *, heavy: bool) -> tuple[torch.Tensor, torch.Generator]:
    """Normal, or of lognormal length."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(K + POPULATION, width, generator=generator, dtype=torch.float64)
    if heavy:
        x *= (0.4 * torch.randn(len(x), 1, generator=generator, dtype=torch.float64)).exp()
    return x, generator


def labels(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    true = torch.tensor([1.5, -1.0, 0.5, 0.0, 0.3], dtype=torch.float64)[: x.shape[1]]
    return (torch.rand(len(x), generator=generator, dtype=torch.float64) < (x @ true).sigmoid()).double()[:, None]


def linear() -> Everything:
    """Least squares with heavy-tailed inputs and Laplacian noise."""
    x, generator = inputs(5, heavy=True)
    noise = torch.rand(len(x), 2, generator=generator, dtype=torch.float64).log().diff(dim=1)
    return fitted(torch.nn.Linear(5, 1).double(), cp.losses.mse, (x, x.sum(1, keepdim=True) + noise))


def logistic() -> Everything:
    x, generator = inputs(5, heavy=False)
    return fitted(torch.nn.Linear(5, 1).double(), cp.losses.binary_cross_entropy, (x, labels(x, generator)))


def weighted() -> Everything:
    """A logistic regression whose examples have 1 to some thousand terms."""
    x, generator = inputs(5, heavy=False)
    terms = (0.8 * torch.randn(len(x), generator=generator, dtype=torch.float64)).exp().mul(50).round().clamp_min(1)

    def loss(outputs: torch.Tensor, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        return cp.losses.binary_cross_entropy(outputs, batch) * batch[2], batch[2]

    return fitted(torch.nn.Linear(5, 1).double(), loss, (x, labels(x, generator), terms))


def network() -> Everything:
    """A small network on heavy-tailed inputs."""
    x, generator = inputs(3, heavy=True)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    noise = 0.3 * torch.randn(len(x), 1, generator=generator, dtype=torch.float64)
    return fitted(model, cp.losses.mse, (x, x.sin().sum(1, keepdim=True) + noise))


POPULATIONS = {"linear": linear, "logistic": logistic, "unequal weights": weighted, "network": network}
OPTIONS = {
    "populations": (list(POPULATIONS), "what to draw from"),
    "repetitions": (300, "draws for every row"),
    "sizes": ([100, 1000], "examples that are drawn"),
}
WHAT = ("curvatures", "first candidate", "expectation", "without a draw", "its shape", "doubling", "required size")


def drawn(whole: cp.ProjectedSample, count: int, seed: int) -> cp.ProjectedSample:
    """As :func:`curvprobe.draw_examples` draws."""
    found, mean = draw(whole.weight, count, seed), float(whole.mean().loss)
    part = whole[found.rows.tolist()]
    moved = part.loss + (mean - float(found.weight @ part.loss / found.weight.sum()))
    return replace(part, loss=moved, weight=found.weight, design=found.design)


def along(sample: cp.ProjectedSample, basis: torch.Tensor) -> cp.ProjectedSample:
    return replace(sample, gradient=sample.gradient @ basis, hessian=basis.T @ sample.hessian @ basis)


def held(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def one(sample: cp.ProjectedSample, others: cp.ProjectedSample, count: int, seed: int) -> dict[str, list[bool]]:
    """Whether each interval from one draw holds what the whole sample gives."""
    solved = drawn(sample, count, 2 * seed + 1).mean().hessian[0]
    basis = torch.linalg.eigh(solved).eigenvectors[:, -DIM:].flip(1)
    part, whole, population = (along(of, basis) for of in (drawn(sample, count, 2 * seed), sample, others))
    rows = torch.randint(len(others), (CANDIDATES,), generator=torch.Generator().manual_seed(seed)).tolist()
    fresh = replace(population[rows], digests=())
    curved, bent = part.mean().hessian[0].diagonal(), whole.mean().hessian[0].diagonal()
    reach = reaches(part.deviations(part.hessian.diagonal(dim1=1, dim2=2)))
    found = {"curvatures": ((curved - bent).abs() <= reach).tolist()}
    values = [cp.decay_curve(of, [of.size], SIGMA, fresh=fresh[0]).value[-1, -1, 0] for of in (part, whole)]
    found["first candidate"] = [bool((values[0] - values[1]).abs() <= reaches(draw_error(part, fresh[0], SIGMA))[0])]
    expected, size = cp.expected_criterion(part, fresh, SIGMA), float(whole.weight.sum())
    distance = features(population, SIGMA) - features(whole.mean(), SIGMA)
    moves = (population.weight / (size + population.weight))[:, None] * distance
    truth = moves.square().mean(0)
    found["expectation"] = [held(expected.interval, float(truth.sum()))]
    found["without a draw"] = [held(cp.expected_criterion(whole, fresh, SIGMA).interval, float(truth.sum()))]
    found["its shape"] = [held(expected.shape_interval, float(truth[1:].sum()))]
    return found | _larger(part, whole, population, fresh, float(truth.sum()))


def _larger(
    part: cp.ProjectedSample,
    whole: cp.ProjectedSample,
    population: cp.ProjectedSample,
    fresh: cp.ProjectedSample,
    truth: float,
) -> dict[str, list[bool]]:
    """When as many join as there are, and the size that halves the root: of the whole sample and the population."""
    weight = population.weight.mean()
    distance = features(population, SIGMA) - features(whole.mean(), SIGMA)
    moves = (population.weight / weight)[:, None] * distance
    shift, spread = float(moves.mean(0).square().sum()), float(moves.var(0).sum())
    total, b = float(whole.weight.sum()), whole.size
    doubled = float(weight / (total + b * weight)) ** 2 * (b**2 * shift + b * spread)
    tolerance = (truth / 4) ** 0.5
    size = cp.required_sample_size(part, fresh, SIGMA, tolerance)
    exact = size_at(shift, spread, whole.size, tolerance)
    return {
        "doubling": [held(cp.expected_criterion(part, fresh, SIGMA, "double").interval, doubled)],
        "required size": [held(size.interval, exact)],
    }


def measure(options: Namespace) -> dict[str, Any]:
    rows = []
    for name in options.populations:
        sample, others = POPULATIONS[name]()
        sample, others = replace(sample, digests=()), replace(others, digests=())
        for count in options.sizes:
            found = [one(sample, others, count, seed) for seed in range(options.repetitions)]
            covered = {what: [hit for row in found for hit in row[what]] for what in WHAT}
            shares = {what: sum(hits) / len(hits) for what, hits in covered.items()}
            rows.append({"population": name, "examples": count, "of": len(sample), "covered": shares})
            print(rows[-1], flush=True)
    return {"repetitions": options.repetitions, "rows": rows}


def table(result: dict[str, Any]) -> str:
    head = "| sample | drawn | " + " | ".join(WHAT) + " |"
    rows = [
        f"| {row['population']} | {row['examples']:,} of {row['of']:,} | "
        + " | ".join(f"{100 * row['covered'][what]:.1f} %" for what in WHAT)
        + " |"
        for row in result["rows"]
    ]
    return page(result, markdown(head, rows), note=f"Of {result['repetitions']} draws each")


BENCHMARK = Benchmark("coverage_of_draws", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
