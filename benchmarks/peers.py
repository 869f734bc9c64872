"""Top eigenpairs of the Hessian of the mean loss, to the same true residual: curvprobe and three other packages.

Every method gets the loosest of its settings with which all residuals, recomputed here for everyone by true products
of one float32 Hessian and with the Rayleigh quotients of its vectors, are at most 1e-3 of the first eigenvalue. The
search for that setting is not in the times; a user of a package that reports no true residual would have to do it too.
Where no setting is good enough, the last that finished within the limit is reported, measured once.

None of the three certifies the residuals that it ends with, so a second row adds to each the D products that tell them,
by their share of the products.

Every measurement is a process of its own, and the methods take turns. Seconds and peak memory are those of
constructing the operator and solving, with the checks that a package makes of its own accord; what a package
initialises on its first use is left out by solving a tiny problem before. Memory is resident memory above that of the
loaded model and data after one forward pass. Products are counted at the operator. Only curvprobe searches for missed
copies of eigenvalues after convergence; its seconds without that search are estimated by the share of its products.

Run: python benchmarks/peers.py [--models mlp] [--dim 10] [--repeats 3]; the peers are in requirements-bench.txt.
"""

import statistics
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from benchmark import Benchmark, markdown, mebibytes, page, shared
from isolated import UnfinishedError, peak_memory, run_isolated
from models import MODELS, nanochat
from plain import plain
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.experiments.machine import timed
from curvprobe.tasks import Task
from curvprobe.tasks.digits import LABEL_SMOOTHING

RESIDUAL = 1e-3
PACKAGES = {
    "curvlinops+eigsh": ("curvlinops-for-pytorch", "scipy"),
    "pyhessian": ("PyHessian",),
    "hessian-eigenthings": ("hessian-eigenthings",),
}
TASKS = {**MODELS, "nanochat": partial(nanochat, k=4)}
OPTIONS = {
    **shared(models=list(TASKS), dim=10, repeats=3),
    "peers": (tuple(PACKAGES), "what to compare with"),
    "limit": (120.0, "seconds that one solve may take"),
}


# ---- the methods: each imports its package itself, so that a process holds no other


@dataclass(frozen=True)
class Solution:
    """Vectors (N, D) as columns and what it took to get them; ``search`` is the products of the search for copies."""

    vectors: Tensor
    products: int
    search: int = 0


def curvprobe(task: Task, dim: int, tol: float) -> Solution:
    subspace = cp.top_eigenspace(task.risk(), dim=dim, tol=tol)
    return Solution(subspace.basis, subspace.num_matvecs, subspace.num_search_matvecs)


def scipy_curvlinops(task: Task, dim: int, tol: float) -> Solution:
    import numpy
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    class Counted(HessianLinearOperator):
        products = 0

        def _matmat(self, M: list[Tensor]) -> list[Tensor]:
            self.products += M[0].shape[-1]
            return super()._matmat(M)

    problem = plain(task)
    operator = Counted(
        problem.model, problem.criterion, list(problem.model.parameters()), [(problem.inputs, problem.targets)]
    )
    start = numpy.random.default_rng(0).standard_normal(operator.shape[0], dtype=numpy.float32)
    _, vectors = eigsh(operator.to_scipy(numpy.float32), k=dim, which="LA", tol=tol, v0=start)
    return Solution(torch.from_numpy(vectors), operator.products)


def pyhessian(task: Task, dim: int, tol: float, max_iter: int) -> Solution:
    module = import_module("pyhessian.hessian")  # the package's attribute of this name is the class
    product, products = module.hessian_vector_product, 0

    def counted(gradients: list[Tensor], params: list[Tensor], vector: list[Tensor]) -> tuple[Tensor, ...]:
        nonlocal products
        products += 1
        return product(gradients, params, vector)

    module.hessian_vector_product = counted
    problem = plain(task)
    torch.manual_seed(0)  # its start vectors come from the global generator
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
        computation = module.hessian(
            problem.model, problem.criterion, data=(problem.inputs, problem.targets), cuda=False
        )
    _, vectors = computation.eigenvalues(maxIter=max_iter, tol=tol, top_n=dim)
    module.hessian_vector_product = product
    flat = [torch.cat([part.reshape(-1) for part in vector]) for vector in vectors]
    return Solution(torch.stack(flat, dim=1), products)


