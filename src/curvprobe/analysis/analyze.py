"""The whole job: from a trained model to certified criteria, stage by stage, into one frozen result."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from curvprobe.analysis import stages as work
from curvprobe.analysis.assembly import Seen, assemble
from curvprobe.analysis.examination import Examination
from curvprobe.analysis.result import Analysis
from curvprobe.analysis.stages import Job, Settings
from curvprobe.criteria.draws import check_sigma
from curvprobe.criteria.estimators import check_power
from curvprobe.criteria.sample_size import check_request
from curvprobe.criteria.verdicts import QuadraticValidity
from curvprobe.eigensolver.wanted import Which
from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.probing.plane import check_points
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.runtime.digest import overlap
from curvprobe.runtime.progress import bar
from curvprobe.runtime.store import Stage, Store
from curvprobe.subspace.eigenspace import plan_memory

SIGMA_GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 2))
"""Standard deviations at which the quadratic model is judged: half decades from 1e-5 to 3.2."""

LEAST = 100
"""Examples that are drawn, at least: of fewer, intervals cover too seldom where a few are large."""

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
    tolerance_on: Literal["total", "shape", "relative"] = "total",
    p: float = 2.0,
    max_examples: int | None = None,
    laws: bool = False,
    concentration: bool = False,
    surface: int = 21,
    stages: Literal["full", "quick"] = "full",
    seed: int = 0,
    out: str | Path | None = None,
    compile: bool = False,  # noqa: A002 - torch's word
    allow_overlap: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
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
        tolerance: RMS increment for which to tell the required sample size; None leaves it out.
        tolerance_on: "total", the whole increment in loss units; "shape", the increment without its constant part,
            which training does not notice; "relative", the whole over the loss at the solution.
        p: order of the criterion ``E |L_{k+1} - L_k|^p``, at least 1, for the first candidate and for what is expected
            of the next one. The split into parts, the full space's closed form, the ranking, the curves, the laws and
            the required size are of the second order.
        max_examples: differentiate at most so many of the sample's k examples, at least 100; None takes all. As many
            are drawn for the eigenspace, and as many independently for all else, by the seed and stratified by their
            weights, see :func:`draw_examples`. What is told is still of all k, with the error of the draw in the
            intervals of eigenvalues, criteria and sizes. Takes two candidates or more, ``p=2``, and neither ``laws``
            nor ``concentration``; leaves out the criterion with isotropic probes.
        laws: also find the first candidate's criterion under other probing laws: two more eigenspaces.
        concentration: also find how much of the full-space signal the top-D directions and others capture: four more
            eigenspaces, on up to 100 candidates.
        surface: points along each side of the picture of the loss itself over the plane of the first two eigenvectors,
            four sigmas each way (see :func:`plane`): so many squared passes over the sample, some third of what all
            else takes with 21. 0 leaves it out, as does ``dim=1``.
        stages: "quick" leaves out what the answer does not rest on: the criterion with isotropic probes, the norms of
            the candidates' gradients, and the picture.
        seed: of everything random.
        out: folder for the finished stages and ``result.json``; a stage found there under the same model, data and
            settings is not computed again, and an eigenspace that was interrupted is continued.
        compile: compile the Hessian product, see :func:`hessian`.
        allow_overlap: take candidates that the sample holds too, by their content, and say how many: where equal rows
            are different examples (a few binary features, say), leaving them out would change the population.
        progress: called as each stage begins, with its name, its number from 0 and how many there are. On a terminal
            bars are shown besides; the logger "curvprobe" tells the stages and their seconds at level INFO.

    Returns:
        The frozen result.

    Raises:
        ValueError: for arguments that make no sense, candidates that the sample holds too (see ``allow_overlap``), or
            a folder in which another run is at work or that cannot be written to.

    Example:
        >>> import torch, curvprobe as cp
        >>> x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[::2], x[::2].sin()))
        >>> analysis = cp.analyze(risk, (x[1::2], x[1::2].sin()), dim=3, tol=1e-6)
        >>> analysis.verdict, analysis.controlled.stderr < analysis.direct.stderr
        ('valid', True)
    """
    expect_risk(risk)
    settings = checked_settings(dim, sigma, which, tol, max_matvecs, num_probes, seed, compile, allow_overlap, p)
    notes = [f"Parameters in {', '.join(risk.upcast_from)} were raised to float32."] if risk.upcast_from else []
    risk, new = sample_and_candidates(risk, candidates, settings, notes)
    settings = limited(settings, max_examples, risk, new, compared=laws or concentration)
    surface = points_of_surface(surface, stages, settings.dim)
    _check_tolerance(tolerance, tolerance_on, risk, len(new))
    store, job = Store.at(out, risk.ranks), Job.of(risk, new, settings)
    engine = _engine(risk, settings)  # refuses a budget in which nothing fits, before any work
    grid = sigma_grid(settings.sigma)
    names = work.stage_names(settings, stages == "full", laws=laws, concentration=concentration, surface=surface)
    config = {
        "tolerance": tolerance,
        "tolerance_on": tolerance_on,
        "laws": laws,
        "concentration": concentration,
        "stages": stages,
        "engine": engine,
    }
    with store.held(), risk.ranks.told():
        with risk.few_threads():
            seen = _seen(job, store, grid, notes, progress, names, surface)
        notes += _of_memory(risk)
        found = assemble(job, seen, grid, tolerance, notes, config, store)
        store.write_result({**found.to_json(), **_load()})
    return found


def _of_memory(risk: EmpiricalRisk) -> list[str]:
    """What is to be said where memory ran out on the way."""
    said = next(filter(None, risk.ranks.all_of(risk.probed.passed.get("memory"))), None)
    return (
        [] if said is None else [f"{said[0].upper()}{said[1:]}; a smaller memory_budget avoids it. No number is other."]
    )


