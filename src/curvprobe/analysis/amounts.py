"""How much work each stage of an analysis is, and what that takes in seconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from curvprobe.analysis.stages import (
    CONCENTRATION_CANDIDATES,
    CONTROLLED_DRAWS,
    FULL_SPACE_PRODUCTS,
    VALIDITY_CANDIDATES,
    VALIDITY_DRAWS,
    Job,
)
from curvprobe.analysis.stationarity import DESCENT_STEPS, SCALES
from curvprobe.analysis.unit_costs import UnitCosts
from curvprobe.criteria.draws import in_pairs
from curvprobe.criteria.ranking import SHOWN
from curvprobe.eigensolver.lanczos import LEAN
from curvprobe.probing.validity import FIRST_DRAWS
from curvprobe.risk.budget import VECTORS_IN_FLIGHT, VECTORS_PER_POINT
from curvprobe.subspace.eigenspace import plan_memory

Counts = tuple[int, int]
"""From and to."""

TRACES = 16
"""Products of a closed form in all parameters, where laws or subspaces are compared."""

LAWS, IN_A_SUBSPACE, OTHER_SUBSPACES = 7, 5, 6
"""Laws that are compared, those of them in a subspace, and subspaces that are compared with the eigenspace."""


@dataclass(frozen=True)
class Amount:
    """Work of a stage.

    Attributes:
        products: with the sample's Hessian, or another matrix of its kind.
        solves: eigenspaces among that work.
        alone: products with the first candidate's Hessian.
        projected: numbers of examples that are projected, for each time.
        gradients: examples that are differentiated alone.
        points: displaced points at which the sample's losses are taken.
        joined: examples whose losses are taken there too.
        draws: random vectors of the parameters' length.
        seconds: of what was measured as a whole.
    """

    products: Counts = (0, 0)
    solves: int = 0
    alone: int = 0
    projected: tuple[int, ...] = ()
    gradients: int = 0
    points: Counts = (0, 0)
    joined: Counts = (0, 0)
    draws: int = 0
    seconds: float = 0.0

    def losses(self, k: int) -> Counts:
        """Of single examples at displaced points, with a sample of k."""
        low, high = (points * (k + joined) for points, joined in zip(self.points, self.joined, strict=True))
        return low, high


def amounts(job: Job, costs: UnitCosts, num_sigmas: int, side: int) -> dict[str, Amount]:
    """Of every stage by its name, with so many sigmas of the validity and points along a side of the picture."""
    s, k, m = job.settings, len(job.risk), len(job.new)
    draws, controlled, few = s.num_probes, min(s.num_probes, CONTROLLED_DRAWS), min(m, VALIDITY_CANDIDATES)
    pairs = -(-controlled // 2) if in_pairs(s.num_probes) else controlled
    judged, first, last = min(m, few + SHOWN), min(draws, FIRST_DRAWS), min(draws, VALIDITY_DRAWS)
    # The first draws settle some of the sigmas; that which is taken and the next above it get all.
    validity = min(num_sigmas, 2) * last + max(0, num_sigmas - 2) * first, num_sigmas * last
    return {
        "eigenspace": Amount(costs.num_products, solves=1, seconds=costs.check),
        "sample": Amount(projected=(k,)),
        "candidates": Amount(projected=(m,)),
        "examination": Amount(seconds=costs.examination),
        "validity": Amount(points=validity, joined=(few, few)),
        "monte_carlo": Amount(points=(draws, draws), joined=(few, judged)),
        "isotropic": Amount(points=(draws, draws), joined=(1, 1), draws=draws),
        "isotropic_model": Amount((pairs, pairs), alone=pairs, draws=controlled),
        "full_space": Amount((FULL_SPACE_PRODUCTS,) * 2, alone=FULL_SPACE_PRODUCTS, draws=FULL_SPACE_PRODUCTS),
        "gradient_norms": Amount(gradients=m),
        "stationarity": Amount((1, DESCENT_STEPS), gradients=k, points=(2 * len(SCALES), 3 * len(SCALES))),
        "laws": _laws(job, costs),
        "concentration": _concentration(job, costs),
        "surface": Amount((2, 2), points=(side**2, side**2)),
    }


def _laws(job: Job, costs: UnitCosts) -> Amount:
    """Two eigenspaces; twice the closed form of each law in a subspace; and draws of every law."""
    dim, draws = job.settings.dim, job.settings.num_probes
    more = 2 * (IN_A_SUBSPACE - 1) * dim + (LAWS - IN_A_SUBSPACE) * TRACES
    low, high = (2 * count + more for count in costs.num_products)
    points = LAWS * draws, LAWS * draws
    alone = 2 * IN_A_SUBSPACE * dim + (LAWS - IN_A_SUBSPACE) * TRACES
    return Amount((low, high), solves=2, alone=alone, gradients=dim, points=points, joined=(1, 1), draws=LAWS * draws)


def _concentration(job: Job, costs: UnitCosts) -> Amount:
    """Four eigenspaces, of which the Hessian's bottom may take all that it is allowed; every subspace projected."""
    dim, m = job.settings.dim, min(len(job.new), CONCENTRATION_CANDIDATES)
    low, high = costs.num_products
    more = OTHER_SUBSPACES * dim + TRACES
    return Amount(
        (3 * low + more, 2 * high + 30 * dim + 10 + more),
        solves=4,
        projected=(1 + OTHER_SUBSPACES) * (m,),
        gradients=dim + TRACES * m,
        draws=TRACES,
    )


