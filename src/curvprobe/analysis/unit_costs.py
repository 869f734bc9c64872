"""What the parts of an analysis cost on this machine: measured on some of the examples, extended to all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from curvprobe.analysis.examination import AT_CONSTRUCTION, examine_candidates, examine_model
from curvprobe.analysis.stages import VALIDITY_DRAWS, Job
from curvprobe.curvature.matrix import hessian
from curvprobe.curvature.nodewise.examples import Sweeps
from curvprobe.curvature.second_derivatives import check_second_derivatives
from curvprobe.eigensolver.doubt import ConvergenceWarning
from curvprobe.eigensolver.lanczos import LEAN, lanczos
from curvprobe.probing.laws import IsotropicProbe
from curvprobe.risk.displaced import displaced_losses
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.risk.fast_paths import FastPaths
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Known
from curvprobe.subspace.eigenspace import plan_memory, top_eigenspace
from curvprobe.subspace.gradients import gradient_norms
from curvprobe.subspace.projection import project
from curvprobe.subspace.spaces import Subspace

SPENT = 0.3
"""Seconds of a part from which on no more examples are tried."""

AGAIN = 3.0
"""Seconds of a part up to which it is measured twice: the first time is longer by what is done once for a model."""

SOLVED = 3.0
"""Seconds that an eigenspace of some of the examples may take; it tells how many products that of all takes."""

FEWEST = 24
"""Examples of which an eigenspace says something of all."""

SPREAD = (0.7, 1.4)
"""Products of an eigenspace of all examples, over those of some: for 1/16 to 1/2 of the examples of four networks what
was seen lies between. Where eigenvalues repeat in the Hessian of all examples only, it may be less."""

LARGE_VECTOR = 2**20
"""Numbers of a vector on which the solver's own work is timed, at most."""


@dataclass(frozen=True)
class Line:
    """Seconds of a part by the number of examples: what it takes anyway, and for each."""

    fixed: float
    each: float

    def of(self, rows: int, at_once: int) -> float:
        """Of so many examples, in parts of at most ``at_once``."""
        whole, rest = divmod(rows, at_once)
        return whole * (self.fixed + at_once * self.each) + (self.fixed + rest * self.each if rest else 0.0)


@dataclass(frozen=True)
class UnitCosts:
    """Seconds of the parts of an analysis, and what they hold.

    Attributes:
        check: of the check of second derivatives, once for a model.
        graph: of the first derivatives of the sample, as a graph.
        product: along one direction through it.
        candidate_graph, candidate_product: the same on the first candidate.
        beside: of the eigensolver for each product, beside it.
        num_products: of the eigenspace, from and to.
        draw: of a random vector of the parameters' length.
        losses: by examples, of a displaced point.
        projected: by examples, of a projection.
        projected_bytes: that an example takes in it.
        gradients: by examples, of single examples' gradients.
        examination: of the sample and the candidates.
    """

    check: float
    graph: float
    product: float
    candidate_graph: float
    candidate_product: float
    beside: float
    num_products: tuple[int, int]
    draw: float
    losses: Line
    projected: Line
    projected_bytes: int
    gradients: Line
    examination: float


def measure(job: Job) -> UnitCosts:
    """Measure every part on as many examples as some seconds allow. The job's own risks learn nothing of it."""
    risk = _with(job.risk, _unlearnt(job.risk.probed))
    new = _with(job.new, risk.probed)
    dim, k = job.settings.dim, len(risk)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(risk.num_params, dim, generator=generator, dtype=risk.dtype, device="cpu").to(risk.device)
    with risk.few_threads():
        check = seconds_of(lambda: check_second_derivatives(risk, "hessian"))
        solving = plan_memory(risk, dim)[0]
        most = min(k, solving.microbatch_size)
        graph, product = lines(lambda rows: _product(spread(risk, rows), vectors[:, 0]), most)
        alone = [min(pair) for pair in zip(*(_product(new[:1], vectors[:, 0]) for _ in range(2)), strict=True)]
        beside = _beside(risk, dim)
        along = product.of(k, solving.microbatch_size)
        block = torch.stack(list(IsotropicProbe(1e-3).displacements(risk, _points(job), 0)))
        (losses,) = lines(lambda rows: (_losses(spread(risk, rows), block),), most)
        (projected,) = lines(lambda rows: (seconds_of(lambda: project(spread(risk, rows), Subspace(vectors))),), k)
        (gradients,) = lines(lambda rows: (seconds_of(lambda: gradient_norms(spread(risk, rows))),), k)
        return UnitCosts(
            check=check,
            graph=graph.of(k, solving.microbatch_size),
            product=along,
            candidate_graph=alone[0],
            candidate_product=alone[1],
            beside=beside,
            num_products=_num_products(job, risk, product, beside),
            draw=min(seconds_of(lambda: list(IsotropicProbe(1.0).displacements(risk, 2, 0))) for _ in range(2)) / 2,
            losses=losses,
            projected=projected,
            projected_bytes=_projected_bytes(risk, vectors),
            gradients=gradients,
            examination=_examination(risk, new, losses),
        )


def _unlearnt(model: ProbedModel) -> ProbedModel:
    """The same model with a record of its own, in which nothing has been found out that an analysis finds out."""
    passed = {name: said for name, said in model.passed.items() if name in AT_CONSTRUCTION}
    return replace(model, fast_paths=FastPaths(), passed=passed, doubts={})


