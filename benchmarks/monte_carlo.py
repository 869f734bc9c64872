"""Direct Monte Carlo, controlled Monte Carlo and the closed form on the built-in tasks: agreement and variance.

For every task and sigma, one set of draws of the true increment serves both Monte-Carlo estimators. The result says
how many standard errors direct Monte Carlo is away from the closed form, and how many times smaller the variance of
controlled Monte Carlo is. Run: python benchmarks/monte_carlo.py [--tasks digits] [--num-probes 64]
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmark import Benchmark, markdown, page, shared
from models import CACHE, TASKS
from torch import Tensor

import curvprobe as cp
from curvprobe.criteria.draws import standard_normal
from curvprobe.criteria.estimators import control, summarise
from curvprobe.probing.joining import Joining
from curvprobe.probing.monte_carlo import probe_increments
from curvprobe.probing.validity import subspace_validity

SIGMAS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
OPTIONS = {
    **shared(tasks=list(TASKS), dim=10, num_probes=64, seed=0),
    "cache": (CACHE, "folder for the trained weights"),
}


@dataclass(frozen=True)
class IndependentProbe:
    """Draws of SubspaceProbe that do not come in pairs, as the paper's."""

    subspace: cp.Subspace
    sigma: float

    def displacements(self, risk: cp.EmpiricalRisk, num_probes: int, seed: int) -> Iterator[Tensor]:  # noqa: ARG002
        """Yield ``num_probes`` displacements (N,) from the solution."""
        for z in self.sigma * standard_normal(num_probes, self.subspace.dim, seed):
            yield self.subspace.basis @ z.to(self.subspace.basis)


def measure(options: Namespace) -> dict[str, Any]:
    return {"tasks": {name: of_task(name, options) for name in options.tasks}}


def of_task(name: str, options: Namespace) -> dict[str, Any]:
    task = TASKS[name](cache=options.cache / f"{name}.safetensors")
    risk = task.risk()
    candidates = risk.on(task.candidates)
    subspace = cp.top_eigenspace(risk, dim=options.dim, seed=options.seed)
    mean, fresh = cp.mean_projection(risk, subspace), cp.project(candidates[:8], subspace)
    z = cp.SubspaceProbe(subspace, 1.0).coordinates(options.num_probes, options.seed)[:16]
    validity = subspace_validity(risk, SIGMAS, subspace, mean, z, new=candidates[:8], fresh=fresh)
    joining, model = Joining(risk, candidates[:1]), cp.increment(mean, fresh[0])
    rows = []
    for sigma, verdict, error in zip(SIGMAS, validity.verdicts, validity.error.tolist(), strict=True):
        found = estimates(joining, model, subspace, sigma, options)
        rows.append({"sigma": sigma, "verdict": verdict, "increment_error": error, **found})
        print(f"{name} sigma {sigma:g} {verdict}: variance ratio {found['variance_ratio']:.3g}", flush=True)
    return {
        "k": len(risk),
        "num_params": risk.num_params,
        "dim": options.dim,
        "num_probes": options.num_probes,
        "largest_residual": float(subspace.residuals.max()),
        "num_matvecs": subspace.num_matvecs,
        "rows": rows,
    }


def estimates(
    joining: Joining, model: cp.QuadraticIncrement, subspace: cp.Subspace, sigma: float, options: Namespace
) -> dict[str, float]:
    """The closed form and the three Monte-Carlo estimates at one sigma."""
    law, draws = cp.SubspaceProbe(subspace, sigma), {"num_probes": options.num_probes, "seed": options.seed}
    closed = cp.gaussian_moment(model, sigma=sigma)
    direct = cp.direct_monte_carlo(joining.risk, joining.new, IndependentProbe(subspace, sigma), **draws)
    true = probe_increments(joining, law, **draws)
    pairs = summarise(true, antithetic=True)
    controlled = control(closed, model, true, law.coordinates(**draws))
    return {
        "closed_form": closed.value,
        "direct": direct.value,
        "direct_stderr": direct.stderr,
        "pairs": pairs.value,
        "pairs_stderr": pairs.stderr,
        "controlled": controlled.value,
        "controlled_stderr": controlled.stderr,
        "direct_minus_closed_in_stderr": (direct.value - closed.value) / direct.stderr,
        "controlled_minus_closed_in_stderr": (controlled.value - closed.value) / controlled.stderr,
        "variance_ratio": (direct.stderr / controlled.stderr) ** 2,
        "variance_ratio_of_pairs": (pairs.stderr / controlled.stderr) ** 2,
    }


HEAD = (
    "| task | sigma | quadratic model | closed form | direct, independent draws | direct, pairs | controlled "
    "| variance ratio | of pairs |"
)
ROW = (
    "| {task} | {sigma:g} | {verdict}, {percent:.2g} % off | {closed_form:.5e} | {direct:.5e} ± {direct_stderr:.1e} "
    "| {pairs:.5e} ± {pairs_stderr:.1e} | {controlled:.5e} ± {controlled_stderr:.1e} | {variance_ratio:.1e} "
    "| {variance_ratio_of_pairs:.1e} |"
)


def table(result: dict[str, Any]) -> str:
    tasks = result["tasks"]
    rows = (
        {**row, "task": name, "percent": 100 * row["increment_error"]}
        for name, task in tasks.items()
        for row in task["rows"]
    )
    note = "; ".join(
        f"{name}: {task['num_params']} parameters, k = {task['k']}, D = {task['dim']}, {task['num_probes']} draws, "
        f"largest residual {task['largest_residual']:.0e}"
        for name, task in tasks.items()
    )
    return page(result, markdown(HEAD, map(ROW.format_map, rows)), note=note)


BENCHMARK = Benchmark("monte_carlo", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
