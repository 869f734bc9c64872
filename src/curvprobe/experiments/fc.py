"""Increments of fully connected classifiers at and around their solution: the setting of the paper's predecessor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvprobe.experiments.cost import Cost
from curvprobe.experiments.experiment import Experiment
from curvprobe.experiments.machine import code_of
from curvprobe.experiments.options import Options
from curvprobe.experiments.over_seeds import exponent, over_seeds, said
from curvprobe.probing.laws import IsotropicProbe
from curvprobe.risk.displaced import displaced_losses, in_blocks
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.runtime import progress
from curvprobe.runtime.store import Stage, Store
from curvprobe.tasks.digits import digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = """Mean |L_{k+1} - L_k| and its mean square against k, at the solution w* and around it, for tanh classifiers of
scikit-learn's digits of several depths and widths.

The setting of Kiselev & Grabovoy (2024), arXiv:2409.11995: weights trained on all images, the sample grows in random
order. At fixed weights the mean square is exactly Var(l) / (k (k + 1)), so k times the mean absolute difference levels
off; what depth and width change is where."""


@dataclass(frozen=True)
class Settings:
    """Of the fully connected experiment.

    Attributes:
        k: training images.
        depths: hidden layers, at ``width``. ``widths``: units of a hidden layer, at ``depth`` of them.
        sigmas: standard deviations of isotropic steps around the solution.
        num_probes: steps at every sigma. ``orders``: random orders of the sample.
        seeds: models of every size.
    """

    k: int = 512
    depths: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    widths: tuple[int, ...] = (16, 32, 64, 128)
    depth: int = 2
    width: int = 64
    sigmas: tuple[float, ...] = (1e-2, 1e-1)
    num_probes: int = 16
    orders: int = 200
    seeds: int = 4

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Hidden sizes of every network, each once."""
        by_depth = [(self.width,) * depth for depth in self.depths]
        return list(dict.fromkeys(by_depth + [(width,) * self.depth for width in self.widths]))


PRESETS = {"cpu": Settings(), "paper": Settings(k=1500, orders=1000, seeds=8)}


@dataclass(frozen=True, eq=False)
class Curves:
    """Of one network: at the solution, then at every sigma; (1 + sigmas, k - 1), against k = 1, 2, ...

    Attributes:
        absolute, square: mean absolute and mean squared increment over orders and steps.
        variance: of the losses over the sample, averaged over the steps (1 + sigmas,).
        held_out: mean |l - L_k| over images that were not trained on (1 + sigmas,): k + 1 times the mean absolute
            increment when one of them comes next.
        loss, gradient_norm: of the solution.
        num_params: N.
    """

    absolute: Tensor
    square: Tensor
    variance: Tensor
    held_out: Tensor
    loss: float
    gradient_norm: float
    num_params: int


def measure(settings: Settings, options: Options, store: Store) -> dict[str, Any]:
    """Curves of every network, and the plateaus they level off at."""
    seeds = range(options.seed, options.seed + settings.seeds)
    found: dict[tuple[int, ...], list[Curves]] = {}
    with progress.bar("networks (shapes x seeds)", len(settings.shapes) * settings.seeds) as advance:
        for hidden in settings.shapes:
            name = "x".join(str(size) for size in hidden)
            for seed in seeds:

                def compute(hidden: tuple[int, ...] = hidden, seed: int = seed) -> Curves:
                    task = digits(settings.k, hidden=hidden, seed=seed)
                    risk = task.risk()
                    return curves(risk, risk.on(task.candidates), settings, seed)

                key = [code_of(Curves), settings.k, hidden, settings.sigmas, settings.num_probes, settings.orders, seed]
                found.setdefault(hidden, []).append(store.result(Stage(f"fc-{name}-seed{seed}", key, Curves, compute)))
                advance(1)
    ks = torch.arange(1, settings.k, dtype=torch.float64)
    shown = sorted({int(k) for k in torch.logspace(0, torch.tensor(float(settings.k - 1)).log10(), 60).round()})
    return {
        "k": settings.k,
        "ks": shown,
        "sigmas": settings.sigmas,
        "depth": settings.depth,
        "width": settings.width,
        "networks": [_network(hidden, models, ks, shown, settings) for hidden, models in found.items()],
    }


def _network(
    hidden: tuple[int, ...], models: list[Curves], ks: Tensor, shown: list[int], settings: Settings
) -> dict[str, Any]:
    """One size of network over its seeds."""
    rows, late = [k - 1 for k in shown], ks >= settings.k / 8
    absolute, square = (torch.stack([getattr(m, name) for m in models]) for name in ("absolute", "square"))
    variance = torch.stack([m.variance for m in models])
    scaled = ks * absolute
    return {
        "hidden": hidden,
        "num_params": models[0].num_params,
        "loss": over_seeds(torch.tensor([m.loss for m in models], dtype=torch.float64)),
        "gradient_norm": max(m.gradient_norm for m in models),
        "absolute": over_seeds(absolute[:, :, rows]),
        "square": over_seeds(square[:, :, rows]),
        "variance": over_seeds(variance),
        "held_out": over_seeds(torch.stack([m.held_out for m in models])),
        "plateau": over_seeds(scaled[:, :, late].mean(2)),
        "plateau_slope": exponent(ks[late], scaled[:, 0, late]),
        "square_exponent": exponent(ks[late], square[:, 0, late]),
        # Of the mean square to its exact expectation over all orders.
        "square_to_exact": over_seeds((square * ks * (ks + 1) / variance[..., None])[:, :, late].mean(2)),
    }


