"""The report of a large run: its size, how long it takes to write, and how long to open in a browser.

A small network on many examples, since the page holds sums over these: k = 10,000, D = 45, 5,000 candidates. Opening is
from the start of the navigation to the last chart drawn, in headless Chromium, the median over the repeats; without a
browser that row is left out. Run: python benchmarks/report_page.py
"""

import importlib.util
import shutil
import statistics
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from benchmark import Benchmark, markdown, page, shared
from torch import nn

import curvprobe as cp
from curvprobe.experiments.machine import timed

CPU = torch.device("cpu")
OPTIONS = {"candidates": (5000, "tried as the next example"), **shared(k=10_000, dim=45, repeats=3)}


def large_run(options: Namespace) -> cp.Analysis:
    """Of a network that was fitted to noisy values."""
    torch.manual_seed(0)
    x = torch.randn(options.k + options.candidates, 6)
    y = (x[:, :1] * x[:, 1:2]).sin() + 0.1 * torch.randn(len(x), 1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x[: options.k]), y[: options.k])
        loss.backward()
        return loss

    optimizer.step(closure)
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[: options.k], y[: options.k]))
    return cp.analyze(risk, (x[options.k :], y[options.k :]), dim=options.dim, sigma=0.01, tolerance=1e-4)


def seconds_to_open(file: Path, repeats: int) -> float | None:
    """Until the last chart is drawn; None without a browser."""
    browser = shutil.which("chromium")
    if browser is None or importlib.util.find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    times = []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser)
        for _ in range(repeats):
            tab = opened.new_page()
            start = time.perf_counter()
            tab.goto(file.as_uri())
            tab.wait_for_selector("body[data-drawn=yes]", state="attached")
            times.append(time.perf_counter() - start)
            tab.close()
        opened.close()
    return statistics.median(times)


def measure(options: Namespace) -> dict[str, Any]:
    analysis = large_run(options)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        first = timed(CPU, analysis.to_html, file)[1]  # with the loading of its libraries
        again = [timed(CPU, analysis.to_html, file)[1] for _ in range(options.repeats)]
        size, opened = file.stat().st_size, seconds_to_open(file, options.repeats)
    return {
        "k": analysis.k,
        "dim": analysis.spectrum.dim,
        "candidates": analysis.num_candidates,
        "bytes": size,
        "first_seconds": first,
        "seconds": statistics.median(again),
        "open_seconds": opened,
    }


def table(result: dict[str, Any]) -> str:
    opened = "not measured" if result["open_seconds"] is None else f"{result['open_seconds']:.2g} s"
    rows = [
        f"| size | {result['bytes'] / 1e6:.2f} MB |",
        f"| written the first time in a process | {result['first_seconds']:.2g} s |",
        f"| written again | {result['seconds']:.2g} s |",
        f"| opened, all charts drawn | {opened} |",
    ]
    note = f"k = {result['k']}, D = {result['dim']}, {result['candidates']} candidates"
    return page(result, markdown("| the report | |", rows), note=note)


BENCHMARK = Benchmark("report_page", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
