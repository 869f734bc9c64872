"""The whole job: from a trained model to certified criteria, stage by stage, into one frozen result."""

from __future__ import annotations

import math
import operator
import platform
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from curvprobe.analysis import stages
from curvprobe.analysis.concentration import ConcentrationCurve
from curvprobe.analysis.examination import Examination
from curvprobe.analysis.law_table import LawTable
from curvprobe.analysis.result import Analysis, Spectrum
from curvprobe.analysis.stages import CONTROLLED_DRAWS, Job, Settings
from curvprobe.analysis.stationarity import stationarity
from curvprobe.criteria.decay import decay_curve
from curvprobe.criteria.draws import check_sigma
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
from curvprobe.criteria.increment import increment
from curvprobe.criteria.ranking import rank_candidates
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.criteria.sample_size import check_request, required_sample_size
from curvprobe.criteria.theory import theory_checks
from curvprobe.criteria.verdicts import QuadraticValidity
from curvprobe.eigensolver.wanted import Which
from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.probing.deltas import delta1
from curvprobe.probing.laws import SubspaceProbe
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.runtime import progress
from curvprobe.runtime.digest import overlap
from curvprobe.runtime.store import Stage, Store
from curvprobe.subspace.eigenspace import plan_memory
from curvprobe.subspace.spaces import Eigenspace
from curvprobe.version import __version__

SIGMA_GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 2))
"""Standard deviations at which the quadratic model is judged: half decades from 1e-5 to 3.2."""

DECAY_POINTS = 60
"""Sample sizes of the decay curve when there are more."""

T = TypeVar("T")


