"""Direct Monte Carlo, controlled Monte Carlo and the closed form on the built-in tasks: agreement and variance.

For every task and sigma, one set of draws of the true increment serves both Monte-Carlo estimators. The result says
how many standard errors direct Monte Carlo is away from the closed form, and how many times smaller the variance of
controlled Monte Carlo is. Run: python benchmarks/monte_carlo.py [--tasks digits] [--num-probes 64]
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import place, write
from torch import Tensor

import curvprobe as cp
from curvprobe.criteria.draws import standard_normal
from curvprobe.criteria.estimators import control, summarise
from curvprobe.experiments.machine import describe
from curvprobe.probing.monte_carlo import probe_increments
from curvprobe.probing.validity import subspace_validity
from curvprobe.tasks.digits import digits
from curvprobe.tasks.text import text

RESULT = Path(__file__).parent / "results" / "monte_carlo.json"
SIGMAS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TASKS = {"digits": digits, "text": text}


@dataclass(frozen=True)
class IndependentProbe:
    """Draws of SubspaceProbe that do not come in pairs, as the paper's."""

    subspace: cp.Subspace
    sigma: float

    def displacements(self, risk: cp.EmpiricalRisk, num_probes: int, seed: int) -> Iterator[Tensor]:  # noqa: ARG002
        """Yield ``num_probes`` displacements (N,) from the solution."""
        for z in self.sigma * standard_normal(num_probes, self.subspace.dim, seed):
            yield self.subspace.basis @ z.to(self.subspace.basis)


def measure(name: str, dim: int, num_probes: int, seed: int, cache: Path | None) -> dict[str, object]:
    task = TASKS[name](cache=cache)
    risk = task.risk()
    candidates = risk.on(task.candidates)
    new = candidates[:1]
    subspace = cp.top_eigenspace(risk, dim=dim, seed=seed)
    mean, fresh = cp.mean_projection(risk, subspace), cp.project(candidates[:8], subspace)
    validity = subspace_validity(
        risk,
        SIGMAS,
        subspace,
        mean,
        cp.SubspaceProbe(subspace, 1.0).coordinates(num_probes, seed)[:16],
        new=candidates[:8],
        fresh=fresh,
    )
    model = cp.increment(mean, fresh[0])
    rows = []
    for sigma, verdict, error in zip(SIGMAS, validity.verdicts, validity.error.tolist(), strict=True):
        law = cp.SubspaceProbe(subspace, sigma)
        closed = cp.gaussian_moment(model, sigma=sigma)
        true = probe_increments(risk, new, law, num_probes, seed)
        direct = cp.direct_monte_carlo(risk, new, IndependentProbe(subspace, sigma), num_probes=num_probes, seed=seed)
        pairs = summarise(true, antithetic=True)
        controlled = control(closed, model, true, law.coordinates(num_probes, seed))
        rows.append(
            {
                "sigma": sigma,
                "verdict": verdict,
                "increment_error": error,
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
        )
        print(f"{name} sigma {sigma:g} {verdict}: variance ratio {rows[-1]['variance_ratio']:.3g}", flush=True)
    assert subspace.residuals is not None
    return {
        "k": len(risk),
        "num_params": risk.num_params,
        "dim": dim,
        "num_probes": num_probes,
        "largest_residual": float(subspace.residuals.max()),
        "num_matvecs": subspace.num_matvecs,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        "| task | sigma | quadratic model | closed form | direct, independent draws | direct, pairs | controlled "
        "| variance ratio | of pairs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['sigma']:g} | {row['verdict']}, {100 * row['increment_error']:.2g} % off "
        f"| {row['closed_form']:.5e} | {row['direct']:.5e} ± {row['direct_stderr']:.1e} "
        f"| {row['pairs']:.5e} ± {row['pairs_stderr']:.1e} "
        f"| {row['controlled']:.5e} ± {row['controlled_stderr']:.1e} | {row['variance_ratio']:.1e} "
        f"| {row['variance_ratio_of_pairs']:.1e} |"
        for name, task in result["tasks"].items()
        for row in task["rows"]
    ]
    tasks = "; ".join(
        f"{name}: {task['num_params']} parameters, k = {task['k']}, D = {task['dim']}, {task['num_probes']} draws, "
        f"largest residual {task['largest_residual']:.0e}"
        for name, task in result["tasks"].items()
    )
    return "\n".join([*lines, "", f"({tasks}. {place(result['machine'])}.)"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--dim", type=int, default=10)
    parser.add_argument("--num-probes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder for the trained weights")
    options = parser.parse_args()
    result = {
        "machine": describe(),
        "tasks": {
            name: measure(name, options.dim, options.num_probes, options.seed, options.cache / f"{name}.safetensors")
            for name in options.tasks
        },
    }
    assert all(math.isfinite(row["direct"]) for task in result["tasks"].values() for row in task["rows"])
    write(options.out, result)


if __name__ == "__main__":
    main()
