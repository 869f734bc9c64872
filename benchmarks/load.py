"""An eigenspace and projections of a small model beside other work: on one thread, as little work is done, and on all.

Other processes do nothing but count. Medians; the load is what these processes make, not what the system counts.
Run: python benchmarks/load.py
"""

import multiprocessing
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from benchmark import Benchmark, markdown, page, shared
from models import mlp

import curvprobe as cp
from curvprobe.runtime import threads

OPTIONS = {**shared(dim=10, repeats=9), "others": (5, "processes beside it")}
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
    return {"others": options.others, "threads": torch.get_num_threads(), "dim": options.dim, "rows": rows}


def table(result: dict[str, Any]) -> str:
    head = "| | threads | idle | beside other work | times as long |"
    rows = [
        f"| {name} | {way} | {row[f'{way}, idle']:.3g} s | {row[f'{way}, beside']:.3g} s "
        f"| {row[f'{way}, beside'] / row[f'{way}, idle']:.1f} |"
        for name, row in result["rows"].items()
        for way in ("one", "all")
    ]
    note = f"digits, D = {result['dim']}, {result['others']} other processes, all is {result['threads']} threads"
    return page(result, markdown(head, rows), note=note)


BENCHMARK = Benchmark("load", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
