"""Monte Carlo against the closed form as the number of draws grows: the paper's figure 5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvprobe.criteria.estimators import control, gaussian_moment, summarise
from curvprobe.criteria.increment import QuadraticIncrement, increment
from curvprobe.experiments import paper_procedure as procedure
from curvprobe.experiments.cost import Cost, eigenspace_cost
from curvprobe.experiments.each_model import each_model
from curvprobe.experiments.experiment import Experiment
from curvprobe.experiments.options import Options
from curvprobe.experiments.released import released
from curvprobe.experiments.solutions import PAPER, SMALL, Language, Solution
from curvprobe.probing.joining import Joining
from curvprobe.probing.laws import SubspaceProbe
from curvprobe.probing.monte_carlo import probe_increments
from curvprobe.runtime.store import Store
from curvprobe.subspace.eigenspace import top_eigenspace
from curvprobe.subspace.projection import mean_projection, project

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = """Direct, quadratic and controlled Monte Carlo against the closed form as the draws grow.

The paper (Fig. 5, k = 8, D = 10, sigma = 1e-3) sees direct Monte Carlo stay 0.6 % above the closed form. With both from
the same rows the offset must vanish within error bars; --literal shows it beside."""

ESTIMATORS = (
    "direct, independent draws",
    "direct, mirrored pairs",
    "quadratic, mirrored pairs",
    "controlled, independent draws",
    "controlled, mirrored pairs",
)


@dataclass(frozen=True)
class Settings:
    """Of the convergence experiment.

    Attributes:
        language: the model. ``trained``: sequences it has streamed through.
        k, dim, sigma: of the criterion.
        draws: numbers of draws, even.
        seeds: models, each with draws of its own.
    """

    language: Language
    trained: int
    k: int = 8
    dim: int = 10
    sigma: float = 1e-3
    draws: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    seeds: int = 8


PRESETS = {"cpu": Settings(SMALL, trained=1024), "paper": Settings(PAPER, trained=10_000)}


@dataclass(frozen=True, eq=False)
class Estimates:
    """Of one model, float64; squared loss units.

    Attributes:
        closed: the closed form (). ``shape``: its shape.
        rounding: error of all values by rounding of the losses (), see :func:`rounding_error`.
        value, stderr: of every estimator and number of draws (5, S).
        literal_closed: the paper's procedure's closed form (); NaN where it was not asked for.
        literal_same_rows: its closed form with nothing changed but that both Hessians are on all rows ().
        literal_value, literal_stderr: its direct Monte Carlo (S,).
    """

    closed: Tensor
    shape: Tensor
    rounding: Tensor
    value: Tensor
    stderr: Tensor
    literal_closed: Tensor
    literal_same_rows: Tensor
    literal_value: Tensor
    literal_stderr: Tensor


def measure(settings: Settings, options: Options, store: Store) -> dict[str, Any]:
    """Estimates relative to the closed form, by estimator and number of draws."""
    found = each_model(
        "convergence",
        settings,
        options,
        store,
        Estimates,
        lambda solution, seed: estimates(solution, settings, seed, literal=options.literal),
    )
    deviation = torch.stack([e.value / e.closed - 1 for e in found])
    error = torch.stack([torch.hypot(e.stderr, e.rounding) / e.closed for e in found])
    result: dict[str, Any] = {
        "estimators": ESTIMATORS,
        "draws": settings.draws,
        "k": settings.k,
        "dim": settings.dim,
        "sigma": settings.sigma,
        "rounding": torch.stack([e.rounding / e.closed for e in found]),
        "shape_share": float(torch.stack([e.shape / e.closed for e in found]).mean()),
        **_pooled(deviation, error),
    }
    if options.literal:
        deviation = torch.stack([e.literal_value / e.literal_closed - 1 for e in found])
        error = torch.stack([e.literal_stderr / e.literal_closed for e in found])
        result["literal"] = {
            **_pooled(deviation, error),
            "same_rows_distance": torch.stack(
                [(e.literal_value - e.literal_same_rows) / e.literal_stderr for e in found]
            ),
            "same_rows_deviation": torch.stack([e.literal_value / e.literal_same_rows - 1 for e in found]),
            "closed_over_ours": torch.stack([e.literal_closed / e.closed for e in found]),
        }
    return result


def _pooled(deviation: Tensor, error: Tensor) -> dict[str, Any]:
    """Of (models, ...): the mean over models with its error, and the distances of all in errors of their own."""
    return {
        "deviation": deviation,
        "stderr": error,
        "mean_deviation": deviation.mean(0),
        "mean_stderr": error.square().sum(0).sqrt() / len(error),
        "distance": deviation / error,
    }


NEARER = 100.0
"""Steps that many times smaller show rounding alone: the model's own error is a millionth of what it was."""


