"""Ours and the paper's procedure on the same model, data and machine: seconds, products and errors of each stage.

Stage I finds the top eigenspace, stage II the quadratic model of the increment, stage III its second moment. The two
sides run in turns. Residuals and orthogonality are recomputed for both in the same way, and the curvature B is held
against float64 in the same basis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from curvprobe.criteria.draws import standard_normal
from curvprobe.criteria.estimators import Estimate, control, gaussian_moment, quadratic_monte_carlo, summarise
from curvprobe.criteria.increment import QuadraticIncrement, increment
from curvprobe.curvature.matrix import hessian
from curvprobe.experiments import paper_procedure as procedure
from curvprobe.experiments.machine import peak_bytes, timed
from curvprobe.numerics.linalg import inner, norm
from curvprobe.probing.joining import Joining
from curvprobe.probing.laws import SubspaceProbe
from curvprobe.probing.monte_carlo import probe_increments
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.subspace.eigenspace import top_eigenspace
from curvprobe.subspace.projection import mean_projection, project
from curvprobe.subspace.spaces import Eigenspace, Subspace
from curvprobe.tasks import Task

SIGMAS = (1e-3, 1e-2)
"""Standard deviations of stage III."""


@dataclass(frozen=True)
class Sides:
    """One task as each side sees it: the sample and its first candidate as risks, and as a mean loss on two batches."""

    risk: EmpiricalRisk
    new: EmpiricalRisk
    mean: procedure.MeanLoss
    before: procedure.Batch
    after: procedure.Batch

    @property
    def device(self) -> torch.device:
        """Of both."""
        return self.risk.device


def both_sides(task: Task) -> Sides:
    """The task's sample and first candidate, for both."""
    risk = task.risk()
    candidate = procedure.take(task.candidates, slice(0, 1))
    before = procedure.move(task.data, risk.device)
    after = procedure.join(before, procedure.move(candidate, risk.device))
    return Sides(risk, risk.on(candidate), procedure.MeanLoss(task.model, task.loss), before, after)


def compare(
    task: Task,
    dim: int,
    *,
    num_probes: int = 64,
    repeats: int = 3,
    repeats_stage1: int = 1,
    seed: int = 0,
) -> dict[str, object]:
    """All three stages on the sample of a task and its first candidate."""
    sides = both_sides(task)
    stage1, risk, subspace, pairs = eigenspaces(task, sides, dim, repeats_stage1, seed)
    stage2, ours, theirs = increments(sides, risk, subspace, pairs, repeats)
    stage3 = moments(sides, subspace, pairs, ours, theirs, num_probes, seed)
    return {
        "k": len(sides.risk),
        "num_params": sides.risk.num_params,
        "dim": dim,
        "num_probes": num_probes,
        "stage1": stage1,
        "stage2": stage2,
        "stage3": stage3,
    }


# ---- stage I


def eigenspaces(
    task: Task, sides: Sides, dim: int, repeats: int, seed: int
) -> tuple[dict[str, object], EmpiricalRisk, Eigenspace, procedure.Eigenpairs]:
    """Ours with all that a user pays for: making the risk, its checks, and the certificates."""

    def find() -> tuple[EmpiricalRisk, Eigenspace]:
        risk = task.risk()
        return risk, top_eigenspace(risk, dim=dim, seed=seed)

    times, peak = [], {}
    for _ in range(repeats):
        # The paper's first: what ours tells the C library about freed memory speeds up what comes after it too.
        pairs, theirs = timed(sides.device, procedure.power_iteration, sides.mean, sides.before, dim, seed=seed)
        peak["paper"] = peak_bytes(sides.device)
        (risk, subspace), ours = timed(sides.device, find)
        peak["ours"] = peak_bytes(sides.device)
        times.append((ours, theirs))
    ours, theirs = (median(column) for column in zip(*times, strict=True))
    result = {
        "repeats": repeats,
        "ours": {
            "seconds": ours,
            "products": subspace.num_matvecs,
            "search_products": subspace.num_search_matvecs,
            **quality(sides.risk, subspace.basis, subspace.eigenvalues),
        },
        "paper": {
            "seconds": theirs,
            "products": pairs.num_matvecs,
            **quality(sides.risk, pairs.basis, pairs.eigenvalues),
        },
        "seconds_ratio": median(theirs / ours for ours, theirs in times),
        "products_ratio": pairs.num_matvecs / subspace.num_matvecs,
        "peak_bytes": peak,
    }
    return result, risk, subspace, pairs


