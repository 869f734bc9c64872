"""curvprobe against the paper's procedure, stage by stage, on a small language model: seconds, products and errors.

Stage I finds the top eigenspace, stage II the quadratic model of the increment, stage III its second moment. Both
sides use the same threads, in turns within one run; a time is the median over the repeats. Residuals and
orthogonality are recomputed for both in the same way, and the curvature B is held against float64 in the same basis.
Run: python benchmarks/paper.py [--dims 10 45] [--k 8]
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import paper_procedure as procedure
import torch
from clock import timed
from machine import describe, place, write
from models import nanochat
from torch import Tensor

import curvprobe as cp
from curvprobe.estimators import control, summarise
from curvprobe.linalg import inner, norm
from curvprobe.monte_carlo import probe_increments
from curvprobe.probes import standard_normal

RESULT = Path(__file__).parent / "results" / "paper.json"
SIGMAS = (1e-3, 1e-2)


@dataclass(frozen=True)
class Sides:
    """One task as each side sees it: the sample and its first candidate as risks, and as a mean loss on two batches."""

    risk: cp.EmpiricalRisk
    new: cp.EmpiricalRisk
    mean: procedure.MeanLoss
    before: procedure.Batch
    after: procedure.Batch

    @property
    def device(self) -> torch.device:
        """Of both."""
        return self.risk.device


def both_sides(task: cp.Task) -> Sides:
    risk = task.risk()
    candidate = procedure.take(task.candidates, slice(0, 1))
    before = procedure.move(task.data, risk.device)
    after = procedure.join(before, procedure.move(candidate, risk.device))
    return Sides(risk, risk.on(candidate), procedure.MeanLoss(task.model, task.loss), before, after)


def compare(
    task: cp.Task,
    dim: int,
    *,
    num_probes: int = 64,
    repeats: int = 3,
    repeats_stage1: int = 1,
    seed: int = 0,
) -> dict[str, object]:
    """All three stages on the sample of a task and its first candidate."""
    sides = both_sides(task)
    stage1, subspace, pairs = eigenspaces(task, sides, dim, repeats_stage1, seed)
    report(dim, "I", stage1)
    stage2, ours, theirs = increments(sides, subspace, pairs, repeats)
    report(dim, "II", stage2)
    stage3 = moments(sides, subspace, pairs, ours, theirs, num_probes, seed)
    for row in stage3:
        report(dim, f"III, sigma {row['sigma']:g}", row)
    return {
        "k": len(sides.risk),
        "num_params": sides.risk.num_params,
        "dim": dim,
        "num_probes": num_probes,
        "stage1": stage1,
        "stage2": stage2,
        "stage3": stage3,
    }


def report(dim: int, stage: str, result: dict[str, object]) -> None:
    ratios = ", ".join(f"{name} {value:.3g}" for name, value in result.items() if name.endswith("ratio"))
    print(f"D {dim}, stage {stage}: {ratios}", flush=True)


# ---- stage I


def eigenspaces(
    task: cp.Task, sides: Sides, dim: int, repeats: int, seed: int
) -> tuple[dict[str, object], cp.Subspace, procedure.Eigenpairs]:
    """Ours with all that a user pays for: making the risk, its checks, and the certificates."""
    times = []
    for _ in range(repeats):
        subspace, ours = timed(sides.device, lambda: cp.top_eigenspace(task.risk(), dim=dim, seed=seed))
        pairs, theirs = timed(sides.device, procedure.power_iteration, sides.mean, sides.before, dim, seed=seed)
        times.append((ours, theirs))
    ours, theirs = (median(column) for column in zip(*times, strict=True))
    assert subspace.eigenvalues is not None
    result = {
        "repeats": repeats,
        "ours": {
            "seconds": ours,
            "products": subspace.num_matvecs,
            "search_products": subspace.num_search_matvecs,
            **quality(sides.risk, subspace.basis, subspace.eigenvalues),
        },
        "paper": {
            "seconds": theirs,
            "products": pairs.num_matvecs,
            **quality(sides.risk, pairs.basis, pairs.eigenvalues),
        },
        "seconds_ratio": theirs / ours,
        "products_ratio": pairs.num_matvecs / subspace.num_matvecs,
    }
    return result, subspace, pairs


def quality(risk: cp.EmpiricalRisk, basis: Tensor, eigenvalues: Tensor) -> dict[str, object]:
    """Largest ``|H u - lambda u| / |lambda_1|`` by true products, and largest entry of ``U^T U - I``."""
    H = cp.hessian(risk)
    values = eigenvalues.tolist()
    residuals = [norm(H @ u - value * u) / abs(values[0]) for u, value in zip(basis.T, values, strict=True)]
    gram = inner(basis.T, basis).cpu()
    return {
        "largest_residual": max(residuals),
        "orthogonality_error": float((gram - torch.eye(len(gram), dtype=torch.float64)).abs().max()),
        "eigenvalues": values,
    }


# ---- stage II


def increments(
    sides: Sides, subspace: cp.Subspace, pairs: procedure.Eigenpairs, repeats: int
) -> tuple[dict[str, object], cp.QuadraticIncrement, procedure.Coefficients]:
    """The quadratic model of the increment, by the paper on all rows and on four rows a Hessian, and ours."""
    exact = exact_curvature(sides, pairs.basis)
    arguments = (sides.mean, pairs.basis, sides.before, sides.after)
    times, subset_errors = [], []
    for repeat in range(repeats):
        full, full_seconds = timed(sides.device, procedure.coefficients, *arguments)
        subset, subset_seconds = timed(sides.device, procedure.coefficients_on_subsets, *arguments, seed=repeat)
        again = sides.risk.on(sides.before)  # the losses of the sample are not yet known to it,
        again.key()  # but that it is the eigenspace's own risk is: stage I has found that out
        ours, our_seconds = timed(sides.device, our_increment, again, sides.after, subspace)
        times.append((our_seconds, full_seconds, subset_seconds))
        subset_errors.append(relative_error(subset.curvature, exact))
    our_seconds, full_seconds, subset_seconds = (median(column) for column in zip(*times, strict=True))
    k, dim = len(sides.risk), subspace.dim
    result = {
        "repeats": repeats,
        "ours": {
            "seconds": our_seconds,
            "example_products": dim,
            "curvature_error": relative_error(ours.curvature, exact_curvature(sides, subspace.basis)),
        },
        "paper": {
            "seconds": full_seconds,
            "example_products": dim * (2 * k + 1),
            "curvature_error": relative_error(full.curvature, exact),
        },
        "paper_four_rows": {
            "seconds": subset_seconds,
            "example_products": dim * (min(4, k) + min(4, k + 1)),
            "curvature_error": median(subset_errors),
        },
        "seconds_ratio": full_seconds / our_seconds,
        "four_rows_seconds_ratio": subset_seconds / our_seconds,
    }
    return result, ours, full


def our_increment(risk: cp.EmpiricalRisk, after: procedure.Batch, subspace: cp.Subspace) -> cp.QuadraticIncrement:
    new = risk.on(procedure.take(after, slice(len(risk), None)))
    return cp.increment(cp.mean_projection(risk, subspace), cp.project(new, subspace))


def exact_curvature(sides: Sides, basis: Tensor) -> Tensor:
    """B in float64, in the span of a basis that need not be orthonormal."""
    subspace = cp.Subspace(basis.double())
    sample = cp.mean_projection(sides.risk.in_double(), subspace)
    return cp.increment(sample, cp.project(sides.new.in_double(), subspace)).curvature


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double().cpu() - exact).norm() / exact.norm())


# ---- stage III


def moments(
    sides: Sides,
    subspace: cp.Subspace,
    pairs: procedure.Eigenpairs,
    ours: cp.QuadraticIncrement,
    theirs: procedure.Coefficients,
    num_probes: int,
    seed: int,
) -> list[dict[str, object]]:
    """The second moment at every sigma, and how many forward passes each side needs for the same standard error.

    The two sides draw in their own subspaces; ``same_subspace_forwards_ratio`` has direct Monte Carlo in ours.
    """
    k = len(sides.risk)
    rows = []
    for sigma in SIGMAS:
        law = cp.SubspaceProbe(subspace, sigma)
        z = law.coordinates(num_probes, seed)
        draws = sigma * standard_normal(num_probes, subspace.dim, seed).to(pairs.basis)  # the paper's are independent
        closed, closed_seconds = timed(sides.device, cp.gaussian_moment, ours, sigma=sigma)
        _, quadratic_seconds = timed(sides.device, cp.quadratic_monte_carlo, ours, sigma=sigma, num_probes=num_probes)
        true, our_seconds = timed(sides.device, probe_increments, sides.risk, sides.new, law, num_probes, seed)
        controlled = control(closed, ours, true, z)
        their_closed, their_closed_seconds = timed(sides.device, procedure.closed_form, theirs, sigma)
        _, their_quadratic_seconds = timed(sides.device, procedure.quadratic_increments, theirs, draws)
        direct, their_seconds = timed(
            sides.device, procedure.direct_increments, sides.mean, pairs.basis, sides.before, sides.after, draws
        )
        squares = direct.double().square()
        stderr = float(squares.std()) / math.sqrt(num_probes)
        forwards = (2 * k + 1) / (k + 1)
        rows.append(
            {
                "sigma": sigma,
                "ours": {
                    "closed_form": closed.value,
                    "controlled": controlled.value,
                    "stderr": controlled.stderr,
                    "forwards_per_draw": k + 1,
                    "monte_carlo_seconds": our_seconds,
                    "quadratic_seconds": quadratic_seconds,
                    "closed_form_seconds": closed_seconds,
                },
                "paper": {
                    "closed_form": their_closed,
                    "direct": float(squares.mean()),
                    "stderr": stderr,
                    "forwards_per_draw": 2 * k + 1,
                    "monte_carlo_seconds": their_seconds,
                    "quadratic_seconds": their_quadratic_seconds,
                    "closed_form_seconds": their_closed_seconds,
                },
                "seconds_ratio": their_seconds / our_seconds,
                "forwards_ratio": (stderr / controlled.stderr) ** 2 * forwards,
                # The spread of single draws in our subspace, as if they were independent and not pairs.
                "same_subspace_forwards_ratio": (summarise(true).stderr / controlled.stderr) ** 2 * forwards,
            }
        )
    return rows


STAGES = ["| D | stage | paper's procedure | curvprobe | ratio |", "|---|---|---|---|---|"]


def stage_rows(row: dict[str, Any]) -> list[str]:
    """Table rows of one comparison."""
    dim, one, two = row["dim"], row["stage1"], row["stage2"]
    ours, theirs = one["ours"], one["paper"]
    full, four, joined = two["paper"], two["paper_four_rows"], two["ours"]
    lines = [
        f"| {dim} | I, eigenspace: seconds | {theirs['seconds']:.3g} | {ours['seconds']:.3g} "
        f"| {one['seconds_ratio']:.1f} |",
        f"| {dim} | I: products (ours: {ours['search_products']} of them to look for missed copies) "
        f"| {theirs['products']} | {ours['products']} | {one['products_ratio']:.1f} |",
        f"| {dim} | I: largest residual | {theirs['largest_residual']:.0e} | {ours['largest_residual']:.0e} | |",
        f"| {dim} | I: error of orthogonality | {theirs['orthogonality_error']:.0e} "
        f"| {ours['orthogonality_error']:.0e} | |",
        f"| {dim} | II, increment: seconds | {full['seconds']:.3g} | {joined['seconds']:.3g} "
        f"| {two['seconds_ratio']:.1f} |",
        f"| {dim} | II: seconds, the paper's Hessians on four rows | {four['seconds']:.3g} | {joined['seconds']:.3g} "
        f"| {two['four_rows_seconds_ratio']:.1f} |",
        f"| {dim} | II: error of B | {full['curvature_error']:.1e}; four rows {100 * four['curvature_error']:.0f} % "
        f"| {joined['curvature_error']:.1e} | |",
    ]
    for moment in row["stage3"]:
        direct, controlled, k, sigma = moment["paper"], moment["ours"], row["k"], moment["sigma"]
        lines += [
            f"| {dim} | III, {row['num_probes']} draws at sigma {sigma:g}: relative standard error "
            f"| {direct['stderr'] / direct['direct']:.1e} | {controlled['stderr'] / controlled['controlled']:.1e} | |",
            f"| {dim} | III: forward passes for an equal standard error, sigma {sigma:g} (in the same subspace) "
            f"| {2 * k + 1} a draw | {k + 1} a draw | {moment['forwards_ratio']:.1e} "
            f"({moment['same_subspace_forwards_ratio']:.1e}) |",
            f"| {dim} | III: seconds of Monte Carlo; of the closed form, sigma {sigma:g} "
            f"| {direct['monte_carlo_seconds']:.3g}; {direct['closed_form_seconds']:.1e} "
            f"| {controlled['monte_carlo_seconds']:.3g}; {controlled['closed_form_seconds']:.1e} "
            f"| {moment['seconds_ratio']:.1f} |",
        ]
    return lines


def table(result: dict[str, Any]) -> str:
    rows = result["rows"]
    foot = f"({rows[0]['num_params']} parameters, k = {rows[0]['k']}. {place(result['machine'])}.)"
    return "\n".join([*STAGES, *(line for row in rows for line in stage_rows(row)), "", foot])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[10, 45])
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--num-probes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--repeats-stage1", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(argv)
    task = nanochat(options.k)
    result = {
        "machine": describe(),
        "task": task.description,
        "rows": [
            compare(
                task,
                dim,
                num_probes=options.num_probes,
                repeats=options.repeats,
                repeats_stage1=options.repeats_stage1,
                seed=options.seed,
            )
            for dim in options.dims
        ],
    }
    write(options.out, result)


if __name__ == "__main__":
    main()
