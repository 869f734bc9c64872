"""The three stages by the clock, ours beside the paper's procedure: the paper's table of timings."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from curvprobe.experiments.comparison import SIGMAS, compare
from curvprobe.experiments.cost import Cost, eigenspace_cost
from curvprobe.experiments.each_model import each_model
from curvprobe.experiments.experiment import Experiment
from curvprobe.experiments.machine import describe
from curvprobe.experiments.options import Options
from curvprobe.experiments.solutions import PAPER, SMALL, Language, Solution
from curvprobe.runtime.store import Store
from curvprobe.tasks import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def measure(settings: Settings, options: Options, store: Store) -> dict[str, Any]:
    """Seconds of every stage, medians over the models, and ratios of the same run."""
    rows = each_model(
        "timing",
        settings,
        options,
        store,
        dict,
        lambda solution, seed: _compare_at(solution, settings, seed),
        also=describe(),  # another machine has other seconds
    )
    cells = cells_of(rows)
    sides = ("ours", "paper")
    return {
        "dim": settings.dim,
        "k": settings.k,
        "num_probes": settings.num_probes,
        "num_params": rows[0]["num_params"],
        "paper_seconds": PAPER_SECONDS,
        "seconds": {
            stage: {side: median(cell[side] for cell in values) for side in sides} for stage, values in cells.items()
        },
        "ratios": {stage: median(cell["paper"] / cell["ours"] for cell in values) for stage, values in cells.items()},
        "direct_over_closed_form": {
            side: median(d[side] / c[side] for d, c in zip(cells["direct"], cells["closed form"], strict=True))
            for side in sides
        },
        "products": {side: median(row["stage1"][side]["products"] for row in rows) for side in sides},
        "largest_residual": {side: max(row["stage1"][side]["largest_residual"] for row in rows) for side in sides},
        "curvature_error": {
            side: max(row["stage2"][side]["curvature_error"] for row in rows) for side in (*sides, "paper_four_rows")
        },
        "rows": rows,
    }


def cells_of(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Seconds of both sides by stage, one for each model."""
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
    return cells


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


EXPERIMENT = Experiment("timing", ABOUT, PRESETS, cost, measure, findings, figures)