def quality(risk: EmpiricalRisk, basis: Tensor, eigenvalues: Tensor) -> dict[str, object]:
    """Largest ``|H u - lambda u| / |lambda_1|`` by true products, and largest entry of ``U^T U - I``."""
    H = hessian(risk)
    values = eigenvalues.tolist()
    residuals = [norm(H @ u - value * u) / abs(values[0]) for u, value in zip(basis.T, values, strict=True)]
    gram = inner(basis.T, basis).cpu()
    return {
        "largest_residual": max(residuals),
        "orthogonality_error": float((gram - torch.eye(len(gram), dtype=torch.float64)).abs().max()),
        "eigenvalues": values,
    }


# ---- stage II


def increments(
    sides: Sides, risk: EmpiricalRisk, subspace: Subspace, pairs: procedure.Eigenpairs, repeats: int
) -> tuple[dict[str, object], QuadraticIncrement, procedure.Coefficients]:
    """The quadratic model of the increment, by the paper on all rows and on four rows a Hessian, and ours.

    ``risk`` is the one that stage I has worked on: it remembers its losses and its gradient from there.
    """
    exact = exact_curvature(sides, pairs.basis)
    arguments = (sides.mean, pairs.basis, sides.before, sides.after)
    times, subset_errors, peak = [], [], {}
    for repeat in range(repeats):
        full, full_seconds = timed(sides.device, procedure.coefficients, *arguments)
        peak["paper"] = peak_bytes(sides.device)
        subset, subset_seconds = timed(sides.device, procedure.coefficients_on_subsets, *arguments, seed=repeat)
        ours, our_seconds = timed(sides.device, our_increment, risk, sides.after, subspace)
        peak["ours"] = peak_bytes(sides.device)
        times.append((our_seconds, full_seconds, subset_seconds))
        subset_errors.append(relative_error(subset.curvature, exact))
    our_seconds, full_seconds, subset_seconds = (median(column) for column in zip(*times, strict=True))
    k, dim = len(sides.risk), subspace.dim
    result = {
        "repeats": repeats,
        "ours": {
            "seconds": our_seconds,
            "example_products": dim,
            "curvature_error": relative_error(ours.curvature, exact_curvature(sides, subspace.basis)),
        },
        "paper": {
            "seconds": full_seconds,
            "example_products": dim * (2 * k + 1),
            "curvature_error": relative_error(full.curvature, exact),
        },
        "paper_four_rows": {
            "seconds": subset_seconds,
            "example_products": dim * (min(4, k) + min(4, k + 1)),
            "curvature_error": median(subset_errors),
        },
        "seconds_ratio": median(theirs / ours for ours, theirs, _ in times),
        "four_rows_seconds_ratio": median(theirs / ours for ours, _, theirs in times),
        "peak_bytes": peak,
    }
    return result, ours, full


def our_increment(risk: EmpiricalRisk, after: procedure.Batch, subspace: Subspace) -> QuadraticIncrement:
    """What curvprobe does for it: D products with the new example alone."""
    new = risk.on(procedure.take(after, slice(len(risk), None)))
    return increment(mean_projection(risk, subspace), project(new, subspace))


def exact_curvature(sides: Sides, basis: Tensor) -> Tensor:
    """B in float64, in the span of a basis that need not be orthonormal."""
    subspace = Subspace(basis.double())
    sample = mean_projection(sides.risk.in_double(), subspace)
    return increment(sample, project(sides.new.in_double(), subspace)).curvature


def relative_error(found: Tensor, exact: Tensor) -> float:
    """In the Frobenius norm."""
    return float((found.double().cpu() - exact).norm() / exact.norm())


