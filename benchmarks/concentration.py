"""How much of one-sample deformation lives in the dominant curvature directions: the concentration curve.

On the digits MLP and a small language model, the share of the full-space signal that the first D directions of several
subspaces capture, with errors over the next examples, beside D / N. Run: python benchmarks/concentration.py
"""

import argparse
from pathlib import Path
from typing import Any

from machine import place, write

import curvprobe as cp
from curvprobe.experiments.machine import describe
from curvprobe.tasks.digits import digits
from curvprobe.tasks.text import text

RESULT = Path(__file__).parent / "results" / "concentration.json"
TASKS = {"digits": digits, "text": text}
FIGURES = Path(__file__).parent.parent / "docs" / "figures"
CACHE = Path(__file__).parent.parent / ".cache"


def measure(
    task: cp.Task, dim: int, sigma: float, num_candidates: int, num_probes: int
) -> tuple[dict[str, Any], cp.ConcentrationCurve]:
    risk = task.risk()
    candidates = risk.on(task.candidates)[:num_candidates]
    curve = cp.concentration_curve(risk, candidates, sigma=sigma, dim=dim, num_probes=num_probes)
    print(curve, flush=True)
    result = {
        "k": len(risk),
        "num_params": risk.num_params,
        "num_candidates": len(candidates),
        "num_probes": num_probes,
        **curve.to_json(),
    }
    return result, curve


def _label(space: str, shares: dict[str, Any], dims: list[int]) -> str:
    """The name, with how many of the directions are certified where not all are."""
    shown = max(d for d, share in zip(dims, shares["shape"], strict=True) if share is not None)
    certified = shares["certified"]
    return space if certified >= shown else f"{space} ({certified} of {shown} certified)"


def table(result: dict[str, Any]) -> str:
    lines: list[str] = []
    for name, task in result["tasks"].items():
        dims = task["dims"]
        lines += [
            f"{name}: N = {task['num_params']}, k = {task['k']}, {task['num_candidates']} next examples, sigma = "
            f"{task['sigma']:g}",
            "",
            "| directions | " + " | ".join(f"shape, D = {d}" for d in dims) + f" | criterion, D = {dims[-1]} |",
            "|---" * (len(dims) + 2) + "|",
        ]
        for space, shares in task["subspaces"].items():
            cells = zip(shares["shape"], shares["shape_stderr"], strict=True)
            end, error = shares["criterion"][-1], shares["criterion_stderr"][-1]
            last = "" if end is None else f"{end:.4g} ± {error:.1g}"
            lines.append(
                f"| {_label(space, shares, dims)} | "
                + " | ".join("" if v is None else f"{v:.2g} ± {e:.1g}" for v, e in cells)
                + f" | {last} |"
            )
        lines += ["| null, D / N | " + " | ".join(f"{v:.1e}" for v in task["null"]) + " | |", ""]
    return "\n".join([*lines, f"({place(result['machine'])}.)"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--dim", type=int, default=10)
    parser.add_argument("--sigma", type=float, default=1e-3)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--num-probes", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder for the figures")
    options = parser.parse_args(argv)
    tasks = {}
    for name in options.tasks:
        task = TASKS[name](cache=CACHE / f"{name}.safetensors")
        tasks[name], curve = measure(task, options.dim, options.sigma, options.candidates, options.num_probes)
        try:
            from curvprobe.plots import plot_concentration
        except ImportError:
            continue
        options.figures.mkdir(parents=True, exist_ok=True)
        plot_concentration(curve).savefig(options.figures / f"concentration_{name}.png", dpi=120)
    write(options.out, {"machine": describe(), "tasks": tasks})


if __name__ == "__main__":
    main()
