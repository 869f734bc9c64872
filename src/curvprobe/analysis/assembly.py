"""From what the stages have found to the frozen result, by small linear algebra."""

from __future__ import annotations

import math
import platform
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from curvprobe.analysis.concentration import ConcentrationCurve
from curvprobe.analysis.examination import Examination
from curvprobe.analysis.law_table import LawTable
from curvprobe.analysis.result import Analysis
from curvprobe.analysis.spectrum import Spectrum
from curvprobe.analysis.stages import CONTROLLED_DRAWS, VALIDITY_CANDIDATES, Job
from curvprobe.criteria.decay import decay_curve
from curvprobe.criteria.drawn import also_drawn, draw_error
from curvprobe.criteria.estimators import (
    Estimate,
    control,
    corrected,
    gaussian_moment,
    model_error,
    quadratic_monte_carlo,
    summarise,
)
from curvprobe.criteria.expectation import expected_criterion
from curvprobe.criteria.increment import fresh_increments, increment, spaced_sizes
from curvprobe.criteria.ranking import rank_candidates
from curvprobe.criteria.row_errors import row_errors
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.criteria.sample_size import RequiredSampleSize, required_sample_size
from curvprobe.criteria.stationarity import Stationarity
from curvprobe.criteria.theory import theory_checks
from curvprobe.criteria.verdicts import QuadraticValidity
from curvprobe.probing.deltas import delta1
from curvprobe.probing.laws import SubspaceProbe
from curvprobe.probing.plane import Plane
from curvprobe.runtime.store import Store
from curvprobe.subspace.spaces import Eigenspace
from curvprobe.version import __version__

DECAY_POINTS = 60
"""Sample sizes of the decay curve when there are more."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What the stages have found."""

    examination: Examination
    space: Eigenspace
    sample: ProjectedSample
    fresh: ProjectedSample
    validity: QuadraticValidity
    sigma: float
    sigma_source: str
    judged: list[int]
    draws: Tensor
    isotropic: Tensor | None
    isotropic_model: Tensor | None
    full_space: Estimate | None
    norms: Tensor | None
    stationarity: Stationarity
    laws: LawTable | None
    concentration: ConcentrationCurve | None
    plane: Plane | None = None


def assemble(
    job: Job,
    seen: Seen,
    grid: list[float],
    tolerance: float | None,
    notes: list[str],
    config: dict[str, Any],
    store: Store,
) -> Analysis:
    """The result, by small linear algebra on what the stages have found."""
    risk, sample, fresh, sigma, k = job.risk, seen.sample, seen.fresh, seen.sigma, len(job.all_examples)
    return Analysis(
        p=job.settings.p,
        k=k,
        num_candidates=len(job.new),
        num_params=risk.num_params,
        dtype=str(risk.dtype).split(".")[-1],
        loss=job.all_examples.value(),
        gradient_norm=risk.probed.vectors.norm(risk.gradient()),
        held_out_loss=float(fresh.weight @ fresh.loss / fresh.weight.sum()) if len(fresh) > 1 else math.nan,
        spectrum=Spectrum.of(seen.space, job.settings.which, sample),
        validity=seen.validity,
        sigma=sigma,
        sigma_source=seen.sigma_source,
        **_first_candidate(job, seen),
        **_over_candidates(job, seen, tolerance, config["tolerance_on"]),
        stationarity=seen.stationarity,
        theory=theory_checks(sample, fresh[0], sigma, risk.num_params),
        laws=seen.laws,
        concentration=seen.concentration,
        ranking=rank_candidates(sample, fresh, sigma, gradient_norms=seen.norms),
        **_curves(seen, k, grid),
        examination=seen.examination,
        notes=(*notes, *_notes(seen)),
        config=_config(job, config),
        versions=_versions(),
        seconds=_seconds(store),
        subspace=seen.space,
        sample=sample,
        fresh=fresh,
        plane=seen.plane,
        drawn=None if job.whole is None else len(sample),
    )


def _curves(seen: Seen, k: int, grid: list[float]) -> dict[str, Any]:
    """The second-order criterion along the sample size, and at the whole sample along sigma."""
    ks = spaced_sizes(seen.sample, DECAY_POINTS)
    dim = seen.space.dim
    return {
        "decay": decay_curve(seen.sample, ks, seen.sigma, sorted({1, min(4, dim), dim}), fresh=seen.fresh),
        "shares": decay_curve(seen.sample, [k], grid, [dim], fresh=seen.fresh),
    }


def _seconds(store: Store) -> dict[str, float]:
    """What every stage took; a stage that was found took none."""
    return {name: 0.0 if s.found else float(f"{s.seconds:.3g}") for name, s in store.finished.items()}