# ---- stage III


def moments(
    sides: Sides,
    subspace: Subspace,
    pairs: procedure.Eigenpairs,
    ours: QuadraticIncrement,
    theirs: procedure.Coefficients,
    num_probes: int,
    seed: int,
) -> list[dict[str, object]]:
    """The second moment at every sigma, and how many forward passes each side needs for the same standard error.

    The two sides draw in their own subspaces; ``same_subspace_forwards_ratio`` has direct Monte Carlo in ours.
    """
    return [_moments_at(sigma, sides, subspace, pairs, ours, theirs, num_probes, seed) for sigma in SIGMAS]


def _moments_at(
    sigma: float,
    sides: Sides,
    subspace: Subspace,
    pairs: procedure.Eigenpairs,
    ours: QuadraticIncrement,
    theirs: procedure.Coefficients,
    num_probes: int,
    seed: int,
) -> dict[str, object]:
    our_side, true, controlled = _our_moments(sigma, sides, subspace, ours, num_probes, seed)
    their_side = _their_moments(sigma, sides, pairs, theirs, num_probes, seed)
    forwards = float(their_side["forwards_per_draw"]) / float(our_side["forwards_per_draw"])
    return {
        "sigma": sigma,
        "ours": our_side,
        "paper": their_side,
        "seconds_ratio": their_side["monte_carlo_seconds"] / our_side["monte_carlo_seconds"],
        "forwards_ratio": (their_side["stderr"] / controlled.stderr) ** 2 * forwards,
        # The spread of single draws in our subspace, as if they were independent and not pairs.
        "same_subspace_forwards_ratio": (summarise(true).stderr / controlled.stderr) ** 2 * forwards,
    }


def _our_moments(
    sigma: float, sides: Sides, subspace: Subspace, ours: QuadraticIncrement, num_probes: int, seed: int
) -> tuple[dict[str, float], Tensor, Estimate]:
    """What ours tells and takes, the true increments behind it, and the controlled estimate."""
    law, joining = SubspaceProbe(subspace, sigma), Joining(sides.risk, sides.new)
    closed, closed_seconds = timed(sides.device, gaussian_moment, ours, sigma=sigma)
    _, quadratic_seconds = timed(sides.device, quadratic_monte_carlo, ours, sigma=sigma, num_probes=num_probes)
    true, seconds = timed(sides.device, probe_increments, joining, law, num_probes, seed)
    controlled = control(closed, ours, true, law.coordinates(num_probes, seed))
    side = {
        "closed_form": closed.value,
        "controlled": controlled.value,
        "stderr": controlled.stderr,
        "forwards_per_draw": len(sides.risk) + 1,
        "monte_carlo_seconds": seconds,
        "quadratic_seconds": quadratic_seconds,
        "closed_form_seconds": closed_seconds,
    }
    return side, true, controlled


def _their_moments(
    sigma: float, sides: Sides, pairs: procedure.Eigenpairs, theirs: procedure.Coefficients, num_probes: int, seed: int
) -> dict[str, float]:
    """What the paper's procedure tells and takes."""
    # Its draws are independent, ours come in pairs.
    draws = sigma * standard_normal(num_probes, pairs.basis.shape[1], seed).to(pairs.basis)
    closed, closed_seconds = timed(sides.device, procedure.closed_form, theirs, sigma)
    _, quadratic_seconds = timed(sides.device, procedure.quadratic_increments, theirs, draws)
    steps = (pairs.basis @ z for z in draws)
    direct, seconds = timed(sides.device, procedure.direct_increments, sides.mean, sides.before, sides.after, steps)
    squares = direct.double().square()
    return {
        "closed_form": closed,
        "direct": float(squares.mean()),
        "stderr": float(squares.std()) / math.sqrt(num_probes),
        "forwards_per_draw": 2 * len(sides.risk) + 1,
        "monte_carlo_seconds": seconds,
        "quadratic_seconds": quadratic_seconds,
        "closed_form_seconds": closed_seconds,
    }
