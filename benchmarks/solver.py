"""What the eigensolver's choices cost: products by size of basis and kind of start, and seconds by kind of product.

Products to converge are those before the certificate and the search for missed copies. "Unrestarted" holds a basis that
is never full: the least that a Krylov method from one vector can do. Starts are compared on the MLP over several seeds.
The search for missed copies is tried, by its least number of products, on diagonal matrices with copies of some leading
eigenvalues: a solve has missed where a value of its result is off by more than 1.5e-3 of the first.
Costs are medians, in units of a forward pass over the same examples. Run: python benchmarks/solver.py
"""

import statistics
import warnings
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from benchmark import Benchmark, markdown, page, shared
from models import mlp, nanochat
from torch import Tensor

import curvprobe as cp
from curvprobe.eigensolver import search
from curvprobe.eigensolver.lanczos import CERTIFYING_PRODUCTS
from curvprobe.experiments.machine import timed

CPU = torch.device("cpu")
SIZE = 20_000
OPTIONS = {
    "seeds": (5, "solves from every kind of start"),
    "search_steps": ([4, 8, 10, 12], "least products of the search"),
    "search_seeds": (100, "solves for every least number"),
    "microbatches": ([1, 2, 4, 8], "examples in one pass"),
    **shared(k=8, repeats=5),
}


def converged_after(pairs: cp.Eigenpairs) -> int:
    return pairs.num_matvecs - pairs.num_search_matvecs - CERTIFYING_PRODUCTS


def by_basis(risk: cp.EmpiricalRisk, dim: int, sizes: dict[str, int]) -> list[dict[str, Any]]:
    matrix, rows = cp.hessian(risk), []
    for name, size in sizes.items():
        pairs = cp.lanczos(lambda block: matrix @ block, risk.num_params, dim=dim, basis_size=size)
        rows.append(
            {
                "basis": name,
                "size": size,
                "products": converged_after(pairs),
                "search": pairs.num_search_matvecs,
                "largest_residual": float(pairs.residuals.max()),
            }
        )
        print(f"D = {dim}, {name}: {rows[-1]}", flush=True)
    return rows


def sizes_of(dim: int, unrestarted: int) -> dict[str, int]:
    return {"D + 10": dim + 10, "1.5 D + 10": int(1.5 * dim + 0.5) + 10, "unrestarted": unrestarted}