def rounding_error(joining: Joining, model: QuadraticIncrement, law: SubspaceProbe, seed: int) -> float:
    """Error of a second moment by rounding of the losses.

    A model may compute parts of its loss in float32 whatever its parameters are, and the closed form takes the level
    from one evaluation: no number of draws averages that out. Measured is how far increments very near the solution are
    from the quadratic model, which is exact there.
    """
    near = SubspaceProbe(law.subspace, law.scale / NEARER)
    off = probe_increments(joining, near, 16, seed) - model.at(near.coordinates(16, seed))
    return 2 * abs(float(model.level)) * float(off.square().mean().sqrt())


def estimates(solution: Solution, settings: Settings, seed: int, *, literal: bool) -> Estimates:
    """Every estimator at every number of draws, each number a part of the same draws.

    In float64: the error of controlled Monte Carlo is below float32's rounding of the loss.
    """
    risk, new = solution.risk.in_double(), solution.new[:1].in_double()
    space = top_eigenspace(risk, dim=settings.dim, tol=1e-4, seed=seed)
    model = increment(mean_projection(risk, space), project(new, space))
    closed, law, most = (
        gaussian_moment(model, sigma=settings.sigma),
        SubspaceProbe(space, settings.sigma),
        2 * max(settings.draws),
    )
    joining = Joining(risk, new)
    z, true = law.coordinates(most, seed), probe_increments(joining, law, most, seed)
    rows = []
    for count in settings.draws:
        found = (
            summarise(true[::2][:count]),  # one of each pair: independent draws
            summarise(true[:count], antithetic=True),
            summarise(model.at(z[:count]), antithetic=True),
            control(closed, model, true[::2][:count], z[::2][:count]),
            control(closed, model, true[:count], z[:count]),
        )
        rows.append([[e.value, e.stderr] for e in found])
    table = torch.tensor(rows, dtype=torch.float64)
    says = (math.nan, math.nan, torch.full((len(settings.draws), 2), math.nan))
    if literal:
        says = _literal(solution, settings, seed)
    single = [closed.value, closed.shape or 0.0, rounding_error(joining, model, law, seed), *says[:2]]
    whole, shape, rounding, literal_closed, literal_same = torch.tensor(single, dtype=torch.float64)
    return Estimates(
        whole,
        shape,
        rounding,
        table[:, :, 0].T.contiguous(),
        table[:, :, 1].T.contiguous(),
        literal_closed,
        literal_same,
        says[2][:, 0].double().contiguous(),
        says[2][:, 1].double().contiguous(),
    )


def _literal(solution: Solution, settings: Settings, seed: int) -> tuple[float, float, Tensor]:
    """Closed form of the released procedure, the same from equal rows, and direct Monte Carlo with its error (S, 2).

    The sample's last example joins.
    """
    found = released(solution, settings.dim, seed)
    generator = torch.Generator().manual_seed(seed)
    z = settings.sigma * torch.randn(max(settings.draws), settings.dim, generator=generator)
    steps = (found.basis @ row for row in z.to(found.basis))
    squares = procedure.direct_increments(found.mean, found.before, found.after, steps).double().square().cpu()
    rows = [[float(squares[:n].mean()), float(squares[:n].std()) / math.sqrt(n)] for n in settings.draws]
    models = (found.model, found.on_the_same_rows())
    ours, same = (procedure.closed_form(model, settings.sigma) for model in models)
    return ours, same, torch.tensor(rows, dtype=torch.float64)


