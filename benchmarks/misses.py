"""How often a certified eigenspace lacks an eigenvalue, on spectra that are made to be hard: copies at a crowded cut.

Diagonal matrices of 3000 eigenvalues, and those of a trained network; a solve has missed where a value of its result is
off by more than 2e-4 of the first. "Gap" is from the last wanted eigenvalue, of three copies, to the next one, as a
part of the last. A miss carries its doubt where the last pair's flag is off, or where the result says that the cut is
not decided: what it found next is within a residual of the last. Run: python benchmarks/misses.py
"""

import statistics
import warnings
from argparse import Namespace
from functools import cache, partial
from typing import Any

import torch
from benchmark import Benchmark, markdown, page
from torch import Tensor

import curvprobe as cp
from curvprobe.tasks.digits import digits

SIZE = 3000
MISSED = 2e-4
"""Error of an eigenvalue, relative to the first: converged ones are off by the square of their residuals."""

OPTIONS = {
    "seeds": (200, "solves of every spectrum"),
    "gaps": ([0.007, 0.017, 0.03], "of the triple eigenvalues at the cut, as a part of the last wanted one"),
}


def triple_at_the_cut(gap: float) -> Tensor:
    """Ten wanted eigenvalues, the last three of them one, and the next one close below."""
    leading = [10 * 0.93**i for i in range(8)] + 2 * [10 * 0.93**7]
    below = [leading[-1] * (1 - gap) * 0.997**i for i in range(600)]
    return filled(leading + below)


def power_law(exponent: float, copies: int = 0) -> Tensor:
    """Eigenvalues 10 i^-exponent, so many of the first hundred of them twice."""
    values = [10 * i**-exponent for i in range(1, 301)]
    return filled(values + [values[5 * i + 2] for i in range(copies)])


def filled(leading: list[float]) -> Tensor:
    """These eigenvalues with a bulk of small ones."""
    bulk = 0.3 * torch.rand(SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
    return torch.cat([torch.tensor(leading).double(), bulk[len(leading) :].clamp_max(min(leading))])


def spectra(gaps: list[float]) -> dict[str, tuple[int, Tensor]]:
    """Dimensions D and spectra by name."""
    triples = {f"triple at the cut, gap {100 * gap:.1f} %": (10, triple_at_the_cut(gap)) for gap in gaps}
    return triples | {
        "power law, no copies": (45, power_law(0.7)),
        "power law, 20 copies": (100, power_law(0.7, 20)),
        **{f"digits Hessian, D = {dim}": (dim, digits_hessian()) for dim in (30, 50, 80)},
    }


@cache
def digits_hessian() -> Tensor:
    """All eigenvalues of the Hessian of a small classifier of digits, 1210 parameters."""
    task = digits(300, hidden=(16,))
    risk = task.risk()
    whole = cp.Subspace.from_basis(torch.eye(risk.num_params, dtype=risk.dtype))
    return torch.linalg.eigvalsh(cp.mean_projection(risk, whole).hessian[0])


def on(spectrum: Tensor, dim: int, seeds: int) -> dict[str, Any]:
    """Over the seeds: misses, certified and not, solves that are certified, and the mean number of products."""
    matmul = partial(torch.mul, spectrum[:, None])
    leading, rows = spectrum.sort(descending=True).values[:dim], []
    for seed in range(seeds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cp.ConvergenceWarning)
            found = cp.lanczos(matmul, len(spectrum), dim=dim, dtype=torch.float64, seed=seed)
        off = float((found.eigenvalues - leading).abs().max() / leading[0])
        doubtful = not (bool(found.converged.all()) and found.cut_decided)
        rows.append((off > MISSED, bool(found.converged.all()), doubtful, found.num_matvecs))
    return {
        "dim": dim,
        "seeds": seeds,
        "certified": sum(certified for _, certified, *_ in rows),
        "certified_misses": sum(missed and certified for missed, certified, *_ in rows),
        "misses_without_a_doubt": sum(missed and not doubtful for missed, _, doubtful, _ in rows),
        "without_a_doubt": sum(not doubtful for _, _, doubtful, _ in rows),
        "misses": sum(missed for missed, *_ in rows),
        "products": statistics.mean(products for *_, products in rows),
    }


def measure(options: Namespace) -> dict[str, Any]:
    rows = []
    for name, (dim, spectrum) in spectra(options.gaps).items():
        rows.append({"spectrum": name, **on(spectrum, dim, options.seeds)})
        print(rows[-1], flush=True)
    return {"rows": rows}


ROW = (
    "| {spectrum} | {dim} | {misses_without_a_doubt} of {seeds} | {certified_misses} | {misses} | {without_a_doubt} | "
    "{certified} | {products:.1f} |"
)


def table(result: dict[str, Any]) -> str:
    head = (
        "| spectrum | D | missed without a doubt | missed and certified | missed | without a doubt | certified | "
        "products |"
    )
    return page(result, markdown(head, map(ROW.format_map, result["rows"])))


BENCHMARK = Benchmark("misses", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
