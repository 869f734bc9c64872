"""Decay of the criteria as the sample grows and the weights follow it: the paper's figure 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvprobe.experiments import growth
from curvprobe.experiments.experiment import Experiment
from curvprobe.experiments.growth import PRESETS, Growth, Settings, cost
from curvprobe.experiments.options import Options
from curvprobe.experiments.over_seeds import exponent, over_seeds, said
from curvprobe.runtime.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = """Delta_1, Delta_2 and Delta_2^(D) against the sample size k while the weights follow the sample.

The paper (Fig. 2) sees all of them fall, Delta_1 as about k^-1 and the squared criteria as about k^-2, on curves that
are noisy because one next example is used. Here each is also averaged over candidates that the model has not seen, and
split into a mean shift, by which unseen examples differ from the sample on average, and the landscape dispersion V. At
fixed weights, over a pool, the criteria fall as V / (k (k + 1)), which is arithmetic; training changes V and the
shift."""


def measure(settings: Settings, options: Options, store: Store) -> dict[str, Any]:
    """Curves of every criterion, over the candidates ("expected") and for the first of them ("single")."""
    run = growth.measure(settings, options, store)
    ks = torch.tensor(run.ks, dtype=torch.float64)
    curves, dispersion = _curves(run, literal=options.literal), run["dispersion"]
    late = slice(len(ks) // 2, None)
    # The criterion over candidates is f^2 (|mean shift|^2 + V): the share of V, in the largest dimension.
    spread_share = dispersion.sum(2) / (ks[:, None] + 1) ** 2 / run["top"].sum(2).mean(2)[:, :, -1]
    return {
        "ks": run.ks,
        "sigmas": settings.sigmas,
        "dims": settings.dims,
        "num_params": int(run["num_params"][0, 0]),
        "candidates": settings.candidates,
        "loss": over_seeds(run["loss"]),
        "gradient_norm": over_seeds(run["gradient_norm"]),
        "eigenvalues": over_seeds(run["eigenvalues"]),
        "largest_residual": float(run["residual"].max()),
        "curves": {
            which: {name: over_seeds(values) for name, values in named.items()} for which, named in curves.items()
        },
        "exponents": {which: _exponents(named, ks) for which, named in curves.items()},
        "late_exponents": {
            which: _exponents({name: values[:, late] for name, values in named.items()}, ks[late])
            for which, named in curves.items()
        },
        "spread_share": over_seeds(spread_share),
        "dispersion": _dispersion_of(dispersion, ks, late),
    }


def _curves(run: Growth, *, literal: bool) -> dict[str, dict[str, Tensor]]:
    """Every criterion over the candidates, for the first of them, and by the paper's released procedure."""
    level, parts, increments = run["level"], run["top"].sum(2), run["increments"]
    curves = {
        "expected": {
            "delta1": level.abs().mean(2),
            "delta2": increments.square().mean((3, 4)),
            "delta2_subspace": parts.mean(2),
        },
        "single": {
            "delta1": level.abs()[:, :, 0],
            "delta2": increments.square().mean(3)[..., 0],
            "delta2_subspace": parts[:, :, 0],
        },
    }
    if literal:
        curves["literal"] = {
            "delta1": run["literal_delta1"],
            "delta2": run["literal_isotropic"],
            "delta2_subspace": run["literal_subspace"],
        }
    return curves


def _dispersion_of(dispersion: Tensor, ks: Tensor, late: slice) -> dict[str, Any]:
    """The landscape dispersion (seeds, K, 3, S), its parts, and the powers of k it goes as."""
    total, shape = dispersion.sum(2), dispersion[:, :, 1:].sum(2)
    return {
        "total": over_seeds(total),
        "parts": over_seeds(dispersion),
        **{
            f"{when}exponents": {
                name: [exponent(ks[at], values[:, at, s]) for s in range(dispersion.shape[3])]
                for name, values in (("total", total), ("shape", shape))
            }
            for when, at in (("", slice(None)), ("late_", late))
        },
    }


def _exponents(named: dict[str, Tensor], ks: Tensor) -> dict[str, Any]:
    """Of Delta_1, Delta_2 at every sigma, and Delta_2^(D) at every dimension and sigma."""
    isotropic, subspace = named["delta2"], named["delta2_subspace"]
    dims, sigmas = range(subspace.shape[2]), range(subspace.shape[3])
    return {
        "delta1": exponent(ks, named["delta1"]),
        "delta2": [exponent(ks, isotropic[..., s]) for s in sigmas],
        "delta2_subspace": [[exponent(ks, subspace[..., m, s]) for s in sigmas] for m in dims],
    }


