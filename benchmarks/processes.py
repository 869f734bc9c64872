"""Work that processes share: a product, an eigenspace and a projection of a small language model, over 1 and 2 of them.

Every number of processes in processes of its own, one thread each, and the largest once more with divided weights
(fully_shard). The model says what a product should take with W of them: the examples' time divided by W, and two
exchanges of the vector, whose time is measured in the same run; with divided weights, whose graph is kept, four. The
memory is the most that a process takes beyond what it held before, while it solves for the eigenspace; the model is the
basis and the result divided by W, and the examples of a microbatch. Run: python benchmarks/processes.py
"""

import math
import multiprocessing
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from benchmark import Benchmark, markdown, mebibytes, page, shared
from isolated import peak_memory, run_isolated
from models import MODELS
from torch.distributed.fsdp import fully_shard

import curvprobe as cp

EXCHANGES = 2
"""Of divided weights, whose graph is kept, in pairs of a gathering and a scattering, which take as long as two."""

OPTIONS = {
    "model": ("nanochat", f"what to measure on: {', '.join(MODELS)}"),
    **shared(k=16, dim=10, repeats=5),
    "worlds": ([1, 2], "numbers of processes"),
}


def measure(options: Namespace) -> dict[str, Any]:
    name = options.model
    sizes = (name, options.k, options.dim, options.repeats)
    rows = [over(world, *sizes, False) for world in options.worlds]
    rows += [over(max(options.worlds), *sizes, True)]
    return {"model": name, "k": options.k, "dim": options.dim, "rows": [against(row, rows[0]) for row in rows]}


def against(row: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    """A row beside what the model makes of that of one process."""
    expected = one["seconds"]["product"] / row["processes"] + row["seconds"]["exchanges"]
    return {
        **row,
        "speedup": {
            part: one["seconds"][part] / row["seconds"][part] for part in ("product", "eigenspace", "projection")
        },
        "model_seconds": expected,
        "eigenvalues_apart": max(abs(a / b - 1) for a, b in zip(row["eigenvalues"], one["eigenvalues"], strict=True)),
    }


def over(world: int, *arguments: Any) -> dict[str, Any]:
    """What the first of so many processes finds."""
    return run_isolated(lead, world, *arguments)  # type: ignore[no-any-return]


def lead(world: int, *arguments: Any) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        others = [context.Process(target=follow, args=(folder, rank, world, *arguments)) for rank in range(1, world)]
        for other in others:
            other.start()
        found = follow(folder, 0, world, *arguments)
        for other in others:
            other.join()
    return found


def follow(
    folder: str, rank: int, world: int, name: str, k: int, dim: int, repeats: int, divided: bool
) -> dict[str, Any]:
    torch.set_num_threads(1)
    meeting = Path(folder, "meeting")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    try:
        return of_process(name, k, dim, repeats, divided)
    finally:
        dist.destroy_process_group()


def of_process(name: str, k: int, dim: int, repeats: int, divided: bool) -> dict[str, Any]:
    task = MODELS[name](k)
    if divided:
        for layer in getattr(getattr(task.model, "model", None), "layers", ()):
            fully_shard(layer)
        fully_shard(task.model)
    risk = cp.EmpiricalRisk(task.model, task.loss, task.data, group=dist.group.WORLD)
    ranks, size = risk.ranks, risk.num_params
    H = cp.hessian(risk)
    rows = torch.randn(size, generator=torch.Generator().manual_seed(0))[:, None]
    rows = torch.cat([rows[part] for part in risk.space.part or [slice(size)]])

    def product() -> Any:
        return H.of_rows(rows) if ranks.several else H @ rows

    def exchanges() -> Any:
        whole = risk.space.gathered(rows) if ranks.several else rows
        return ranks.share_of_total(whole)

    product()  # with its checks
    times = EXCHANGES if divided else 1
    seconds = {"product": timed(product, repeats), "exchanges": times * timed(exchanges, repeats)}
    start = time.perf_counter()
    with peak_memory() as peak:
        space = cp.top_eigenspace(risk, dim=dim)
    seconds["eigenspace"] = time.perf_counter() - start
    start = time.perf_counter()
    cp.project(risk, space)
    seconds["projection"] = time.perf_counter() - start
    basis, vector, held = math.ceil(1.5 * dim) + 11, 4 * size, ranks.share(len(risk))
    examples = min(held.stop - held.start, risk.microbatch_size) * risk.footprint.example
    return {
        "processes": ranks.world,
        "divided": divided,
        "num_params": size,
        "products": space.num_matvecs,
        "eigenvalues": space.eigenvalues.tolist(),
        "seconds": seconds,
        "peak_bytes": peak.added,
        "model_bytes": (basis + dim) * vector // ranks.world + examples,
    }


def timed(action: Any, repeats: int) -> float:
    """Median seconds, from a common start."""
    taken = []
    for _ in range(repeats):
        dist.barrier()
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return median(taken)


def table(result: dict[str, Any]) -> str:
    of = f"{result['model']}, N = {result['rows'][0]['num_params']:,}, k = {result['k']}, D = {result['dim']}"
    head = (
        f"| processes ({of}) | product, s | the model says | of these exchanges | eigenspace, s | projection, s "
        "| speed-up of the three | peak a process | the model says |"
    )
    rows = (
        f"| {row['processes']}{', weights divided' if row['divided'] else ''} "
        f"| {row['seconds']['product']:.3g} | {row['model_seconds']:.3g} "
        f"| {row['seconds']['exchanges']:.2g} | {row['seconds']['eigenspace']:.3g} "
        f"| {row['seconds']['projection']:.3g} | {', '.join(f'{times:.2f}' for times in row['speedup'].values())} "
        f"| {mebibytes(row['peak_bytes'])} | {mebibytes(row['model_bytes'])} |"
        for row in result["rows"]
    )
    apart = max(row["eigenvalues_apart"] for row in result["rows"])
    note = f"{result['rows'][0]['products']} products; eigenvalues within {apart:.0e} of one process's, relative"
    return page({**result, "machine": {**result["machine"], "threads": 1}}, markdown(head, rows), note=note)


BENCHMARK = Benchmark("processes", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