def findings(result: dict[str, Any]) -> list[str]:
    """What it shows, in sentences."""
    last = result["draws"][-1]
    distances, deviation, error = (
        torch.as_tensor(result[name], dtype=torch.float64) for name in ("distance", "mean_deviation", "mean_stderr")
    )
    lines = [
        f"k = {result['k']}, D = {result['dim']}, sigma = {result['sigma']:g}; the shape is "
        f"{result['shape_share']:.1e} of the closed form; means over {len(distances)} models at {last} draws"
    ]
    each = torch.as_tensor(result["rounding"], dtype=torch.float64)
    lines.append(
        f"errors are those of the draws and of rounding, which is {float(each.median()):.1e} of the closed form in the "
        f"median model, at most {float(each.max()):.1e}"
    )
    for i, name in enumerate(result["estimators"]):
        farthest = distances[:, i, -1].abs().sort(descending=True).values.tolist()
        others = f", the next {farthest[1]:.1f}" if len(farthest) > 1 else ""
        lines.append(
            f"{name}: {100 * float(deviation[i, -1]):+.1e} +- {100 * float(error[i, -1]):.1e} % from the closed form; "
            f"no model further than {farthest[0]:.1f} errors{others}"
        )
    if "literal" in result:
        literal = result["literal"]
        each = torch.as_tensor(literal["deviation"], dtype=torch.float64)[:, -1]
        ratio = torch.as_tensor(literal["closed_over_ours"], dtype=torch.float64)
        distance = torch.as_tensor(literal["distance"], dtype=torch.float64)[:, -1].abs()
        middle = float(distance.quantile(0.5))
        lines.append(
            f"released procedure: direct {100 * float(each.abs().quantile(0.5)):.1e} % from its own closed form in the "
            f"median model, at most {100 * float(each.abs().max()):.1e} %; {middle:.1f} standard "
            f"errors in the median, at most {float(distance.max()):.1f}; its closed form (another next example) is "
            f"{float(ratio.min()):.2g} to {float(ratio.max()):.2g} times ours"
        )
        same = torch.as_tensor(literal["same_rows_deviation"], dtype=torch.float64)[:, -1].abs()
        apart = torch.as_tensor(literal["same_rows_distance"], dtype=torch.float64)[:, -1].abs()
        lines.append(
            f"the same with both Hessians on all rows, nothing else changed: at most {100 * float(same.max()):.1e} %, "
            f"{float(apart.max()):.1f} standard errors"
        )
    return lines


def figures(result: dict[str, Any]) -> dict[str, Figure]:
    """Deviation from the closed form against the number of draws, and its standard error."""
    from curvprobe.plots import panels

    figure, axes = panels(1, 2, size=(4.6, 3.6))
    draws = torch.tensor(result["draws"], dtype=torch.float64)
    rows = [
        (name, torch.as_tensor(result["mean_deviation"])[i], torch.as_tensor(result["mean_stderr"])[i])
        for i, name in enumerate(result["estimators"])
    ]
    if "literal" in result:
        literal = result["literal"]
        rows.append(
            ("released procedure", torch.as_tensor(literal["mean_deviation"]), torch.as_tensor(literal["mean_stderr"]))
        )
    for i, (name, deviation, error) in enumerate(rows):
        shifted = draws * 1.04 ** (i - 2)
        axes[0, 0].errorbar(
            shifted, 100 * deviation, yerr=100 * error, marker=".", capsize=2, color=f"C{i}", label=name
        )
        axes[0, 1].loglog(draws, 100 * error, ".-", color=f"C{i}", label=name)
    axes[0, 0].axhline(0, color="0.5", linewidth=0.8)
    axes[0, 0].set_xscale("log")
    axes[0, 0].set(xlabel="draws S", ylabel="deviation from the closed form (%)")
    axes[0, 1].set(xlabel="draws S", ylabel="standard error (%)")
    figure.legend(
        *axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize="x-small"
    )
    return {"convergence": figure}


def cost(settings: Settings, options: Options) -> Cost:
    """Of all models."""
    k, most = settings.k, max(settings.draws)
    total = eigenspace_cost(2 * k, settings.dim) + Cost(settings.trained, 2 * 2 * most * (k + 1), 2 * settings.dim, 0)
    if options.literal:
        total = total + Cost(0, most * (2 * k - 1), (20 + 2) * settings.dim * 4, 0)
    return total * settings.seeds


EXPERIMENT = Experiment("convergence", ABOUT, PRESETS, cost, measure, findings, figures, has_literal=True)