@dataclass(frozen=True)
class Price:
    """What work on a job takes, from what its parts cost."""

    job: Job
    costs: UnitCosts

    @cached_property
    def _solving(self) -> tuple[int, int, bool]:
        """Examples of the solver's microbatch, vectors of its basis, and whether these lie in the host's memory."""
        risk, dim = self.job.risk, self.job.settings.dim
        slim, size, device = plan_memory(risk, dim)
        return slim.microbatch_size, size or 3 * dim // 2 + LEAN, device != risk.device

    def seconds(self, work: Amount) -> tuple[float, float]:
        """From and to."""
        costs, k = self.costs, len(self.job.risk)
        both = work.seconds + work.draws * costs.draw + work.gradients * costs.gradients.each
        both += costs.gradients.fixed if work.gradients else 0.0
        both += work.alone * costs.candidate_product + (costs.candidate_graph if work.alone else 0.0)
        both += sum(costs.projected.of(rows, rows) for rows in work.projected)
        low, high = (
            both + self._products(products, work.solves) + points * self._point(k, joined)
            for products, points, joined in zip(work.products, work.points, work.joined, strict=True)
        )
        return low, high

    def _products(self, count: int, solves: int) -> float:
        """Of so many products: with one graph for all, where a microbatch holds the sample."""
        graphs = min(count, max(1, solves)) if len(self.job.risk) <= self._solving[0] else count
        beside = self.costs.beside * count if solves else 0.0
        return graphs * self.costs.graph + count * self.costs.product + beside

    def _point(self, k: int, joined: int) -> float:
        """Of the losses at a displaced point: the sample's, and those of the examples that join."""
        of = self.costs.losses.of
        return of(k, self.job.risk.microbatch_size) + (of(joined, self.job.new.microbatch_size) if joined else 0.0)

    def bytes(self, name: str, work: Amount) -> int:
        """At the most, beyond the model and the data; with the eigenspace, once it is found."""
        risk, foot, dim = self.job.risk, self.job.risk.footprint, self.job.settings.dim
        rows, basis, on_host = self._solving
        found = [0]
        if work.products[1] or name == "examination":
            found.append(min(len(risk), rows) * foot.example + VECTORS_IN_FLIGHT * foot.vector)
        if work.solves:
            vectors = VECTORS_IN_FLIGHT if on_host else basis + dim + 5
            found.append(min(len(risk), rows) * foot.example + vectors * foot.vector)
        for count in work.projected:
            each = self.costs.projected_bytes
            at_once = risk.budget.examples_swept(each) if each else risk.budget.examples_together()
            found.append(min(count, risk.microbatch_size, max(1, at_once)) * (each + foot.example))
        if work.gradients:
            at_once = min(work.gradients, risk.budget.examples_together(), risk.microbatch_size)
            found.append(at_once * (VECTORS_PER_POINT * foot.vector + foot.example) if at_once > 1 else foot.least)
        if work.points[1]:
            rows = min(len(risk), risk.microbatch_size)
            together = min(work.points[1], risk.budget.points_at_once(rows))
            found.append(together * (VECTORS_PER_POINT * foot.vector + rows * foot.activation))
        return max(found) + (0 if name == "eigenspace" else dim * foot.vector)
