"""The three stages by the clock, ours beside the paper's procedure: the paper's table of timings.

Stage I finds the top eigenspace, stage II the quadratic model of the increment, stage III its second moment. Both
sides run on the same model, data and machine, in turns. Residuals and orthogonality are recomputed for both in the same
way, and the curvature B is held against float64 in the same basis.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvprobe.curvature import hessian
from curvprobe.estimators import control, gaussian_moment, quadratic_monte_carlo, summarise
from curvprobe.experiments import paper_procedure as procedure
from curvprobe.experiments.cost import Cost, eigenspace_cost
from curvprobe.experiments.machine import describe, timed
from curvprobe.experiments.models import each_model
from curvprobe.experiments.options import Options
from curvprobe.experiments.solutions import PAPER, SMALL, Language, Solution
from curvprobe.increment import QuadraticIncrement, increment
from curvprobe.linalg import inner, norm
from curvprobe.monte_carlo import probe_increments
from curvprobe.probes import SubspaceProbe, standard_normal
from curvprobe.projection import mean_projection, project
from curvprobe.risk import EmpiricalRisk
from curvprobe.store import Store, to_json
from curvprobe.subspace import Subspace, top_eigenspace
from curvprobe.tasks import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGMAS = (1e-3, 1e-2)


ABOUT = """Seconds, products and errors of the three stages, ours beside the paper's procedure in one run.

The paper (Table, one GPU, D = 45, k = 8, S = 64): stage I 17.53 s, stage II 1.777 s, stage III 2.197 s for direct Monte
Carlo, 3.68e-3 s for quadratic Monte Carlo, 1.22e-4 s for the closed form."""

PAPER_SECONDS = {
    "I": 17.53,
    "II": 1.777,
    "II, four rows": 1.777,
    "direct": 2.197,
    "quadratic": 3.68e-3,
    "closed form": 1.22e-4,
}
"""Of the paper's table."""


@dataclass(frozen=True)
class Settings:
    """Of the timing experiment.

    Attributes:
        language: the model. ``trained``: sequences it has streamed through.
        dim, k, num_probes: of the criterion.
        seeds: models.
    """

    language: Language
    trained: int
    dim: int = 45
    k: int = 8
    num_probes: int = 64
    seeds: int = 5