def signed_gradient(risk: cp.EmpiricalRisk, seed: int) -> Tensor:
    """A combination of the examples' gradients with random signs, as a start (N, 1)."""
    signs = torch.randint(0, 2, (len(risk),), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    model, total = risk.probed, torch.zeros(risk.num_params, dtype=risk.dtype)
    for microbatch in risk.microbatches():
        leaves = model.leaves()
        loss_sum, _ = model.batch_losses(leaves, microbatch)
        total += model.flatten(model.first_order((signs[microbatch.rows] * loss_sum).sum(), leaves))
    return (total / total.norm())[:, None]


def by_start(risk: cp.EmpiricalRisk, dim: int, seeds: int) -> dict[str, list[int]]:
    matrix = cp.hessian(risk)
    starts: dict[str, Callable[[int], Tensor | None]] = {
        "random vector": lambda _: None,
        "gradients with random signs": lambda seed: signed_gradient(risk, seed),
    }
    return {
        name: [
            converged_after(cp.lanczos(lambda b: matrix @ b, risk.num_params, dim=dim, seed=seed, start=start(seed)))
            for seed in range(seeds)
        ]
        for name, start in starts.items()
    }


def spectra() -> dict[str, tuple[int, Tensor]]:
    """Dimensions D and spectra of 20 000 eigenvalues with copies, some at the cut, and a few negative outliers."""

    def with_copies(values: list[float], copied: list[int]) -> Tensor:
        bulk = 0.3 * torch.rand(SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
        leading = torch.tensor([*values, *(values[i] for i in copied), -4.0, -3.0, -2.5, -2.0, -1.5]).double()
        return torch.cat([leading, bulk[len(leading) :]])

    triples = [10 / (1 + 0.35 * i) for i in range(12)]
    return {
        "triples": (10, with_copies(triples, 2 * list(range(12)))),
        "geometric": (10, with_copies([10 * 0.93**i for i in range(60)], [2, 7, 8, 9])),
        "crowded at the cut": (45, with_copies([10 * (i + 1) ** -0.36 for i in range(200)], [3, 20, 40, 43])),
    }


def by_search(steps: list[int], seeds: int) -> list[dict[str, Any]]:
    """Solves that missed an eigenvalue, and products of the search, by its least number."""
    rows, chosen = [], search.SEARCH_STEPS
    try:
        for name, (dim, spectrum) in spectra().items():
            for least in steps:
                search.SEARCH_STEPS = least
                rows.append({"spectrum": name, "dim": dim, "least": least, **missed(spectrum, dim, seeds)})
                print(rows[-1], flush=True)
    finally:
        search.SEARCH_STEPS = chosen
    return rows


def missed(spectrum: Tensor, dim: int, seeds: int) -> dict[str, Any]:
    """Over the seeds, how many solves lack an eigenvalue, and the mean numbers of products."""
    matmul = partial(torch.mul, spectrum[:, None])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cp.ConvergenceWarning)  # of a last pair that is seen not to be wanted
        pairs = [cp.lanczos(matmul, len(spectrum), dim=dim, dtype=torch.float64, seed=seed) for seed in range(seeds)]
    leading = spectrum.sort(descending=True).values[:dim]
    errors = [float((found.eigenvalues - leading).abs().max() / leading[0]) for found in pairs]
    return {
        "seeds": seeds,
        "missed": sum(error > 1.5e-3 for error in errors),
        "search": statistics.mean(found.num_search_matvecs for found in pairs),
        "products": statistics.mean(found.num_matvecs for found in pairs),
    }


def costs(risk: cp.EmpiricalRisk, repeats: int) -> dict[str, float]:
    """Seconds of a forward pass, and of a gradient and two kinds of product in units of it."""
    vector = torch.randn(risk.num_params, 1, generator=torch.Generator().manual_seed(0))
    kept, nowhere = cp.hessian(risk), torch.zeros(risk.num_params)  # at the solution itself the risk remembers
    actions: dict[str, Callable[[], object]] = {
        "forward": lambda: risk.losses(nowhere),
        "gradient": lambda: risk.gradient(nowhere),
        "first product": lambda: cp.hessian(risk) @ vector,
        "later product": lambda: kept @ vector,
    }
    for action in actions.values():
        action()
    seconds = {
        name: statistics.median(timed(CPU, action)[1] for _ in range(repeats)) for name, action in actions.items()
    }
    return {
        "forward_seconds": seconds["forward"],
        **{name: seconds[name] / seconds["forward"] for name in list(actions)[1:]},
    }


def by_microbatch(sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    task = nanochat(max(sizes))
    rows = []
    for size in sizes:
        risk = cp.EmpiricalRisk(task.model, task.loss, task.data, microbatch_size=size)
        rows.append({"microbatch_size": size, "examples": len(risk), **costs(risk, repeats)})
        print(f"microbatches of {size}: {rows[-1]}", flush=True)
    return rows


def measure(options: Namespace) -> dict[str, Any]:
    digits, chat = mlp().risk(), nanochat(options.k).risk()
    name = f"nanochat, k = {options.k}"
    solves = (("mlp", digits, 10, 200), ("mlp", digits, 45, 400), (name, chat, 10, 100), (name, chat, 45, 240))
    return {
        "bases": [
            {"model": model, "dim": dim, "rows": by_basis(risk, dim, sizes_of(dim, unrestarted))}
            for model, risk, dim, unrestarted in solves
        ],
        "starts": by_start(digits, 10, options.seeds),
        "searches": by_search(options.search_steps, options.search_seeds),
        "costs": by_microbatch(options.microbatches, options.repeats),
    }


BASES = "| {model} | {dim} | {basis} | {products} | {search} | {largest_residual:.0e} |"
SEARCHES = "| {spectrum} | {dim} | {least} | {missed} of {seeds} | {search:.1f} | {products:.1f} |"
COSTS = "| {microbatch_size} | {forward_seconds:.2g} | {gradient:.1f} | {first product:.1f} | {later product:.1f} |"


def table(result: dict[str, Any]) -> str:
    bases = ({**part, **row} for part in result["bases"] for row in part["rows"])
    starts = (f"| {name} | {', '.join(map(str, counts))} |" for name, counts in result["starts"].items())
    chat = f"nanochat, k = {result['costs'][0]['examples']}"
    return page(
        result,
        markdown(
            "| model | D | basis | products to converge | search | largest residual |", map(BASES.format_map, bases)
        ),
        markdown("| start (mlp, D = 10) | products to converge, by seed |", starts),
        markdown(
            "| copies to find | D | search, at least | solves that missed one | products of the search | of a solve |",
            map(SEARCHES.format_map, result["searches"]),
        ),
        markdown(
            f"| microbatch ({chat}) | forward, seconds | gradient | first product | later product |",
            map(COSTS.format_map, result["costs"]),
        ),
        note="Costs in forward passes",
    )


BENCHMARK = Benchmark("solver", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
