"""An eigenspace and projections of a small model beside other work: on one thread, as little work is done, and on all.

Other processes do nothing but count. Medians; the load is what these processes make, not what the system counts.
Besides, what threads that wait passively cost a product of the NanoChat on an idle machine.
Run: python benchmarks/load.py
"""

import multiprocessing
import os
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from benchmark import Benchmark, markdown, page, shared
from isolated import run_isolated
from models import mlp, nanochat

import curvprobe as cp
from curvprobe.runtime import threads

OPTIONS = {
    **shared(dim=10, repeats=9),
    "others": (5, "processes beside it"),
    "turns": (3, "of processes that wait actively and passively; none leaves them out"),
}
WORK = {
    "eigenspace": lambda risk, dim: cp.top_eigenspace(risk, dim=dim),
    "projections": lambda risk, dim: cp.project(risk, cp.random_subspace(risk, dim)),
}


def count() -> None:
    """Forever."""
    while True:
        pass


@contextmanager
def beside(others: int) -> Iterator[None]:
    """So many other processes at work."""
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=count, daemon=True) for _ in range(others)]
    for process in started:
        process.start()
    time.sleep(2)
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.join()


def product_seconds(repeats: int) -> float:
    """Of the NanoChat, on all threads."""
    risk = nanochat().risk()
    matrix, vector = cp.hessian(risk), torch.randn(risk.num_params)
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        _ = matrix @ vector
        found.append(time.perf_counter() - start)
    return median(found[1:])


def waiting(options: Namespace) -> dict[str, list[float]]:
    """Seconds of a product by how threads wait, in processes of their own."""
    found: dict[str, list[float]] = {"active": [], "passive": []}
    for _ in range(options.turns):
        for policy, seconds in found.items():
            os.environ.pop("OMP_WAIT_POLICY", None)
            if policy == "passive":
                os.environ["OMP_WAIT_POLICY"] = policy
            seconds.append(run_isolated(product_seconds, options.repeats))
    os.environ.pop("OMP_WAIT_POLICY", None)
    return found


def measure(options: Namespace) -> dict[str, Any]:
    risk, little = mlp().risk(), threads.LITTLE
    risk.losses()
    rows: dict[str, dict[str, float]] = {name: {} for name in WORK}
    for others in (0, options.others):
        with beside(others):
            for way, limit in (("one", little), ("all", -1.0)):
                threads.LITTLE = limit
                for name, work in WORK.items():
                    work(risk, options.dim)
                    found = []
                    for _ in range(options.repeats):
                        start = time.perf_counter()
                        work(risk, options.dim)
                        found.append(time.perf_counter() - start)
                    rows[name][f"{way}, {'idle' if others == 0 else 'beside'}"] = median(found)
    threads.LITTLE = little
    found = {"waiting": waiting(options)} if options.turns else {}
    return {**found, "others": options.others, "threads": torch.get_num_threads(), "dim": options.dim, "rows": rows}


def table(result: dict[str, Any]) -> str:
    head = "| | threads | idle | beside other work | times as long |"
    rows = [
        f"| {name} | {way} | {row[f'{way}, idle']:.3g} s | {row[f'{way}, beside']:.3g} s "
        f"| {row[f'{way}, beside'] / row[f'{way}, idle']:.1f} |"
        for name, row in result["rows"].items()
        for way in ("one", "all")
    ]
    note = f"digits, D = {result['dim']}, {result['others']} other processes, all is {result['threads']} threads"
    if "waiting" in result:
        seconds = result["waiting"]
        cost = median(p / a for a, p in zip(seconds["active"], seconds["passive"], strict=True)) - 1
        note += (
            f"; threads that wait passively make a product of the NanoChat {100 * cost:.0f} % longer on an idle machine"
        )
    return page(result, markdown(head, rows), note=note)


BENCHMARK = Benchmark("load", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