PRESETS = {"cpu": Settings(SMALL, trained=1024, dim=24, seeds=4), "paper": Settings(PAPER, trained=10_000)}


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` returns, as JSON."""

    record: str


def measure(settings: Settings, options: Options, store: Store) -> dict[str, Any]:
    """Seconds of every stage, medians over the models, and ratios of the same run."""
    found = each_model(
        "timing",
        settings,
        options,
        store,
        Comparison,
        lambda solution, seed: Comparison(to_json(_compare_at(solution, settings, seed)).decode()),
        also=describe(),  # another machine has other seconds
    )
    rows = [json.loads(comparison.record) for comparison in found]
    cells: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        small = row["stage3"][0]
        for stage, ours, paper in (
            ("I", row["stage1"]["ours"]["seconds"], row["stage1"]["paper"]["seconds"]),
            ("II", row["stage2"]["ours"]["seconds"], row["stage2"]["paper"]["seconds"]),
            ("II, four rows", row["stage2"]["ours"]["seconds"], row["stage2"]["paper_four_rows"]["seconds"]),
            ("direct", small["ours"]["monte_carlo_seconds"], small["paper"]["monte_carlo_seconds"]),
            ("quadratic", small["ours"]["quadratic_seconds"], small["paper"]["quadratic_seconds"]),
            ("closed form", small["ours"]["closed_form_seconds"], small["paper"]["closed_form_seconds"]),
        ):
            cells.setdefault(stage, []).append({"ours": ours, "paper": paper})
    return {
        "dim": settings.dim,
        "k": settings.k,
        "num_probes": settings.num_probes,
        "num_params": rows[0]["num_params"],
        "paper_seconds": PAPER_SECONDS,
        "seconds": {
            stage: {side: median(cell[side] for cell in values) for side in ("ours", "paper")}
            for stage, values in cells.items()
        },
        "ratios": {stage: median(cell["paper"] / cell["ours"] for cell in values) for stage, values in cells.items()},
        "direct_over_closed_form": {
            side: median(d[side] / c[side] for d, c in zip(cells["direct"], cells["closed form"], strict=True))
            for side in ("ours", "paper")
        },
        "products": {side: median(row["stage1"][side]["products"] for row in rows) for side in ("ours", "paper")},
        "largest_residual": {
            side: max(row["stage1"][side]["largest_residual"] for row in rows) for side in ("ours", "paper")
        },
        "curvature_error": {
            side: max(row["stage2"][side]["curvature_error"] for row in rows)
            for side in ("ours", "paper", "paper_four_rows")
        },
        "rows": rows,
    }


def _compare_at(solution: Solution, settings: Settings, seed: int) -> dict[str, object]:
    task = Task(solution.module, solution.loss, solution.data, solution.new_data)
    return compare(task, settings.dim, num_probes=settings.num_probes, seed=seed)


def findings(result: dict[str, Any]) -> list[str]:
    """The table."""
    lines = [
        f"{result['num_params']} parameters, D = {result['dim']}, k = {result['k']}, S = {result['num_probes']}; "
        "seconds, medians over the models"
    ]
    names = {"I": "I, eigenspace of the Hessian on all k", "II": "II, increment, Hessians on all rows"}
    names |= {"II, four rows": "II, the paper's Hessians on four rows, not ours", "direct": "III, direct Monte Carlo"}
    names |= {"quadratic": "III, quadratic Monte Carlo", "closed form": "III, closed form"}
    for stage, cell in result["seconds"].items():
        lines.append(
            f"{names[stage]}: {cell['paper']:.3g} by the paper's procedure, {cell['ours']:.3g} by ours, ratio "
            f"{result['ratios'][stage]:.2g} (the paper's table, its own machine: {result['paper_seconds'][stage]:.3g})"
        )
    over, products, residual = result["direct_over_closed_form"], result["products"], result["largest_residual"]
    lines += [
        f"direct Monte Carlo takes {over['paper']:.0f} times as long as the closed form by the paper's procedure, "
        f"{over['ours']:.0f} times by ours",
        f"Hessian products: {products['paper']:.0f} and {products['ours']:.0f}; largest residual "
        f"{residual['paper']:.0e} and {residual['ours']:.0e}",
        f"error of B: {result['curvature_error']['paper']:.0e} on all rows, "
        f"{result['curvature_error']['paper_four_rows']:.0e} on four, ours {result['curvature_error']['ours']:.0e}",
    ]
    return lines


def figures(result: dict[str, Any]) -> dict[str, Figure]:
    """Seconds of every stage as bars."""
    from curvprobe.plots import panels

    figure, axes = panels(1, 1, size=(6.4, 3.6))
    for i, (side, label) in enumerate((("paper", "the paper's procedure"), ("ours", "curvprobe"))):
        at = [j + 0.4 * i for j in range(len(result["seconds"]))]
        axes[0, 0].bar(at, [cell[side] for cell in result["seconds"].values()], width=0.38, color=f"C{i}", label=label)
    axes[0, 0].set_xticks([j + 0.2 for j in range(len(result["seconds"]))], list(result["seconds"]))
    axes[0, 0].set_yscale("log")
    axes[0, 0].set(ylabel="seconds", title=f"D = {result['dim']}, k = {result['k']}, S = {result['num_probes']}")
    axes[0, 0].legend(frameon=False)
    return {"timing": figure}


def cost(settings: Settings, options: Options) -> Cost:  # noqa: ARG001 - as of every experiment
    """Of all models, both sides."""
    k, dim, draws = settings.k, settings.dim, settings.num_probes * len(SIGMAS)
    theirs = Cost(0, draws * (2 * k + 1), 20 * dim * k + 3 * dim * (2 * k + 9), 0)
    # The quality of both sides' eigenspaces is recomputed, and B in float64, at twice the price.
    checks = Cost(0, 0, 2 * dim * k + 2 * 2 * dim * (k + 1), 0)
    ours = eigenspace_cost(k, dim) + Cost(settings.trained, draws * (k + 1), 3 * dim, 2 * dim)
    return (ours + theirs + checks) * settings.seeds


@dataclass(frozen=True)
class Sides:
    """One task as each side sees it: the sample and its first candidate as risks, and as a mean loss on two batches."""

    risk: EmpiricalRisk
    new: EmpiricalRisk
    mean: procedure.MeanLoss
    before: procedure.Batch
    after: procedure.Batch

    @property
    def device(self) -> torch.device:
        """Of both."""
        return self.risk.device


def both_sides(task: Task) -> Sides:
    """The task's sample and first candidate, for both."""
    risk = task.risk()
    candidate = procedure.take(task.candidates, slice(0, 1))
    before = procedure.move(task.data, risk.device)
    after = procedure.join(before, procedure.move(candidate, risk.device))
    return Sides(risk, risk.on(candidate), procedure.MeanLoss(task.model, task.loss), before, after)


def compare(
    task: Task,
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
    stage2, ours, theirs = increments(sides, subspace, pairs, repeats)
    stage3 = moments(sides, subspace, pairs, ours, theirs, num_probes, seed)
    return {
        "k": len(sides.risk),
        "num_params": sides.risk.num_params,
        "dim": dim,
        "num_probes": num_probes,
        "stage1": stage1,
        "stage2": stage2,
        "stage3": stage3,
    }


# ---- stage I


def eigenspaces(
    task: Task, sides: Sides, dim: int, repeats: int, seed: int
) -> tuple[dict[str, object], Subspace, procedure.Eigenpairs]:
    """Ours with all that a user pays for: making the risk, its checks, and the certificates."""
    times = []
    for _ in range(repeats):
        subspace, ours = timed(sides.device, lambda: top_eigenspace(task.risk(), dim=dim, seed=seed))
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


def quality(risk: EmpiricalRisk, basis: Tensor, eigenvalues: Tensor) -> dict[str, object]:
    """Largest ``|H u - lambda u| / |lambda_1|`` by true products, and largest entry of ``U^T U - I``."""
    H = hessian(risk)
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
    sides: Sides, subspace: Subspace, pairs: procedure.Eigenpairs, repeats: int
) -> tuple[dict[str, object], QuadraticIncrement, procedure.Coefficients]:
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


def our_increment(risk: EmpiricalRisk, after: procedure.Batch, subspace: Subspace) -> QuadraticIncrement:
    """What curvprobe does for it: D products with the new example alone."""
    new = risk.on(procedure.take(after, slice(len(risk), None)))
    return increment(mean_projection(risk, subspace), project(new, subspace))


def exact_curvature(sides: Sides, basis: Tensor) -> Tensor:
    """B in float64, in the span of a basis that need not be orthonormal."""
    subspace = Subspace(basis.double())
    sample = mean_projection(sides.risk.in_double(), subspace)
    return increment(sample, project(sides.new.in_double(), subspace)).curvature


def relative_error(found: Tensor, exact: Tensor) -> float:
    """In the Frobenius norm."""
    return float((found.double().cpu() - exact).norm() / exact.norm())


# ---- stage III


def moments(
    sides: Sides,
    subspace: Subspace,
    pairs: procedure.Eigenpairs,
    ours: QuadraticIncrement,
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
        law = SubspaceProbe(subspace, sigma)
        z = law.coordinates(num_probes, seed)
        draws = sigma * standard_normal(num_probes, subspace.dim, seed).to(pairs.basis)  # the paper's are independent
        closed, closed_seconds = timed(sides.device, gaussian_moment, ours, sigma=sigma)
        _, quadratic_seconds = timed(sides.device, quadratic_monte_carlo, ours, sigma=sigma, num_probes=num_probes)
        true, our_seconds = timed(sides.device, probe_increments, sides.risk, sides.new, law, num_probes, seed)
        controlled = control(closed, ours, true, z)
        their_closed, their_closed_seconds = timed(sides.device, procedure.closed_form, theirs, sigma)
        _, their_quadratic_seconds = timed(sides.device, procedure.quadratic_increments, theirs, draws)
        steps = (pairs.basis @ z for z in draws)
        direct, their_seconds = timed(
            sides.device, procedure.direct_increments, sides.mean, sides.before, sides.after, steps
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
