"""Where the quadratic model of the loss holds under isotropic steps: the paper's figure 4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from curvprobe.curvature.matrix import hessian
from curvprobe.experiments.cost import Cost
from curvprobe.experiments.each_model import each_model
from curvprobe.experiments.experiment import Experiment
from curvprobe.experiments.options import Options
from curvprobe.experiments.over_seeds import over_seeds
from curvprobe.experiments.solutions import PAPER, SMALL, Language, Solution
from curvprobe.numerics.linalg import inner
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.runtime.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = """Relative error of the quadratic model of the loss under isotropic steps, in three precisions.

The paper (Fig. 4) sees a floor near 7e-4 to 1e-3 for sigma up to 2e-3, 4e-2 at 1e-2 and 30 at 1e-1. If the floor is
arithmetic it must fall with the precision: here the loss is evaluated in bfloat16, float32 and float64, with sums in
float64, and the floor of each is measured at the solution itself."""

PRECISIONS = ("bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Settings:
    """Of the validity experiment.

    Attributes:
        language: the model. ``trained``: sequences it has streamed through.
        k: sequences of the risk.
        sigmas: standard deviations of the steps.
        num_probes: directions. ``seeds``: models.
    """

    language: Language
    trained: int
    k: int = 2
    sigmas: tuple[float, ...] = tuple(10 ** (-7 + i / 4) for i in range(25))
    num_probes: int = 8
    seeds: int = 4


PRESETS = {"cpu": Settings(SMALL, trained=1024), "paper": Settings(PAPER, trained=10_000)}


@dataclass(frozen=True, eq=False)
class Errors:
    """Of one model, float64, by precision (3, ...).

    Attributes:
        loss: of the risk at the solution (3,).
        change: the loss at every step, less that at the solution (3, sigmas, draws).
        predicted: the quadratic model of it (3, sigmas, draws).
        num_params: N.
    """

    loss: Tensor
    change: Tensor
    predicted: Tensor
    num_params: int


_PRODUCTS = {functional.linear, torch.matmul, Tensor.matmul, functional.scaled_dot_product_attention}


class _ProductsInBfloat16(TorchFunctionMode):
    """Matrix multiplications as autocast does them; a mode of its own, as a risk keeps autocast off."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function itself; a matrix multiplication's tensors in bfloat16."""
        if func in _PRODUCTS:
            args, kwargs = pytree.tree_map_only(Tensor, _rounded, (args, kwargs))
        return func(*args, **(kwargs or {}))


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor


