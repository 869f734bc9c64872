"""Error of the closed form over dimension and sigma: the paper's figure 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvprobe.criteria.draws import standard_normal
from curvprobe.criteria.estimators import control, gaussian_moment, summarise
from curvprobe.criteria.increment import increment
from curvprobe.experiments import paper_procedure as procedure
from curvprobe.experiments.cost import Cost, eigenspace_cost
from curvprobe.experiments.each_model import each_model
from curvprobe.experiments.experiment import Experiment
from curvprobe.experiments.options import Options
from curvprobe.experiments.released import Released, released
from curvprobe.experiments.solutions import PAPER, SMALL, Language, Solution
from curvprobe.probing.joining import Joining
from curvprobe.probing.laws import SubspaceProbe
from curvprobe.probing.monte_carlo import probe_increments
from curvprobe.runtime.store import Store
from curvprobe.subspace.eigenspace import top_eigenspace
from curvprobe.subspace.projection import mean_projection, project

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = """|direct - closed form| / direct over the dimension D and sigma.

The paper (Fig. 6) sees small errors in the local regime and large ones at the largest sigma. Beside it
stands what controlled Monte Carlo, on the same draws, shows of the quadratic model's error, without the noise of direct
Monte Carlo, and how that compares with the shape alone; where rounding hides it the maps are blank."""


@dataclass(frozen=True)
class Settings:
    """Of the error map.

    Attributes:
        language: the model. ``trained``: sequences it has streamed through.
        k: of the sample.
        dims, sigmas: of the map.
        num_probes: draws a cell.
        seeds: models.
    """

    language: Language
    trained: int
    dims: tuple[int, ...]
    k: int = 8
    sigmas: tuple[float, ...] = tuple(10 ** (-7 + 2 * i / 3) for i in range(10))
    num_probes: int = 24
    seeds: int = 4


PRESETS = {
    "cpu": Settings(SMALL, trained=1024, dims=(1, 2, 4, 6, 9, 13, 18, 24, 31, 40)),
    "paper": Settings(PAPER, trained=10_000, dims=(1, 12, 23, 34, 45, 56, 67, 78, 89, 100)),
}


@dataclass(frozen=True, eq=False)
class Map:
    """Of one model, float64 (M, S): dimensions by sigmas; squared loss units.

    Attributes:
        closed, shape: closed form, and its shape.
        direct: Monte Carlo on the true loss. ``direct_stderr``: its error.
        controlled, controlled_stderr: the same draws with the quadratic model as control variate.
        literal_closed, literal_direct: of the paper's procedure; NaN where it was not asked for.
    """

    closed: Tensor
    shape: Tensor
    direct: Tensor
    direct_stderr: Tensor
    controlled: Tensor
    controlled_stderr: Tensor
    literal_closed: Tensor
    literal_direct: Tensor


def measure(settings: Settings, options: Options, store: Store) -> dict[str, Any]:
    """Relative errors by dimension and sigma, means over the models."""
    found = each_model(
        "error-map",
        settings,
        options,
        store,
        Map,
        lambda solution, seed: one_map(solution, settings, seed, literal=options.literal),
    )
    value = {name: torch.stack([getattr(m, name) for m in found]) for name in Map.__dataclass_fields__}
    off = value["controlled"] - value["closed"]
    result: dict[str, Any] = {
        "dims": settings.dims,
        "sigmas": settings.sigmas,
        "k": settings.k,
        "num_probes": settings.num_probes,
        "direct_error": ((value["direct"] - value["closed"]).abs() / value["direct"]).mean(0),
        "direct_noise": (value["direct_stderr"] / value["direct"]).mean(0),
        "model_error": (off.abs() / value["closed"]).mean(0),
        "model_error_noise": (value["controlled_stderr"] / value["closed"]).mean(0),
        "model_error_of_shape": (off.abs() / value["shape"]).mean(0),
        # As sigma goes to 0 the model's own error vanishes: what is left at the smallest one is rounding.
        "rounding": (off.abs() / value["closed"])[:, :, 0].mean(0),
        "largest_distance": ((value["direct"] - value["closed"]) / value["direct_stderr"]).abs().amax(0),
    }
    if options.literal:
        miss = (value["literal_direct"] - value["literal_closed"]).abs() / value["literal_direct"]
        result["literal_error"] = miss.mean(0)
    return result


def one_map(solution: Solution, settings: Settings, seed: int, *, literal: bool) -> Map:
    """Every dimension and sigma from one eigenspace; in float64, for float32's rounding hides the model's error."""
    risk, new = solution.risk.in_double(), solution.new[:1].in_double()
    joining, space = Joining(risk, new), top_eigenspace(risk, dim=max(settings.dims), tol=1e-4, seed=seed)
    whole = increment(mean_projection(risk, space), project(new, space))
    cells = torch.full((8, len(settings.dims), len(settings.sigmas)), torch.nan, dtype=torch.float64)
    theirs = released(solution, max(settings.dims), seed) if literal else None
    for m, dim in enumerate(settings.dims):
        for s, sigma in enumerate(settings.sigmas):
            law, inc = SubspaceProbe(space.truncate(dim), sigma), whole.truncate(dim)
            z = law.coordinates(settings.num_probes, seed)
            true = probe_increments(joining, law, settings.num_probes, seed)
            closed, direct = gaussian_moment(inc, sigma=sigma), summarise(true, antithetic=True)
            controlled = control(closed, inc, true, z)
            values = [closed.value, closed.shape, direct.value, direct.stderr, controlled.value, controlled.stderr]
            cells[:6, m, s] = torch.tensor(values, dtype=torch.float64)
            if theirs is not None:
                cells[6:, m, s] = _released_cell(theirs, dim, sigma, settings.num_probes, seed)
    return Map(*cells)


def _released_cell(theirs: Released, dim: int, sigma: float, num_probes: int, seed: int) -> Tensor:
    """Closed form and direct Monte Carlo of the released procedure, float64 (2,)."""
    basis, independent = theirs.basis[:, :dim], sigma * standard_normal(num_probes, dim, seed)
    steps = (basis @ row for row in independent.to(basis))
    increments = procedure.direct_increments(theirs.mean, theirs.before, theirs.after, steps).double()
    closed = procedure.closed_form(theirs.model.truncate(dim), sigma)
    return torch.tensor([closed, float(increments.square().mean())], dtype=torch.float64)


def findings(result: dict[str, Any]) -> list[str]:
    """What it shows, in sentences."""
    lines = [f"k = {result['k']}, {result['num_probes']} draws a cell; range over D of 1 to {result['dims'][-1]}"]
    table = {
        name: torch.as_tensor(result[name], dtype=torch.float64)
        for name in ("direct_error", "direct_noise", "model_error", "model_error_of_shape", "literal_error")
        if name in result
    }
    hidden, rounding = below_rounding(result), float(torch.as_tensor(result["rounding"]).max())
    lines.append(f"rounding, from the smallest sigma: {rounding:.1e} of the criterion")
    for s, sigma in enumerate(result["sigmas"]):
        said = {}
        for name, rows in table.items():
            cells = rows[~hidden[:, s], s] if name.startswith("model_error") else rows[:, s]
            said[name] = f"{float(cells.min()):.1e} to {float(cells.max()):.1e}" if len(cells) else "below rounding"
        literal = f"; released procedure {said['literal_error']}" if "literal_error" in said else ""
        lines.append(
            f"sigma {sigma:.1e}: direct against closed form {said['direct_error']} (noise of direct "
            f"{said['direct_noise']}); the model's own error {said['model_error']}, of the shape "
            f"{said['model_error_of_shape']}{literal}"
        )
    return lines


def below_rounding(result: dict[str, Any]) -> Tensor:
    """Cells (M, S) whose model error cannot be told from rounding."""
    error, rounding = (torch.as_tensor(result[name], dtype=torch.float64) for name in ("model_error", "rounding"))
    return error < 3 * rounding[:, None]


def figures(result: dict[str, Any]) -> dict[str, Figure]:
    """Maps of the direct error, of the model's own, and of that relative to the shape."""
    from curvprobe.plots import map_panel, panels

    shown = [
        ("direct_error", "|direct - closed| / direct"),
        ("model_error", "|controlled - closed| / closed"),
        ("model_error_of_shape", "|controlled - closed| / shape"),
    ]
    if "literal_error" in result:
        shown.append(("literal_error", "released procedure"))
    figure, axes = panels(1, len(shown), size=(4.2, 3.6))
    hidden = below_rounding(result)
    for panel, (name, title) in zip(axes[0], shown, strict=True):
        values = torch.as_tensor(result[name], dtype=torch.float64)
        values = values.masked_fill(hidden, torch.nan) if name.startswith("model_error") else values
        map_panel(figure, panel, result["sigmas"], result["dims"], values.numpy(), title)
        panel.set(xlabel=r"$\sigma$")
    axes[0, 0].set_ylabel("dimension D")
    return {"error-map": figure}


def cost(settings: Settings, options: Options) -> Cost:
    """Of all models."""
    k, dim = settings.k, max(settings.dims)
    cells = len(settings.dims) * len(settings.sigmas) * settings.num_probes
    total = eigenspace_cost(2 * k, dim) + Cost(settings.trained, 2 * cells * (k + 1), 2 * dim, 6 * dim)
    if options.literal:
        total = total + Cost(0, cells * (2 * k - 1), (20 + 2) * dim * 4, 0)
    return total * settings.seeds


EXPERIMENT = Experiment("error-map", ABOUT, PRESETS, cost, measure, findings, figures, has_literal=True)
