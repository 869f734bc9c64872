"""How long an analysis will take on this machine, from its parts on a few examples."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from curvprobe.analysis.stages import CONTROLLED_DRAWS, FULL_SPACE_PRODUCTS, VALIDITY_CANDIDATES, VALIDITY_DRAWS
from curvprobe.analysis.stationarity import DESCENT_STEPS
from curvprobe.curvature.matrix import hessian
from curvprobe.probing.joining import Joining
from curvprobe.probing.laws import IsotropicProbe
from curvprobe.probing.monte_carlo import probe_increments
from curvprobe.probing.validity import FIRST_DRAWS
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.subspace.gradients import gradient_norms
from curvprobe.subspace.projection import project
from curvprobe.subspace.spaces import Subspace

SPENT = 2.0
"""Seconds to be spent on a part, about."""

DRAWS_TIMED = 4
"""Monte-Carlo draws that are timed."""

DRAWS, OF_VALIDITY, OF_PICTURE = 2 * 64, 6 * VALIDITY_DRAWS + 6 * FIRST_DRAWS, 21**2
"""Displaced points of an analysis: of both Monte Carlos by default, of the validity over its grid (the first draws
settle half of the sigmas), of the picture."""

MORE_PRODUCTS = FULL_SPACE_PRODUCTS + CONTROLLED_DRAWS // 2 + DESCENT_STEPS
"""Hessian products of an analysis besides those of its eigenspace: one for a mirrored pair of draws, and those by which
the solution is judged."""


@dataclass(frozen=True)
class Duration:
    """Seconds of an analysis, by its parts.

    Attributes:
        num_products: Hessian products that it is expected to take; the spectrum may ask for fewer, or twice as many.
        products, gradients, projection, monte_carlo: seconds; the gradients are those of single examples, by which
            the solution is judged to be a minimum and the candidates are described.
    """

    num_products: int
    products: float
    gradients: float
    projection: float
    monte_carlo: float

    def __str__(self) -> str:
        whole = self.products + self.gradients + self.projection + self.monte_carlo
        return (
            f"an analysis takes about {_rough(whole)} on this machine: "
            f"{_rough(self.products)} for {self.num_products} Hessian products (the spectrum may ask for fewer, or "
            f"twice as many), {_rough(self.gradients)} for gradients of single examples, {_rough(self.projection)} for "
            f"projections, {_rough(self.monte_carlo)} for Monte Carlo"
        )


def time_needed(risk: EmpiricalRisk, num_candidates: int, dim: int) -> Duration:
    """Time the parts of an analysis on as many examples as some seconds allow, and extend them to all."""
    k = len(risk)
    num_products = (
        5 * dim + 10 + MORE_PRODUCTS
    )  # as for networks: 52 and 194 products for D = 10 and 45 (docs/benchmarks.md)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(risk.num_params, dim, generator=generator, dtype=risk.dtype, device="cpu").to(risk.device)
    whole_graph_kept = k <= risk.microbatch_size

    def product(rows: int) -> float:
        matrix = hessian(risk[:rows])
        first = _seconds(lambda: matrix @ vectors[:, 0])
        return _seconds(lambda: matrix @ vectors[:, 0]) if whole_graph_kept else first

    def gradients(rows: int) -> float:
        return _seconds(lambda: gradient_norms(risk[:rows]))

    def projection(rows: int) -> float:
        return _seconds(lambda: project(risk[:rows], Subspace(vectors)))

    def draw(rows: int) -> float:
        joining = Joining(risk[:rows], risk[:1])
        return _seconds(lambda: probe_increments(joining, IsotropicProbe(1e-3), DRAWS_TIMED, 0)) / DRAWS_TIMED

    return Duration(
        num_products,
        num_products * k * seconds_an_example(product, min(k, risk.microbatch_size)),
        (k + num_candidates) * seconds_an_example(gradients, k),
        (k + num_candidates) * seconds_an_example(projection, k),
        ((DRAWS + OF_VALIDITY + OF_PICTURE) * k + OF_VALIDITY * min(num_candidates, VALIDITY_CANDIDATES))
        * seconds_an_example(draw, k),
    )


def seconds_an_example(work: Callable[[int], float], most: int) -> float:
    """Of ``work(rows)``, on ever more examples: up to all, or to as many as take a while."""
    rows = 1
    while True:
        seconds = work(rows)
        if seconds < 3 * SPENT:
            seconds = min(seconds, work(rows))  # again, without what is done once for a model
        if rows == most or seconds >= SPENT / 4:
            return seconds / rows
        rows = min(most, 4 * rows)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _rough(seconds: float) -> str:
    """Two digits at the most, in seconds, minutes or hours."""
    for size, unit in ((3600, "h"), (60, "min"), (1, "s")):
        if seconds >= 2 * size or size == 1:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1g} {unit}"
    raise AssertionError