class _InBfloat16(nn.Module):
    """A model whose matrix multiplications are done in bfloat16."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, tokens: Tensor) -> Any:
        with _ProductsInBfloat16():
            return self.module(tokens)


def measure(settings: Settings, options: Options, store: Store) -> dict[str, Any]:
    """Errors relative to the loss, as in the paper, and relative to its change, which is stricter."""
    found = each_model(
        "validity",
        settings,
        options,
        store,
        Errors,
        lambda solution, seed: errors(solution, settings, seed),
    )
    loss, change, predicted = (
        torch.stack([getattr(e, name) for e in found]) for name in ("loss", "change", "predicted")
    )
    miss, after = (change - predicted).abs(), change + loss[:, :, None, None]
    to_loss = (miss / after.abs()).mean(3)
    # Against a model that stands on the loss in float64: what is left is the rounding of the loss itself too.
    anchored = (after - loss[:, -1, None, None, None] - predicted).abs() / after.abs()
    to_change = (change - predicted).square().mean(3).sqrt() / change.square().mean(3).sqrt()
    floors = (loss - loss[:, -1:]).abs() / loss[:, -1:]
    return {
        "precisions": PRECISIONS,
        "sigmas": settings.sigmas,
        "num_params": found[0].num_params,
        "k": settings.k,
        "relative_to_loss": over_seeds(to_loss),
        "anchored_in_float64": over_seeds(anchored.mean(3)),
        "relative_to_change": over_seeds(to_change),
        "rounding_at_the_solution": over_seeds(floors),
    }


def errors(solution: Solution, settings: Settings, seed: int) -> Errors:
    """The loss and its quadratic model along the same directions in every precision."""
    risk = solution.risk
    rough = EmpiricalRisk(_InBfloat16(solution.module), solution.loss, solution.data)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(settings.num_probes, risk.num_params, generator=generator, dtype=torch.float64)
    losses, changes, predictions = [], [], []
    for evaluated, model in ((rough, risk), (risk, risk), (risk.in_double(), risk.in_double())):
        columns = directions.to(device=model.device, dtype=model.dtype)
        slopes = inner(columns, model.gradient()).cpu()
        curvatures = torch.stack(
            [inner(d[None], p)[0] for d, p in zip(columns, (hessian(model) @ columns.T).T, strict=True)]
        )
        sigmas = torch.tensor(settings.sigmas, dtype=torch.float64)[:, None]
        at = evaluated.value()
        values = [[evaluated.value(sigma * d) for d in columns] for sigma in settings.sigmas]
        losses.append(at)
        changes.append(torch.tensor(values, dtype=torch.float64) - at)
        predictions.append(sigmas * slopes + sigmas**2 * curvatures.cpu() / 2)
    return Errors(
        torch.tensor(losses, dtype=torch.float64), torch.stack(changes), torch.stack(predictions), risk.num_params
    )


def findings(result: dict[str, Any]) -> list[str]:
    """What it shows, in sentences."""
    sigmas = torch.tensor(result["sigmas"], dtype=torch.float64)
    lines = [
        f"{result['num_params']} parameters, k = {result['k']}; error relative to the loss, of a model that "
        "stands on the loss in float64"
    ]
    for p, precision in enumerate(result["precisions"]):
        mean = torch.as_tensor(result["anchored_in_float64"]["mean"])[p]
        shown = ", ".join(
            f"{float(mean[(sigmas.log() - torch.tensor(s).log()).abs().argmin()]):.1e} at {s:g}"
            for s in (1e-7, 1e-5, 1e-3, 1e-2, 1e-1)
        )
        rounding = float(torch.as_tensor(result["rounding_at_the_solution"]["mean"])[p])
        printed = f"; rounding of the loss itself {rounding:.1e}"
        if precision == "float64":  # the others are held against it; what it is off by shows at the smallest sigma
            printed = f"; rounding is what is left at the smallest sigma, {float(mean[0]):.1e}"
        lines.append(f"{precision}: {shown}{printed}")
    change = torch.as_tensor(result["relative_to_change"]["mean"])
    for p, precision in enumerate(result["precisions"]):
        good = sigmas[change[p] < 0.05]
        span = (
            f"below 5 % from sigma {float(good.min()):.1g} to {float(good.max()):.1g}"
            if len(good)
            else "nowhere below 5 %"
        )
        lines.append(f"relative to the change of the loss, in {precision}: {span}")
    return lines


def figures(result: dict[str, Any]) -> dict[str, Figure]:
    """Error against sigma, relative to the loss and to its change."""
    from curvprobe.plots import panels

    figure, axes = panels(1, 2, size=(4.6, 3.6))
    sigmas = torch.tensor(result["sigmas"])
    for panel, name, label in (
        (axes[0, 0], "anchored_in_float64", "error relative to the loss"),
        (axes[0, 1], "relative_to_change", "error relative to its change"),
    ):
        block = result[name]
        # Where the loss does not change at all, the error relative to the change is infinite: it is not drawn.
        mean, error = (torch.as_tensor(block[part], dtype=torch.float64) for part in ("mean", "stderr"))
        mean, error = mean.where(mean.isfinite(), torch.nan), error.where(error.isfinite(), 0.0)
        for p, precision in enumerate(result["precisions"]):
            panel.loglog(sigmas, mean[p], ".-", color=f"C{p}", label=precision)
            low = torch.maximum(mean[p] - error[p], 0.1 * mean[p])
            panel.fill_between(sigmas, low, mean[p] + error[p], color=f"C{p}", alpha=0.2, linewidth=0)
        panel.set(xlabel=r"$\sigma$ (isotropic)", ylabel=label)
    floors = torch.as_tensor(result["rounding_at_the_solution"]["mean"]).tolist()[:-1]
    floors.append(float(torch.as_tensor(result["anchored_in_float64"]["mean"])[-1, 0]))
    for p, rounding in enumerate(floors):
        axes[0, 0].axhline(rounding, color=f"C{p}", linewidth=0.8, linestyle=":")
    axes[0, 0].axhspan(7e-4, 1e-3, color="0.7", alpha=0.5, linewidth=0, label="the paper's floor")
    axes[0, 0].legend(frameon=False, fontsize="small")
    return {"validity": figure}


def cost(settings: Settings, options: Options) -> Cost:  # noqa: ARG001 - as of every experiment
    """Of all models; float64 is counted as two float32."""
    k, probes = settings.k, settings.num_probes
    forwards = 4 * len(settings.sigmas) * probes * k
    return Cost(settings.trained, forwards, 4 * probes * k, 4 * probes) * settings.seeds


EXPERIMENT = Experiment("validity", ABOUT, PRESETS, cost, measure, findings, figures)
