"""How much of one-sample deformation lives in the dominant curvature directions: the concentration curve.

On the digits MLP and a small language model, the share of the full-space signal that the first D directions of several
subspaces capture, with errors over the next examples, beside D / N. Run: python benchmarks/concentration.py
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmark import Benchmark, markdown, page, shared
from models import CACHE, TASKS

import curvprobe as cp
from curvprobe.plots import plot_concentration

OPTIONS = {
    **shared(tasks=list(TASKS), dim=10, num_probes=16),
    "sigma": (1e-3, "standard deviation of the probe"),
    "candidates": (200, "next examples, at the most"),
    "figures": (Path(__file__).parent.parent / "docs" / "figures", "folder for the figures"),
}


def measure(options: Namespace) -> dict[str, Any]:
    return {"tasks": {name: of_task(name, options) for name in options.tasks}}


def of_task(name: str, options: Namespace) -> dict[str, Any]:
    task = TASKS[name](cache=CACHE / f"{name}.safetensors")
    risk = task.risk()
    candidates = risk.on(task.candidates)[: options.candidates]
    curve = cp.concentration_curve(
        risk, candidates, sigma=options.sigma, dim=options.dim, num_probes=options.num_probes
    )
    print(curve, flush=True)
    draw(curve, options.figures / f"concentration_{name}.png")
    return {
        "k": len(risk),
        "num_params": risk.num_params,
        "num_candidates": len(candidates),
        "num_probes": options.num_probes,
        **curve.to_json(),
    }


def draw(curve: cp.ConcentrationCurve, path: Path) -> None:
    try:
        figure = plot_concentration(curve)
    except cp.MissingExtraError as error:
        print(f"No figure: {error}")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def table(result: dict[str, Any]) -> str:
    return page(result, *(part for name, task in result["tasks"].items() for part in of_shares(name, task)))


def of_shares(name: str, task: dict[str, Any]) -> tuple[str, str]:
    """What was measured, and a table of shares by subspace and number of directions."""
    dims = task["dims"]
    head = f"| directions | {' | '.join(f'shape, D = {d}' for d in dims)} | criterion, D = {dims[-1]} |"
    rows = [row(space, shares, dims) for space, shares in task["subspaces"].items()]
    null = f"| null, D / N | {' | '.join(f'{v:.1e}' for v in task['null'])} | |"
    sizes = f"N = {task['num_params']}, k = {task['k']}, {task['num_candidates']} next examples"
    return f"{name}: {sizes}, sigma = {task['sigma']:g}", markdown(head, [*rows, null])


def row(space: str, shares: dict[str, Any], dims: list[int]) -> str:
    """One subspace; its name says how many of the directions are certified where not all are."""
    shape = list(zip(shares["shape"], shares["shape_stderr"], strict=True))
    shown = max(d for d, (share, _) in zip(dims, shape, strict=True) if share is not None)
    certified = "" if shares["certified"] >= shown else f" ({shares['certified']} of {shown} certified)"
    cells = ["" if share is None else f"{share:.2g} ± {error:.1g}" for share, error in shape]
    end, error = shares["criterion"][-1], shares["criterion_stderr"][-1]
    return f"| {space}{certified} | {' | '.join(cells)} | {'' if end is None else f'{end:.4g} ± {error:.1g}'} |"


BENCHMARK = Benchmark("concentration", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
