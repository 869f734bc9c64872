"""Parts of the work on an accelerator, each beside the way that a processor takes: sums, draws, projections.

Inner products of 64 vectors of 36 million numbers in float32 with one more, a random vector of that length, and the
projections of a thousand digits. Medians, after one call that is not counted. Run: python benchmarks/gpu_parts.py
"""

from argparse import Namespace
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from benchmark import Benchmark, markdown, mebibytes, page, shared
from models import mlp

import curvprobe as cp
from curvprobe.curvature.nodewise.examples import NODEWISE
from curvprobe.curvature.per_example import TOGETHER
from curvprobe.experiments.machine import peak_bytes, timed
from curvprobe.numerics.linalg import inner, quick_inner
from curvprobe.numerics.noise import normal_vector

OPTIONS = {
    "device": ("cuda" if torch.cuda.is_available() else "cpu", "where both run"),
    "length": (36_000_000, "of the vectors"),
    "vectors": (64, "how many of them"),
    **shared(dim=45, repeats=5),
}


def measure(options: Namespace) -> dict[str, Any]:
    return {"rows": [*of_vectors(options), of_digits(options)]}


def of_vectors(options: Namespace) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    rows = torch.randn(options.vectors, options.length, device=device)
    vector, generator = torch.randn(options.length, device=device), torch.Generator()

    def drawn_by_the_host() -> torch.Tensor:
        return torch.randn(options.length, generator=generator, device="cpu").to(device)

    def drawn() -> torch.Tensor:
        return normal_vector(generator, options.length, dtype=torch.float32, device=device)

    exact = inner(rows, vector)
    off = float(((quick_inner(rows, vector) - exact).abs() / (rows.norm(dim=1) * vector.norm())).max())
    return [
        {
            **ways(
                options, "inner products", "in float64", lambda: inner(rows, vector), lambda: quick_inner(rows, vector)
            ),
            "off": off,
        },
        ways(options, "a random vector", "drawn by the host", drawn_by_the_host, drawn),
    ]


def of_digits(options: Namespace) -> dict[str, Any]:
    task, device = mlp(), torch.device(options.device)
    data = tuple(part.to(device) for part in task.data)
    return of_projection(options, "projection of 1000 digits", cp.EmpiricalRisk(task.model.to(device), task.loss, data))


def of_projection(options: Namespace, name: str, risk: cp.EmpiricalRisk) -> dict[str, Any]:
    subspace = cp.random_subspace(risk, options.dim)
    verdicts = risk.probed.fast_paths.verdicts

    def by(operations: bool) -> Callable[[], torch.Tensor]:
        def project() -> torch.Tensor:
            verdicts.update({NODEWISE: operations, TOGETHER: True})
            return cp.project(risk, subspace).hessian

        return project

    products, swept = by(False)(), by(True)()
    row = ways(options, name, "by products", by(False), by(True))
    return {**row, "off": float((products - swept).norm() / products.norm()), "by_operations": verdicts[NODEWISE]}


def ways(options: Namespace, name: str, other: str, slow: Callable[[], Any], fast: Callable[[], Any]) -> dict[str, Any]:
    """Median seconds of two ways, in turns, and the most memory that tensors held in each."""
    device = torch.device(options.device)
    seconds: dict[str, list[float]] = {"slow": [], "fast": []}
    peaks = {}
    for turn in range(options.repeats + 1):
        for way, function in (("slow", slow), ("fast", fast)):
            _, taken = timed(device, function)
            peaks[way] = peak_bytes(device)
            if turn:
                seconds[way].append(taken)
    row = {
        "name": name,
        "other": other,
        "seconds": {way: median(found) for way, found in seconds.items()},
        "peak_bytes": peaks,
    }
    print(row, flush=True)
    return row


def table(result: dict[str, Any]) -> str:
    head = "| | the other way | it takes | memory | curvprobe | memory | times as fast | apart |"
    return page(result, markdown(head, map(line, result["rows"])))


def line(row: dict[str, Any]) -> str:
    slow, fast = (1000 * row["seconds"][way] for way in ("slow", "fast"))
    memory = {way: "" if peak is None else mebibytes(peak) for way, peak in row["peak_bytes"].items()}
    off = f"{row['off']:.0e}" if "off" in row else ""
    cells = (row["name"], row["other"], f"{slow:.3g} ms", memory["slow"], f"{fast:.3g} ms", memory["fast"])
    return f"| {' | '.join(cells)} | **{slow / fast:.1f}** | {off} |"


BENCHMARK = Benchmark("gpu_parts", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