def _first_candidate(job: Job, seen: Seen) -> dict[str, Any]:
    """Every estimate for the first candidate as the next example."""
    s, model, p = job.settings, increment(seen.sample, seen.fresh[0]), job.settings.p
    closed, draws = gaussian_moment(model, sigma=seen.sigma, p=p), seen.draws[:, 0]
    coordinates = SubspaceProbe(seen.space, seen.sigma).coordinates(s.num_probes, s.seed)
    wide: dict[str, Estimate | None] = dict.fromkeys(("isotropic", "isotropic_controlled", "isotropic_closed_form"))
    if seen.isotropic is not None:
        wide["isotropic"] = summarise(seen.isotropic, p, antithetic=True)
    if seen.isotropic is not None and seen.full_space is not None and seen.isotropic_model is not None:
        controlled = seen.isotropic[: min(s.num_probes, CONTROLLED_DRAWS)]
        wide["isotropic_controlled"] = corrected(seen.full_space, controlled, seen.isotropic_model)
        wide["isotropic_closed_form"] = seen.full_space
    found = {
        "closed_form": closed,
        "quadratic": quadratic_monte_carlo(model, sigma=seen.sigma, num_probes=s.num_probes, seed=s.seed, p=p),
        "direct": summarise(draws, p, antithetic=True),
        "controlled": control(closed, model, draws, coordinates),
    }
    if seen.sample.design is not None:
        own = draw_error(seen.sample, seen.fresh[0], seen.sigma)[:, 0]
        found = {name: also_drawn(estimate, own) for name, estimate in found.items()}
    return {
        "delta1": delta1(job.first.risk, job.first.new),
        **found,
        **wide,
        "surrogate_error": model_error(draws, model, coordinates),
        "errors": row_errors(
            seen.judged,
            min(len(seen.fresh), VALIDITY_CANDIDATES),
            next(fresh_increments(seen.sample, seen.fresh[seen.judged], [seen.sample.size])),
            seen.sigma,
            seen.draws,
            coordinates,
            p,
        ),
    }


def _over_candidates(job: Job, seen: Seen, tolerance: float | None, on: str) -> dict[str, Any]:
    """What is expected of the next example, and the sample size that a tolerance takes."""
    # One candidate says nothing of the others: the sample stands for them.
    sample, pool, sigma = seen.sample, seen.fresh if len(seen.fresh) > 1 else None, seen.sigma
    alone, overlapping, p = pool is None and len(sample) < 2, job.settings.allow_overlap, job.settings.p
    return {
        "expected": None if alone else expected_criterion(sample, pool, sigma, allow_overlap=overlapping, p=p),
        "doubling": None
        if alone or p != 2
        else expected_criterion(sample, pool, sigma, "double", allow_overlap=overlapping),
        "required": None if tolerance is None else _required(job, seen, pool, tolerance, on),
    }


def _required(job: Job, seen: Seen, pool: ProjectedSample | None, tolerance: float, on: str) -> RequiredSampleSize:
    """The required size; bounded from below only where the sample stands for examples to come.

    The weights were fitted to it: a network that interpolates needs one example by its own, and thousands by others.
    """
    found = required_sample_size(
        seen.sample,
        pool,
        seen.sigma,
        tolerance * abs(job.all_examples.value()) if on == "relative" else tolerance,
        of="shape" if on == "shape" else "total",
        validity=seen.validity,
        stationarity=seen.stationarity,
        allow_overlap=job.settings.allow_overlap,
    )
    if pool is not None or found.at_least is None:
        return found
    return replace(
        found,
        value=None,
        verdict="at least",
        interval=(found.interval[0], math.inf),
        assumptions=f"{found.assumptions}; these are the sample's own, to which the weights were fitted",
    )


def _notes(seen: Seen) -> list[str]:
    """What a reader should know of the checks and of the eigenspace."""
    space = seen.space
    notes, dim, last = seen.examination.doubts(), space.dim, float(space.eigenvalues[-1])
    if seen.sample.design is not None:
        notes.append(
            f"Estimated from {len(seen.sample):,} examples that were drawn of {seen.sample.size:,}; what is told is of "
            "all of these, with the error of the draw in the intervals. The eigenspace is that of as many others, and "
            "certified for them; the validity, the errors of rows and the rate bound are of what was drawn."
        )
    moving = seen.stationarity.refusal()
    if moving:
        notes.append(
            f"{moving[0].upper()}{moving[1:]}. What is printed is the landscape at a point that training leaves."
        )
    if not bool(space.converged.all()):
        notes.append(
            f"Only {int(space.converged.sum())} of {dim} eigenpairs converged; raise max_matvecs or lower dim."
        )
    if not space.cut_decided:
        notes.append(
            f"The cut after D = {dim} is not decided: eigenvalue {dim}, {last:.4g}, and the next, "
            f"{space.next_eigenvalue:.4g}, differ by less than a residual. Take another D, or a smaller tol."
        )
    elif space.next_eigenvalue > 0.9 * last > 0:
        notes.append(
            f"The cut after D = {dim} falls in a cluster: eigenvalue {dim} is {last:.4g} and the "
            f"next about {space.next_eigenvalue:.4g}. Another D would be a more stable subspace."
        )
    return notes


def _config(job: Job, more: dict[str, Any]) -> dict[str, Any]:
    """How the result was made."""
    s = job.settings
    named = dict(zip(("risk_key", "candidates_key"), job.keys, strict=True))
    return {
        **s.solver,
        "sigma": s.sigma,
        "p": s.p,
        "num_probes": s.num_probes,
        "allow_overlap": s.allow_overlap,
        "max_examples": s.max_examples,
        **more,
        "param_names": job.risk.param_names,
        "num_other_params": sum(p.numel() for p in job.risk.probed.module.parameters()) - job.risk.num_params,
        **named,
    }


def _versions() -> dict[str, str]:
    return {
        "curvprobe": __version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "machine": platform.machine(),
    }