def curves(risk: EmpiricalRisk, new: EmpiricalRisk, settings: Settings, seed: int) -> Curves:
    """Increments along random orders of the sample, at the solution and at isotropic steps from it."""
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(len(risk), generator=generator) for _ in range(settings.orders)])
    points, held_out = [risk.losses()[None]], [new.losses()[None]]
    for sigma in settings.sigmas:
        law = IsotropicProbe(sigma)
        points.append(_at(risk, law, settings, seed))
        held_out.append(_at(new, law, settings, seed))
    absolute, square, variance = zip(*(along_orders(losses, orders) for losses in points), strict=True)
    apart = [float((new - old.mean(1)[:, None]).abs().mean()) for old, new in zip(points, held_out, strict=True)]
    return Curves(
        torch.stack(absolute),
        torch.stack(square),
        torch.stack(variance),
        torch.tensor(apart, dtype=torch.float64),
        risk.value(),
        float(risk.gradient().double().norm()),
        risk.num_params,
    )


def _at(risk: EmpiricalRisk, law: IsotropicProbe, settings: Settings, seed: int) -> Tensor:
    """Losses (P, n) at the law's steps."""
    steps = law.displacements(risk, settings.num_probes, seed)
    return torch.cat([displaced_losses(risk, block) for block in in_blocks(steps, risk)])


def along_orders(losses: Tensor, orders: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean |increment| and increment^2 (k - 1,) over points (P, k) and orders (R, k), and the points' mean variance."""
    k = losses.shape[1]
    counts = torch.arange(1, k, dtype=torch.float64)
    absolute, square = torch.zeros(k - 1, dtype=torch.float64), torch.zeros(k - 1, dtype=torch.float64)
    for order in orders:
        shuffled = losses[:, order]
        before = shuffled.cumsum(1)[:, :-1] / counts
        increments = (shuffled[:, 1:] - before) / (counts + 1)
        absolute += increments.abs().mean(0)
        square += increments.square().mean(0)
    return absolute / len(orders), square / len(orders), losses.var(1).mean()


def findings(result: dict[str, Any]) -> list[str]:
    """What it shows, in sentences."""
    sigmas = ", ".join(f"{sigma:g}" for sigma in result["sigmas"])
    lines = [f"{result['k']} images; plateau of k mean|L_(k+1) - L_k| at w*, and around it at sigma {sigmas}"]
    for network in result["networks"]:
        mean, error = (torch.as_tensor(network["plateau"][part], dtype=torch.float64) for part in ("mean", "stderr"))
        plateaus = ", ".join(f"{float(m):.3g} +- {float(e):.1g}" for m, e in zip(mean, error, strict=True))
        ratio = torch.as_tensor(network["square_to_exact"]["mean"], dtype=torch.float64)
        lines.append(
            f"hidden {'x'.join(str(size) for size in network['hidden'])} (N = {network['num_params']}, loss "
            f"{float(torch.as_tensor(network['loss']['mean'])):.3f}, gradient norm at most "
            f"{network['gradient_norm']:.0e}): {plateaus}; mean square goes as k to the "
            f"{said(network['square_exponent'])}, {float(ratio[0]):.3f} of Var(l) / (k (k + 1)); plateau of held-out "
            f"images at w* {float(torch.as_tensor(network['held_out']['mean'])[0]):.3g}"
        )
    return lines


def figures(result: dict[str, Any]) -> dict[str, Figure]:
    """k mean|increment| and k^2 mean increment^2, by depth and by width, at the solution (solid) and around it."""
    from curvprobe.plots import panels

    ks = torch.tensor(result["ks"], dtype=torch.float64)
    figure, axes = panels(2, 2, size=(4.8, 3.2))
    by_depth = [n for n in result["networks"] if set(n["hidden"]) == {result["width"]}]
    by_width = sorted((n for n in result["networks"] if len(n["hidden"]) == result["depth"]), key=lambda n: n["hidden"])
    for column, (networks, label) in enumerate(((by_depth, "depth"), (by_width, "width"))):
        for i, network in enumerate(networks):
            value = len(network["hidden"]) if label == "depth" else network["hidden"][0]
            for row, (name, power) in enumerate((("absolute", 1), ("square", 2))):
                mean, error = (torch.as_tensor(network[name][part], dtype=torch.float64) for part in ("mean", "stderr"))
                for p, style in enumerate(("-", "--", ":")[: len(mean)]):
                    named = f"{label} {value}" if p == 0 else None
                    axes[row, column].plot(ks, ks**power * mean[p], style, color=f"C{i}", label=named, linewidth=1)
                    ends = [ks**power * (mean[p] + sign * error[p]) for sign in (-1, 1)]
                    axes[row, column].fill_between(ks, *ends, color=f"C{i}", alpha=0.15, linewidth=0)
        for row, title in enumerate((r"$k$ mean $|L_{k+1} - L_k|$", r"$k^2$ mean $(L_{k+1} - L_k)^2$")):
            axes[row, column].set_xscale("log")
            axes[row, column].set_yscale("log")
            axes[row, column].set(xlabel="sample size k", ylabel=title)
        axes[0, column].legend(frameon=False, fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    around = " and ".join(f"{sigma:g}" for sigma in result["sigmas"])
    figure.suptitle(f"at w* (solid), and at isotropic steps of sigma {around} (dashed, dotted)", fontsize="medium")
    return {"fc": figure}


def cost(settings: Settings, options: Options) -> Cost:  # noqa: ARG001 - as of every experiment
    """Of all networks: about 1500 passes of L-BFGS over the sample, and the steps."""
    passes = len(settings.sigmas) * settings.num_probes
    return Cost(1500 * settings.k, passes * settings.k, 0, 0) * (len(settings.shapes) * settings.seeds)


EXPERIMENT = Experiment("fc", ABOUT, PRESETS, cost, measure, findings, figures, reads_text=False)