def analyze(
    risk: EmpiricalRisk,
    candidates: Any = None,
    *,
    dim: int = 10,
    sigma: float | Literal["auto"] = "auto",
    which: Which = "algebraic",
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    num_probes: int = 64,
    tolerance: float | None = None,
    laws: bool = False,
    concentration: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    compile: bool = False,  # noqa: A002 - torch's word
    allow_overlap: bool = False,
) -> Analysis:
    """Measure how much the landscape around the solution still moves when one more example is added.

    The stages, in order: top-D eigenspace of the Hessian, projection of the sample and of the candidates onto it,
    validity of the quadratic model over sigma, Monte Carlo on the true loss, criteria.

    Args:
        risk: on the k examples that define the landscape.
        candidates: examples that the model was not trained on, in any form that :class:`EmpiricalRisk` takes, or a
            risk on them. None takes the sample's last example as the next one, and says so.
        dim: dimension D of the eigenspace.
        sigma: standard deviation of the probe in parameter units; "auto" takes the largest of a half-decade grid at
            which the quadratic model of the increment is validated.
        which, tol, max_matvecs: of the eigenspace, see :func:`top_eigenspace`.
        num_probes: Monte-Carlo draws.
        tolerance: RMS increment, in loss units, for which to tell the required sample size; None leaves it out.
        laws: also find the first candidate's criterion under other probing laws: two more eigenspaces.
        concentration: also find how much of the full-space signal the top-D directions and others capture: four more
            eigenspaces, on up to 100 candidates.
        seed: of everything random.
        out: folder for the finished stages and ``result.json``; a stage found there under the same model, data and
            settings is not computed again, and an eigenspace that was interrupted is continued.
        compile: compile the Hessian product, see :func:`hessian`.
        allow_overlap: take candidates that the sample holds too, by their content, and say how many: where equal rows
            are different examples (a few binary features, say), leaving them out would change the population.

    Returns:
        The frozen result.

    Raises:
        ValueError: for arguments that make no sense, or candidates that the sample holds too (see ``allow_overlap``).

    Example:
        >>> import torch, curvprobe as cp
        >>> x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[::2], x[::2].sin()))
        >>> analysis = cp.analyze(risk, (x[1::2], x[1::2].sin()), dim=3, tol=1e-6)
        >>> analysis.verdict, analysis.controlled.stderr < analysis.direct.stderr
        ('valid', True)
    """
    settings = _checked(dim, sigma, which, tol, max_matvecs, num_probes, seed, compile, allow_overlap)
    notes = [f"Parameters in {', '.join(risk.upcast_from)} were raised to float32."] if risk.upcast_from else []
    risk, new = _sample_and_candidates(risk, candidates, settings, notes)
    if tolerance is not None:
        check_request(tolerance, len(new) if len(new) > 1 else len(risk))
    store, job = Store.at(out), Job(risk, new, settings)
    engine = _engine(risk, settings)  # refuses a budget in which nothing fits, before any work
    grid = sorted({*SIGMA_GRID, *([] if settings.sigma == "auto" else [settings.sigma])})
    with progress.bar("analysis (stages)", 10 + laws + concentration) as advance:

        def result(stage: Stage[T]) -> T:
            found = store.result(stage)
            advance(1)
            return found

        space = result(stages.eigenspace(job, store.path("eigenspace.unfinished")))
        basis = stages.basis_key(space)
        sample = result(stages.sample(job, space, basis))
        fresh = result(stages.candidates(job, space, basis))
        examination = Examination.from_json(result(stages.examination(job)))
        validity = result(stages.validity(job, space, basis, sample, fresh, grid))
        chosen, source = _choose_sigma(settings.sigma, validity, notes)
        seen = _Seen(
            examination=examination,
            space=space,
            sample=sample,
            fresh=fresh,
            validity=validity,
            sigma=chosen,
            sigma_source=source,
            draws=result(stages.monte_carlo(job, space, basis, chosen)),
            isotropic=result(stages.isotropic(job, chosen)),
            isotropic_model=result(stages.isotropic_model(job, chosen)),
            full_space=result(stages.full_space(job, chosen)),
            norms=result(stages.norms(job)),
            laws=result(stages.laws(job, space, basis, chosen)) if laws else None,
            concentration=result(stages.concentration(job, space, basis, chosen)) if concentration else None,
        )
    config = {"tolerance": tolerance, "laws": laws, "concentration": concentration, "engine": engine}
    found = _analysis(job, seen, grid, tolerance, notes, config, store)
    store.write_result(found.to_json())
    return found


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the stages have found."""

    examination: Examination
    space: Eigenspace
    sample: ProjectedSample
    fresh: ProjectedSample
    validity: QuadraticValidity
    sigma: float
    sigma_source: str
    draws: Tensor
    isotropic: Tensor
    isotropic_model: Tensor
    full_space: Estimate
    norms: Tensor
    laws: LawTable | None
    concentration: ConcentrationCurve | None


def _analysis(
    job: Job,
    seen: _Seen,
    grid: list[float],
    tolerance: float | None,
    notes: list[str],
    config: dict[str, Any],
    store: Store,
) -> Analysis:
    """The result, by small linear algebra on what the stages have found."""
    risk, sample, fresh, sigma, k = job.risk, seen.sample, seen.fresh, seen.sigma, len(job.risk)
    ks = sorted({int(k) for k in torch.logspace(0, math.log10(k), DECAY_POINTS, device="cpu").round()})
    return Analysis(
        k=k,
        num_candidates=len(job.new),
        num_params=risk.num_params,
        dtype=str(risk.dtype).split(".")[-1],
        loss=risk.value(),
        gradient_norm=float(risk.gradient().double().norm()),
        spectrum=Spectrum.of(seen.space),
        validity=seen.validity,
        sigma=sigma,
        sigma_source=seen.sigma_source,
        **_first_candidate(job, seen),
        **_over_candidates(job, seen, tolerance),
        stationarity=stationarity(risk, seen.space, sample, fresh),
        theory=theory_checks(sample, fresh[0], sigma),
        laws=seen.laws,
        concentration=seen.concentration,
        ranking=rank_candidates(sample, fresh, sigma, gradient_norms=seen.norms),
        decay=decay_curve(sample, ks, sigma, sorted({1, min(4, seen.space.dim), seen.space.dim}), fresh=fresh),
        shares=decay_curve(sample, [k], grid, [seen.space.dim], fresh=fresh),
        examination=seen.examination,
        notes=(*notes, *_notes(seen)),
        config=_config(job, config),
        versions=_versions(),
        seconds={name: 0.0 if s.found else float(f"{s.seconds:.3g}") for name, s in store.finished.items()},
        subspace=seen.space,
        sample=sample,
        fresh=fresh,
    )


def _first_candidate(job: Job, seen: _Seen) -> dict[str, Any]:
    """Every estimate for the first candidate as the next example."""
    s, model = job.settings, increment(seen.sample, seen.fresh[0])
    closed = gaussian_moment(model, sigma=seen.sigma)
    coordinates = SubspaceProbe(seen.space, seen.sigma).coordinates(s.num_probes, s.seed)
    controlled = seen.isotropic[: min(s.num_probes, CONTROLLED_DRAWS)]
    return {
        "delta1": delta1(job.first.risk, job.first.new),
        "closed_form": closed,
        "quadratic": quadratic_monte_carlo(model, sigma=seen.sigma, num_probes=s.num_probes, seed=s.seed),
        "direct": summarise(seen.draws, antithetic=True),
        "controlled": control(closed, model, seen.draws, coordinates),
        "isotropic": summarise(seen.isotropic, antithetic=True),
        "isotropic_controlled": corrected(seen.full_space, controlled, seen.isotropic_model),
        "isotropic_closed_form": seen.full_space,
        "surrogate_error": model_error(seen.draws, model, coordinates),
    }


def _over_candidates(job: Job, seen: _Seen, tolerance: float | None) -> dict[str, Any]:
    """What is expected of the next example, and the sample size that a tolerance takes."""
    # One candidate says nothing of the others: the sample stands for them.
    sample, pool, sigma = seen.sample, seen.fresh if len(seen.fresh) > 1 else None, seen.sigma
    alone, overlapping = pool is None and len(sample) < 2, job.settings.allow_overlap
    return {
        "expected": None if alone else expected_criterion(sample, pool, sigma, allow_overlap=overlapping),
        "doubling": None if alone else expected_criterion(sample, pool, sigma, "double", allow_overlap=overlapping),
        "required": None
        if tolerance is None
        else required_sample_size(sample, pool, sigma, tolerance, validity=seen.validity, allow_overlap=overlapping),
    }


def _checked(
    dim: int,
    sigma: float | Literal["auto"],
    which: Which,
    tol: float,
    max_matvecs: int | None,
    num_probes: int,
    seed: int,
    compiled: bool,
    allow_overlap: bool,
) -> Settings:
    """The settings, if they make sense."""
    dim, num_probes, seed = _whole("dim", dim), _whole("num_probes", num_probes), _whole("seed", seed)
    if sigma != "auto":
        sigma = float(check_sigma(sigma))
    if num_probes < 2:
        raise ArgumentError(f"num_probes is {num_probes}; expected at least 2 draws")
    return Settings(dim, sigma, which, tol, max_matvecs, num_probes, seed, compiled, bool(allow_overlap))


def _whole(name: str, number: Any) -> int:
    try:
        value = operator.index(number)
    except TypeError:
        raise ArgumentTypeError(f"{name} is {number!r}; expected a whole number") from None
    if not -(2**63) <= value < 2**63:
        raise ArgumentError(f"{name} is {value}; expected a number of at most 63 bits")
    return value


def _sample_and_candidates(
    risk: EmpiricalRisk, candidates: Any, settings: Settings, notes: list[str]
) -> tuple[EmpiricalRisk, EmpiricalRisk]:
    """The sample, and the next examples outside it."""
    if candidates is None:
        if len(risk) < 2:
            raise ArgumentError(
                "the sample has one example and no candidates came; expected at least one of either more"
            )
        notes.append(
            "No candidates were given: the next example is the sample's own last one, which the model was trained on, "
            "and what is expected of the next takes the sample for the population."
        )
        return risk[:-1], risk[-1:]
    new = candidates if isinstance(candidates, EmpiricalRisk) else risk.on(candidates)
    risk.check_same_model(new)
    shared = overlap(risk.digests(), new.digests())
    if shared and not settings.allow_overlap:
        raise ArgumentError(
            f"{len(shared)} of {len(new)} candidates are in the sample too (the first is candidate {shared[0]}); "
            "expected examples that the model was not trained on: leave them out, or, where equal ones are different "
            "examples (natural duplicates), pass allow_overlap=True (--allow-overlap)"
        )
    return risk, new


def _choose_sigma(sigma: float | Literal["auto"], validity: QuadraticValidity, notes: list[str]) -> tuple[float, str]:
    if sigma != "auto":
        if validity.verdict(sigma) != "valid":
            notes.append(
                f"At the given sigma = {sigma:g} the quadratic model is {validity.verdict(sigma)}: its closed form is "
                "not the criterion of the true loss. Of direct and controlled Monte Carlo read the one with the "
                "smaller standard error."
            )
        return float(sigma), "given"
    if validity.validated_sigma is not None:
        return validity.validated_sigma, "auto: the largest validated"
    best = int(validity.error.argmin())
    value, error = float(validity.sigmas[best]), float(validity.error[best])
    message = (
        f"The quadratic model is validated at no sigma; sigma = {value:g}, where its error is smallest "
        f"({100 * error:.0f} %), was taken. Read the Monte Carlo on the true loss, not the closed form."
    )
    warnings.warn(message, stacklevel=3)
    notes.append(message)
    return value, "auto: the smallest error"


def _notes(seen: _Seen) -> list[str]:
    """What a reader should know of the checks and of the eigenspace."""
    space = seen.space
    notes, dim, last = seen.examination.doubts(), space.dim, float(space.eigenvalues[-1])
    if not bool(space.converged.all()):
        notes.append(
            f"Only {int(space.converged.sum())} of {dim} eigenpairs converged; raise max_matvecs or lower dim."
        )
    if space.next_eigenvalue > 0.9 * last > 0:
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
        "num_probes": s.num_probes,
        "allow_overlap": s.allow_overlap,
        **more,
        "param_names": job.risk.param_names,
        **named,
    }


def _engine(risk: EmpiricalRisk, settings: Settings) -> dict[str, Any]:
    """What was chosen for the work from the memory budget."""
    solving, basis_size, basis_device = plan_memory(risk, settings.dim)
    return {
        "memory_budget": risk.memory_budget,
        "microbatch_size": risk.microbatch_size,
        "solver_microbatch_size": solving.microbatch_size,
        "graph_kept_between_products": len(risk) <= solving.microbatch_size and not settings.compile,
        "compile": settings.compile,
        "tangents_at_once": risk.budget.tangents_at_once(min(len(risk), risk.microbatch_size)),
        "basis_size": basis_size,
        "basis_device": str(basis_device),
    }


def _versions() -> dict[str, str]:
    return {
        "curvprobe": __version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "machine": platform.machine(),
    }