def hessian_eigenthings(task: Task, dim: int, max_iter: int) -> Solution:
    from hessian_eigenthings import HessianOperator, lanczos

    class Counted(HessianOperator):
        products = 0

        def matvec(self, v: Tensor) -> Tensor:
            self.products += 1
            return super().matvec(v)

    problem = plain(task)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return problem.criterion(model(batch[0]), batch[1])

    operator = Counted(problem.model, [(problem.inputs, problem.targets)], loss)
    pairs = lanczos(operator, k=dim, max_iter=max_iter, which="LA", reorthogonalize=True, seed=0)
    return Solution(pairs.eigenvectors.T, operator.products)


@dataclass(frozen=True)
class Method:
    """A package's solver, and its settings from loose to tight for ``dim`` eigenpairs."""

    solve: Callable[..., Solution]
    settings: Callable[[int], list[dict[str, float]]]


METHODS = {
    "curvprobe": Method(curvprobe, lambda _: [{"tol": RESIDUAL}]),
    "curvlinops+eigsh": Method(
        scipy_curvlinops,
        lambda _: [{"tol": tol} for tol in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)],  # relative to each eigenvalue
    ),
    "pyhessian": Method(
        pyhessian,
        # The first is its default. Its tolerance is on the change of an eigenvalue, which float32 ends at about 1e-7.
        lambda _: [
            {"tol": 1e-3, "max_iter": 100},
            *({"tol": tol, "max_iter": 1000} for tol in (1e-4, 1e-5, 1e-6, 3e-7, 1e-7)),
        ],
    ),
    "hessian-eigenthings": Method(
        hessian_eigenthings,
        # It takes a number of steps, not a tolerance; 2 D is its default.
        lambda dim: [{"max_iter": steps} for steps in range(2 * dim, 12 * dim + 1, max(1, dim // 5))],
    ),
}


# ---- measuring


def measure(options: Namespace) -> dict[str, Any]:
    methods = ["curvprobe", *options.peers]
    return {
        "versions": {package: version(package) for peer in options.peers for package in PACKAGES[peer]},
        "dim": options.dim,
        "residual": RESIDUAL,
        "models": {
            model: compare(model, methods, options.dim, options.repeats, options.limit) for model in options.models
        },
    }


def tiny() -> Task:
    """A classifier of fifteen parameters in the form of the digits task."""
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    loss = partial(cp.losses.cross_entropy, label_smoothing=LABEL_SMOOTHING)
    return Task(nn.Linear(4, 3), loss, (inputs, torch.arange(8) % 3))


def solved(model: str, method: str, dim: int, setting: dict[str, float]) -> dict[str, Any]:
    """One solve, in the process that calls it."""
    solve = METHODS[method].solve
    solve(tiny(), 2, **{name: min(value, 10) for name, value in setting.items()})
    task = TASKS[model]()
    with torch.no_grad():
        plain(task).loss()
    with peak_memory() as peak:
        solution, seconds = timed(torch.device("cpu"), solve, task, dim, **setting)
    return {
        "seconds": seconds,
        "seconds_without_search": seconds * (1 - solution.search / solution.products),
        "products": solution.products,
        "search_products": solution.search,
        "peak_bytes": peak.added,
        **quality(task, solution.vectors.detach()),
    }


def quality(task: Task, vectors: Tensor) -> dict[str, Any]:
    """Rayleigh quotients, the largest residual by true products, and how far from orthonormal the vectors are."""
    matrix = cp.hessian(task.risk())
    eigenvalues, residuals = [], []
    for vector in vectors.T:
        unit = vector.double() / vector.double().norm()
        product = (matrix @ unit.to(vector.dtype)).double()
        eigenvalues.append(float(unit @ product))
        residuals.append(float((product - eigenvalues[-1] * unit).norm()))
    gram = vectors.T.double() @ vectors.double()
    return {
        "eigenvalues": sorted(eigenvalues, reverse=True),
        "largest_residual": max(residuals) / max(eigenvalues),
        "orthogonality_error": float((gram - torch.eye(len(gram))).abs().max()),
    }


def loosest(model: str, method: str, dim: int, limit: float) -> dict[str, Any]:
    """The first setting that reaches the residual, or the last that finished, with its result."""
    found: dict[str, Any] = {"reached": False}
    for setting in METHODS[method].settings(dim):
        try:
            result = run_isolated(solved, model, method, dim, setting, limit=limit)
        except UnfinishedError as reason:
            print(f"{model}: {method} {setting}: {reason}", flush=True)
            return {**found, "unfinished": {"setting": setting, "reason": str(reason)}}
        reached = result["largest_residual"] <= RESIDUAL
        found = {"reached": reached, "setting": setting, **result}
        print(f"{model}: {method} {setting}: {summary(result)}", flush=True)
        if reached:
            break
    return found


def summary(result: dict[str, Any]) -> str:
    return (
        f"residual {result['largest_residual']:.1e}, {result['products']} products, {result['seconds']:.3g} s, "
        f"{mebibytes(result['peak_bytes'])}"
    )


def compare(model: str, methods: list[str], dim: int, repeats: int, limit: float) -> dict[str, Any]:
    """Every method at its loosest setting; those that reach the residual again in turns, for medians."""
    rows = {method: loosest(model, method, dim, limit) for method in methods}
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method, row in rows.items() if row["reached"]}
    for method in repeats * list(runs):
        runs[method].append(run_isolated(solved, model, method, dim, rows[method]["setting"]))
        print(f"{model}: {method}: {summary(runs[method][-1])}", flush=True)
    for method, results in runs.items():
        for name in ("seconds", "seconds_without_search", "peak_bytes"):
            rows[method][name] = statistics.median(result[name] for result in results)
        rows[method]["all_seconds"] = [result["seconds"] for result in results]
    return {"repeats": repeats, "rows": {method: relative(row, rows["curvprobe"]) for method, row in rows.items()}}


def relative(row: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """A row with what it is relative to curvprobe's."""
    if "setting" not in row:
        return row
    differences = [abs(a - b) for a, b in zip(row["eigenvalues"], ours["eigenvalues"], strict=True)]
    return {
        **row,
        "eigenvalue_difference": max(differences) / ours["eigenvalues"][0],
        "seconds_over_ours": row["seconds"] / ours["seconds"],
        "seconds_over_ours_without_search": row["seconds"] / ours["seconds_without_search"],
        "peak_over_ours": row["peak_bytes"] / ours["peak_bytes"],
    }


# ---- the table

HEAD = "| model | method | setting | residual | products | seconds | over ours | peak memory | eigenvalues off by |"
EVEN = "| model | method | | products | seconds | over ours |"


def table(result: dict[str, Any]) -> str:
    """What each method takes as it comes; then what it would take to give, or to leave out, what others do."""
    rows = [
        (model, method, row)
        for model, comparison in result["models"].items()
        for method, row in comparison["rows"].items()
    ]
    raw = markdown(HEAD, (measured(*row) for row in rows))
    even = markdown(EVEN, (line for row in rows for line in on_even_terms(*row, result["dim"])))
    versions = (f"{package} {number}" for package, number in result["versions"].items())
    return page(result, raw, even, note=", ".join([f"D = {result['dim']}", *versions]))


def measured(model: str, method: str, row: dict[str, Any]) -> str:
    """A measurement."""
    if "setting" not in row:
        return f"| {model} | {method} | | not finished: {row['unfinished']['reason']} | | | | | |"
    setting = ", ".join(f"{name} {value:g}" for name, value in row["setting"].items())
    return (
        f"| {model} | {method} | {setting} | {row['largest_residual']:.1e}{'' if row['reached'] else ', not reached'} "
        f"| {row['products']} | {row['seconds']:.3g} | {row['seconds_over_ours']:.2g} "
        f"| {mebibytes(row['peak_bytes'])} | {row['eigenvalue_difference']:.0e} |"
    )


def on_even_terms(model: str, method: str, row: dict[str, Any], dim: int) -> Iterator[str]:
    """What a measurement would be without the search, or with certified residuals."""

    def line(how: str, products: int, seconds: float) -> str:
        over = seconds / row["seconds"] * row["seconds_over_ours"]
        return f"| {model} | {method} | {how} | {products} | {seconds:.3g} | {over:.2g} |"

    if row.get("search_products"):
        products = row["products"] - row["search_products"]
        yield line("without its search for missed copies", products, row["seconds_without_search"])
    if method != "curvprobe" and row["reached"]:
        products = row["products"] + dim
        yield line("with D products that certify its residuals", products, row["seconds"] * products / row["products"])


BENCHMARK = Benchmark("peers", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