def _load() -> dict[str, float]:
    """Of the machine as the analysis ends, by which the seconds in its file are to be read."""
    return {"load_average": os.getloadavg()[0]} if hasattr(os, "getloadavg") else {}


def _check_tolerance(tolerance: float | None, on: str, risk: EmpiricalRisk, num_candidates: int) -> None:
    """Refuse one that makes no sense, before any work."""
    if on not in ("total", "shape", "relative"):
        raise ArgumentError(f"tolerance_on is {on!r}; expected 'total', 'shape' or 'relative'")
    if tolerance is None and on != "total":
        raise ArgumentError(f"tolerance_on is {on!r} without a tolerance; expected both, or neither")
    if on == "relative" and risk.value() == 0:
        raise ArgumentError("the loss at the solution is 0, and no tolerance is relative to it; give one in loss units")
    if tolerance is not None:
        check_request(tolerance, num_candidates if num_candidates > 1 else len(risk))


def _seen(
    job: Job,
    store: Store,
    grid: list[float],
    notes: list[str],
    told: Callable[[str, int, int], None] | None,
    names: list[str],
    surface: int,
) -> Seen:
    """What the stages of these names find, one after the other."""
    settings, count = job.settings, len(names)
    with bar("analysis (stages)", count) as advance:

        def result(stage: Stage[T]) -> T:
            if told is not None:
                told(stage.name, len(store.finished), count)
            found = store.result(stage)
            advance(1)
            return found

        space = result(work.eigenspace(job, store.path("eigenspace.unfinished")))
        basis = space.key()
        sample = result(work.sample(job, space, basis))
        fresh = result(work.candidates(job, space, basis))
        examination = Examination.from_json(result(work.examination(job)))
        validity = result(work.validity(job, space, basis, sample, fresh, grid))
        chosen, source = _choose_sigma(settings.sigma, validity, notes)
        judged = work.judged_candidates(sample, fresh, chosen)
        return Seen(
            examination=examination,
            space=space,
            sample=sample,
            fresh=fresh,
            validity=validity,
            sigma=chosen,
            sigma_source=source,
            judged=judged,
            draws=result(work.monte_carlo(job, space, basis, chosen, judged)),
            isotropic=result(work.isotropic(job, chosen)) if "isotropic" in names else None,
            isotropic_model=result(work.isotropic_model(job, chosen)) if "isotropic_model" in names else None,
            full_space=result(work.full_space(job, chosen)) if "full_space" in names else None,
            norms=result(work.norms(job)) if "gradient_norms" in names else None,
            stationarity=result(work.stationary(job, space, basis, sample, fresh)),
            laws=result(work.laws(job, space, basis, chosen)) if "laws" in names else None,
            concentration=result(work.concentration(job, space, basis, chosen)) if "concentration" in names else None,
            plane=result(work.surface(job, space, basis, chosen, surface)) if surface else None,
        )


def checked_settings(
    dim: int,
    sigma: float | Literal["auto"],
    which: Which,
    tol: float,
    max_matvecs: int | None,
    num_probes: int,
    seed: int,
    compiled: bool,
    allow_overlap: bool,
    p: float,
) -> Settings:
    """The settings, if they make sense."""
    dim, num_probes, seed = _whole("dim", dim), _whole("num_probes", num_probes), _whole("seed", seed)
    if sigma != "auto":
        sigma = float(check_sigma(sigma))
    if num_probes < 2:
        raise ArgumentError(f"num_probes is {num_probes}; expected at least 2 draws")
    check_power(p)
    return Settings(dim, sigma, which, tol, max_matvecs, num_probes, seed, compiled, bool(allow_overlap), float(p))


def limited(
    settings: Settings, count: int | None, risk: EmpiricalRisk, new: EmpiricalRisk, *, compared: bool
) -> Settings:
    """The settings with the number of examples that are drawn, where that is not all; refuses what takes all."""
    if count is None or _whole("max_examples", count) >= len(risk):
        return settings
    if count < LEAST:
        raise ArgumentError(f"max_examples is {count}; expected at least {LEAST}: fewer tell little of all {len(risk)}")
    if settings.p != 2 or compared:
        raise ArgumentError(
            f"max_examples is {count} of {len(risk)}, with p = {settings.p:g}, laws or concentration; expected p = 2 "
            "and neither of these, which take all examples: leave them out, or take a smaller sample (--k)"
        )
    if len(new) < 2:
        raise ArgumentError(
            f"max_examples is {count} of {len(risk)}, and fewer than 2 candidates came; expected more: without them "
            "the sample stands for what comes, and some of its examples do not"
        )
    return replace(settings, max_examples=int(count))


def points_of_surface(surface: int, stages: str, dim: int) -> int:
    """Points along a side of the picture, 0 where there is none; refuses what makes no sense."""
    if stages not in ("full", "quick"):
        raise ArgumentError(f"stages is {stages!r}; expected 'full' or 'quick'")
    return 0 if stages == "quick" or dim < 2 or not _whole("surface", surface) else check_points(surface)


def sigma_grid(sigma: float | Literal["auto"]) -> list[float]:
    """Where the quadratic model is judged: on a fixed grid, and where it is used."""
    return sorted({*SIGMA_GRID, *([] if sigma == "auto" else [sigma])})


def _whole(name: str, number: Any) -> int:
    try:
        value = operator.index(number)
    except TypeError:
        raise ArgumentTypeError(f"{name} is {number!r}; expected a whole number") from None
    if not -(2**63) <= value < 2**63:
        raise ArgumentError(f"{name} is {value}; expected a number of at most 63 bits")
    return value


def sample_and_candidates(
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