def _with(risk: EmpiricalRisk, model: ProbedModel) -> EmpiricalRisk:
    """The risk of this model on the same examples, of which nothing is remembered."""
    sample = replace(risk.sample, known=Known())
    return EmpiricalRisk.of(model, sample, risk.budget, risk.given_microbatch_size, risk.microbatch_size)


def spread(risk: EmpiricalRisk, rows: int) -> EmpiricalRisk:
    """So many of the examples, from all over the sample, with nothing remembered of them."""
    k = len(risk)
    chosen = risk if rows == k else risk[[i * (k - 1) // max(1, rows - 1) for i in range(rows)]]
    return _with(chosen, risk.probed)


def lines(work: Callable[[int], tuple[float, ...]], most: int) -> tuple[Line, ...]:
    """Of the parts of ``work(rows)``, in seconds, on ever more examples: up to all, or to as many as take a while."""
    rows, fewer, before = 1, 0, tuple[float, ...]()
    while True:
        found = work(rows)
        if sum(found) < AGAIN:
            found = tuple(min(pair) for pair in zip(found, work(rows), strict=True))
        if rows == most or sum(found) >= (SPENT if fewer else 4 * SPENT):
            return tuple(_line(a, fewer, b, rows) for a, b in zip(before if fewer else found, found, strict=True))
        before, fewer, rows = found, rows, min(most, 4 * rows)


def _line(before: float, fewer: int, seconds: float, rows: int) -> Line:
    """Through two points; of one only, or of noise, through the origin or level."""
    each = (seconds - before) / (rows - fewer) if fewer else seconds / rows
    each = min(max(each, 0.0), seconds / rows)
    return Line(seconds - each * rows, each)


def seconds_of(work: Callable[[], object]) -> float:
    """That it takes, on an accelerator to its end."""
    start = perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - start


def _product(risk: EmpiricalRisk, vector: Tensor) -> tuple[float, float]:
    """Seconds of a graph, and of a product through it."""
    matrix = hessian(risk)
    first = seconds_of(lambda: matrix @ vector)
    later = min(seconds_of(lambda: matrix @ vector) for _ in range(2))
    return max(first - later, 0.0), later


def _losses(risk: EmpiricalRisk, block: Tensor) -> float:
    """Seconds of a displaced point, once the fast way has been compared."""
    displaced_losses(risk, block, finite=False)
    return seconds_of(lambda: displaced_losses(risk, block, finite=False)) / len(block)


def _points(job: Job) -> int:
    """Displaced points that are evaluated together, as in the validity of the quadratic model."""
    risks = (job.risk, job.new)
    return min(VALIDITY_DRAWS, *(one.budget.points_at_once(min(len(one), one.microbatch_size)) for one in risks))


def _beside(risk: EmpiricalRisk, dim: int) -> float:
    """Seconds of the eigensolver for each product, beside it: of a solve in which products take nothing."""
    size = min(risk.num_params, LARGE_VECTOR)
    scale = torch.linspace(1, 0, size, dtype=risk.dtype, device=risk.device)[:, None]
    few, count = min(dim, size), min(size, dim + LEAN)

    def solve() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            lanczos(lambda x: scale * x, size, dim=few, max_matvecs=count, dtype=risk.dtype, device=risk.device)

    return min(seconds_of(solve) for _ in range(2)) / count * risk.num_params / size


def _num_products(job: Job, risk: EmpiricalRisk, product: Line, beside: float) -> tuple[int, int]:
    """Hessian products of the eigenspace, from and to: by that of some of the examples, which is nearly as hard."""
    s, k = job.settings, len(risk)
    most = s.max_matvecs or max(1000, 50 * s.dim)
    expected = 5 * s.dim + 20
    affordable = (SOLVED / expected - beside - product.fixed) / max(product.each, 1e-12)
    rows = min(k, risk.microbatch_size, int(max(0.0, affordable)))
    by_rule = min(most, 5 * s.dim // 2 + 10), min(most, 4 * s.dim + 30)
    if rows < min(k, FEWEST):
        return by_rule
    limit = min(most, max(s.dim, 4 * expected))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = top_eigenspace(spread(risk, rows), s.dim, which=s.which, tol=s.tol, seed=s.seed, max_matvecs=limit)
    count = found.num_matvecs
    if count >= limit - 2 and limit < most:  # not done
        return count, most
    if rows == k:
        return count, count
    return min(most, int(SPREAD[0] * count)), min(most, int(SPREAD[1] * count) + 1)


def _projected_bytes(risk: EmpiricalRisk, vectors: Tensor) -> int:
    """That an example takes as it is projected operation by operation; 0 where the model has an unknown one."""
    try:
        with risk.undisturbed():
            return Sweeps.along(risk.probed, vectors).bytes_per_example(risk.sample.read(0, 1))
    except Exception:  # whatever a rule raises; the projection itself goes another way then
        return 0


def _examination(risk: EmpiricalRisk, new: EmpiricalRisk, losses: Line) -> float:
    """Seconds of the findings that an analysis keeps."""
    few, some = spread(risk, min(len(risk), FEWEST)), new[: min(len(new), FEWEST)]
    seconds = seconds_of(lambda: (examine_model(few), examine_candidates(few, some)))
    return seconds + losses.each * max(0, len(new) - len(some))