def findings(result: dict[str, Any]) -> list[str]:
    """What it shows, in sentences."""
    lines = [
        f"{result['num_params']} parameters, k from {result['ks'][0]} to {result['ks'][-1]}; the loss falls from "
        f"{result['loss']['mean'][0]:.2f} to {result['loss']['mean'][-1]:.2f}; largest residual "
        f"{result['largest_residual']:.0e} of the first eigenvalue"
    ]
    for which, title in (
        ("expected", f"Averaged over {result['candidates']} candidates"),
        ("single", "One next example"),
        ("literal", "The paper's released procedure"),
    ):
        if which not in result["exponents"]:
            continue
        for when, at in (("", "exponents"), (f", k from {result['ks'][len(result['ks']) // 2]}", "late_exponents")):
            found = result[at][which]
            lines.append(f"{title}{when}: Delta_1 goes as k to the {said(found['delta1'])}")
            for s, sigma in enumerate(result["sigmas"]):
                subspace = ", ".join(
                    f"D = {dim} {said(found['delta2_subspace'][m][s])}" for m, dim in enumerate(result["dims"])
                )
                lines.append(f"  sigma {sigma:g}: Delta_2 {said(found['delta2'][s])}; Delta_2^(D) {subspace}")
    middle = len(result["sigmas"]) // 2
    shares = torch.as_tensor(result["spread_share"]["mean"], dtype=torch.float64)[:, middle]
    shown = ", ".join(f"{100 * float(share):.0f} %" for share in shares)
    at = f"sigma {result['sigmas'][middle]:g}, k in {list(result['ks'])}"
    lines.append(f"Share of V in the criterion at {at}, the rest being the mean shift: {shown}")
    for s, sigma in enumerate(result["sigmas"]):
        cells = [
            said(result["dispersion"][at][part][s])
            for part in ("total", "shape")
            for at in ("exponents", "late_exponents")
        ]
        lines.append(
            f"Dispersion V at sigma {sigma:g}: k to the {cells[0]}, later {cells[1]}; of its shape {cells[2]}, later "
            f"{cells[3]}"
        )
    return lines


def figures(result: dict[str, Any]) -> dict[str, Figure]:
    """One panel a sigma in the paper's layout, and the dispersion."""
    from curvprobe.plots import panels

    ks = torch.tensor(result["ks"], dtype=torch.float64)
    figure, axes = panels(1, len(result["sigmas"]), size=(4.2, 3.8))
    for s, sigma in enumerate(result["sigmas"]):
        panel = axes[0, s]
        styles = [("expected", "-", 1.0), ("single", "-", 0.3), ("literal", ":", 0.8)]
        for which, style, alpha in styles:
            if which not in result["curves"]:
                continue
            curves = result["curves"][which]
            rows = [("delta1", r"$\Delta_1$", "0.4", (...,)), ("delta2", r"$\Delta_2$", "black", (..., s))]
            rows += [
                ("delta2_subspace", rf"$\Delta_2^{{({dim})}}$", f"C{m}", (..., m, s))
                for m, dim in enumerate(result["dims"])
            ]
            for name, label, color, at in rows:
                mean = torch.as_tensor(curves[name]["mean"], dtype=torch.float64)[at]
                error = torch.as_tensor(curves[name]["stderr"], dtype=torch.float64)[at]
                named = label if which == "expected" else None
                if which != "expected" and name == "delta2":
                    named = {"single": rf"{label}, one next example", "literal": f"{label}, released procedure"}[which]
                panel.loglog(ks, mean, style, color=color, alpha=alpha, label=named)
                if which == "expected":
                    low = torch.maximum(mean - error, mean * 0.1)
                    panel.fill_between(ks, low, mean + error, color=color, alpha=0.15, linewidth=0)
        spread = torch.as_tensor(result["dispersion"]["total"]["mean"], dtype=torch.float64)[:, s] / (ks + 1) ** 2
        panel.loglog(ks, spread, "-.", color="C3", linewidth=1, label=r"$V / (k + 1)^2$")
        first = float(torch.as_tensor(result["curves"]["expected"]["delta2"]["mean"])[0, s])
        panel.loglog(ks, first * (ks[0] / ks) ** 2, "--", color="0.6", linewidth=0.8, label=r"$\propto k^{-2}$")
        panel.set(title=rf"$\sigma$ = {sigma:g}", xlabel="sample size k")
    axes[0, 0].set_ylabel("criterion (loss units; squared)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    return {"decay": figure, "dispersion": _dispersion(result, ks)}


def _dispersion(result: dict[str, Any], ks: torch.Tensor) -> Figure:
    from curvprobe.plots import panels

    figure, axes = panels(1, len(result["sigmas"]), size=(4.2, 3.2))
    parts = torch.as_tensor(result["dispersion"]["parts"]["mean"], dtype=torch.float64)
    errors = torch.as_tensor(result["dispersion"]["parts"]["stderr"], dtype=torch.float64)
    for s, sigma in enumerate(result["sigmas"]):
        for i, name in enumerate(("level", "slope", "curvature")):
            value, error = parts[:, i, s], errors[:, i, s].nan_to_num()
            reach = [torch.minimum(error, 0.9 * value), error]
            axes[0, s].errorbar(ks, value, yerr=reach, marker=".", capsize=2, label=name)
        axes[0, s].set_xscale("log")
        axes[0, s].set_yscale("log")
        axes[0, s].set(title=rf"$\sigma$ = {sigma:g}", xlabel="sample size k")
    axes[0, 0].set_ylabel("dispersion V (squared loss units)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize="small")
    return figure


EXPERIMENT = Experiment("decay", ABOUT, PRESETS, cost, measure, findings, figures, grows=True, has_literal=True)
