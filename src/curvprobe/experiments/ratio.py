"""How much of the full-space signal the top eigenspace holds as the sample grows: the paper's figure 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvprobe.experiments import growth
from curvprobe.experiments.cost import Cost
from curvprobe.experiments.experiment import Experiment
from curvprobe.experiments.growth import PRESETS, Growth, Settings
from curvprobe.experiments.options import Options
from curvprobe.experiments.over_seeds import spread
from curvprobe.experiments.subspaces import NAMES
from curvprobe.runtime.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = """Delta_2^(D) over Delta_2 against the sample size, and the same ratio of the shape criterion.

The paper (Fig. 3) sees a ratio of about 1 at sigma 1e-4 and 1e-3, and of 1e-2 to 1e3 at 1e-2. A random subspace of the
same dimension is the null: what it gives too is not the eigenspace's doing. The shape criterion leaves out the level,
which every subspace holds; its null is D / N. At one size the top eigenspace is compared with random, bottom and
gradient subspaces."""


def measure(settings: Settings, options: Options, store: Store) -> dict[str, Any]:
    """Ratios over seeds and sizes: of the criterion (true loss below, by Monte Carlo) and of its shape."""
    run = growth.measure(settings, options, store)
    compared = growth.compare_subspaces(settings, options, store)
    bent, tilted = (torch.stack([getattr(found, part) for found in compared]) for part in ("bent", "tilted"))
    num_params = int(run["num_params"][0, 0])
    result: dict[str, Any] = {
        "ks": run.ks,
        "sigmas": settings.sigmas,
        "dims": settings.dims,
        "num_params": num_params,
        "seeds": settings.seeds,
        "criterion": {name: spread(_criterion(run, name)) for name in ("top", "random")},
        "shape": {name: spread(_shape(run, name)) for name in ("top", "random")},
        "all_criterion": {name: _extremes(_criterion(run, name)) for name in ("top", "random")},
        "all_shape": {name: _extremes(_shape(run, name)) for name in ("top", "random")},
        "subspaces": {
            "names": NAMES,
            "k": settings.compared_at,
            "dim": max(settings.dims),
            "largest_residuals": torch.stack([found.residuals for found in compared]).amax(0),
            "bent_of_top": spread(bent / bent[:, :1]),
            "tilted_of_top": spread(tilted / tilted[:, :1]),
        },
        "null": [dim / num_params for dim in settings.dims],
    }
    if options.literal:
        for name, block in (("literal", "literal_subspace"), ("same rows", "literal_same_rows")):
            ratios = run[block] / run["literal_isotropic"][:, :, None]
            result["criterion"] |= {name: spread(ratios)}
            result["all_criterion"] |= {name: _extremes(ratios)}
        # Of one next example each, as the released procedure has.
        single = run["top"].sum(2)[:, :, 0] / run["increments"].square().mean(3)[..., 0][:, :, None]
        result["all_criterion"] |= {"single": _extremes(single)}
    return result


def _criterion(run: Growth, name: str) -> Tensor:
    """Ratio of the criteria, averaged over the candidates, (seeds, K, M, S)."""
    return run[name].sum(2).mean(2) / run["increments"].square().mean((3, 4))[:, :, None]


def _shape(run: Growth, name: str) -> Tensor:
    """Ratio of the shape criteria on the same candidates, (seeds, K, M, S)."""
    count = run["full_slope"].shape[2]
    inside = run[name][:, :, 1:, :count].sum((2, 3))
    sigmas = torch.tensor(run.settings.sigmas, dtype=torch.float64)
    slope, curvature = (run[part].sum(2)[..., None] for part in ("full_slope", "full_curvature"))
    return inside / (slope * sigmas**2 + curvature * sigmas**4)[:, :, None]


def _extremes(ratios: Tensor) -> dict[str, Any]:
    """Over seeds and sizes."""
    return spread(ratios.flatten(0, 1))


LABELS = (
    ("top", "top"),
    ("random", "random"),
    ("single", "top, one next example"),
    ("literal", "released procedure"),
    ("same rows", "the same with both Hessians on all rows"),
)


def cost(settings: Settings, options: Options) -> Cost:
    """Of the growing samples and the comparison of subspaces."""
    return growth.cost(settings, options) + growth.comparison_cost(settings)


def findings(result: dict[str, Any]) -> list[str]:
    """What it shows, in sentences."""
    lines = [f"{result['num_params']} parameters; median [smallest, largest] over {result['seeds']} seeds and all k"]
    for title, block in (("Delta_2^(D) / Delta_2", "all_criterion"), ("shape ratio", "all_shape")):
        for s, sigma in enumerate(result["sigmas"]):
            for m, dim in enumerate(result["dims"]):
                cells = []
                for name, label in LABELS:
                    if name in result[block]:
                        low, median, high = (float(result[block][name][end][m][s]) for end in ("low", "median", "high"))
                        cells.append(f"{label} {median:.3g} [{low:.3g}, {high:.3g}]")
                lines.append(f"{title}, sigma {sigma:g}, D = {dim}: {'; '.join(cells)}")
    compared = result["subspaces"]
    for title, block in (("2 |B|^2 + (tr B)^2", "bent_of_top"), ("|c|^2", "tilted_of_top")):
        cells = [
            f"{name} {float(compared[block]['median'][i]):.2g} [{float(compared[block]['low'][i]):.2g}, "
            f"{float(compared[block]['high'][i]):.2g}]"
            for i, name in enumerate(compared["names"])
            if name != "top"
        ]
        lines.append(f"{title} at k = {compared['k']}, D = {compared['dim']}, over that of the top: {'; '.join(cells)}")
    top, bottom = (float(compared["largest_residuals"][i]) for i in (0, 2))
    lines.append(f"largest residual of the top {top:.0e}, of the bottom {bottom:.0e} of its own first eigenvalue")
    lines.append("null of the shape ratio, D / N: " + ", ".join(f"{value:.1e}" for value in result["null"]))
    return lines


def figures(result: dict[str, Any]) -> dict[str, Figure]:
    """The paper's ratio above, the shape ratio below; one column a sigma."""
    from curvprobe.plots import panels

    ks = torch.tensor(result["ks"], dtype=torch.float64)
    figure, axes = panels(2, len(result["sigmas"]), size=(4.2, 3.2))
    for row, block in enumerate(("criterion", "shape")):
        for s, sigma in enumerate(result["sigmas"]):
            panel = axes[row, s]
            for name, style in (("top", "-"), ("random", "--"), ("literal", ":"), ("same rows", "-.")):
                if name not in result[block]:
                    continue
                for m, dim in enumerate(result["dims"]):
                    low, median, high = (
                        torch.as_tensor(result[block][name][end], dtype=torch.float64)[:, m, s]
                        for end in ("low", "median", "high")
                    )
                    label = f"{dict(LABELS)[name]}, D = {dim}" if s == 0 else None
                    panel.loglog(ks, median, style, color=f"C{m}", label=label if row == 0 else None)
                    if name in ("top", "random"):
                        panel.fill_between(ks, low, high, color=f"C{m}", alpha=0.12, linewidth=0)
                    else:  # one next example: its extremes would hide the rest as a band
                        panel.loglog(ks, low, style, color=f"C{m}", linewidth=0.6, alpha=0.5)
                        panel.loglog(ks, high, style, color=f"C{m}", linewidth=0.6, alpha=0.5)
            if block == "shape":
                for m, null in enumerate(result["null"]):
                    panel.axhline(null, color=f"C{m}", linewidth=0.6, linestyle=":")
            panel.set(title=rf"$\sigma$ = {sigma:g}", xlabel="sample size k")
    axes[0, 0].set_ylabel(r"$\Delta_2^{(D)} / \Delta_2$")
    axes[1, 0].set_ylabel("shape ratio (dotted: D / N)")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="x-small")
    return {"ratio": figure, "subspaces": _subspaces(result["subspaces"])}


def _subspaces(compared: dict[str, Any]) -> Figure:
    from curvprobe.plots import panels

    figure, axes = panels(1, 2, size=(4.2, 3.2))
    titles = (("bent_of_top", r"$2 |B|_F^2 + (\mathrm{tr} B)^2$"), ("tilted_of_top", r"$|c|^2$"))
    for panel, (block, title) in zip(axes[0], titles, strict=True):
        low, median, high = (torch.as_tensor(compared[block][end]) for end in ("low", "median", "high"))
        at = torch.arange(len(median))
        panel.errorbar(at, median, yerr=torch.stack([median - low, high - median]), fmt="o", capsize=3, color="black")
        panel.set_xticks(at.tolist(), compared["names"])
        panel.set_yscale("log")
        panel.set(title=f"{title}, over that of the top-{compared['dim']} eigenspace")
        panel.title.set_fontsize("small")
    return figure


EXPERIMENT = Experiment("ratio", ABOUT, PRESETS, cost, measure, findings, figures, grows=True, has_literal=True)
