"""The whole job: from a trained model to certified criteria, stage by stage, into one frozen result."""

from __future__ import annotations

import itertools
import operator
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from curvprobe import progress
from curvprobe.concentration import ConcentrationCurve, concentration_curve, default_subspaces
from curvprobe.convergence import Which
from curvprobe.criteria import decay_curve, delta1
from curvprobe.estimators import (
    Estimate,
    control,
    corrected,
    gaussian_moment,
    model_error,
    quadratic_monte_carlo,
    summarise,
)
from curvprobe.examples import digest, overlap
from curvprobe.expectation import expected_criterion
from curvprobe.full_space import full_space_moment, quadratic_model_at
from curvprobe.increment import increment
from curvprobe.laws import LawTable, compare_laws, default_laws
from curvprobe.linearisation import tangents_at_once
from curvprobe.monte_carlo import probe_increments
from curvprobe.probes import IsotropicProbe, SubspaceProbe, check_sigma
from curvprobe.projection import ProjectedSample, project
from curvprobe.ranking import gradient_norms, rank_candidates
from curvprobe.result import Analysis
from curvprobe.risk import EmpiricalRisk
from curvprobe.sample_size import check_request, required_sample_size
from curvprobe.stationarity import stationarity
from curvprobe.store import Store, to_json, write_atomically
from curvprobe.subspace import Subspace, plan_memory, top_eigenspace
from curvprobe.theory import theory_checks
from curvprobe.validity import QuadraticValidity, subspace_validity
from curvprobe.version import __version__

SIGMA_GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 2))
"""Standard deviations at which the quadratic model is judged: half decades from 1e-5 to 3.2."""

FULL_SPACE_PRODUCTS = 24
"""Hessian products for the traces of the isotropic closed form."""

CONTROLLED_PROBES = 16
"""Isotropic draws at which the quadratic model is the control: a Hessian product on the sample for each pair."""

VALIDITY_CANDIDATES, VALIDITY_PROBES = 32, 16
"""Candidates whose increments the quadratic model is judged by, and draws of Monte Carlo at which it is."""

CONCENTRATION_CANDIDATES = 100
"""Candidates that the concentration curve is averaged over."""

DECAY_POINTS = 60
"""Sample sizes of the decay curve when there are more."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class GradientNorms:
    """Norm of every candidate's gradient, float64 (m,)."""

    norms: Tensor


@dataclass(frozen=True, eq=False)
class Draws:
    """True increments of the first next example at Monte-Carlo draws in the subspace, float64."""

    in_subspace: Tensor


@dataclass(frozen=True, eq=False)
class IsotropicDraws:
    """The same at isotropic draws, and the quadratic model's increments at the first of them."""

    true: Tensor
    model: Tensor


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

    Returns:
        The frozen result.

    Raises:
        ValueError: for arguments that make no sense, or candidates that the sample holds too.

    Example:
        >>> import torch, curvprobe as cp
        >>> x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[::2], x[::2].sin()))
        >>> analysis = cp.analyze(risk, (x[1::2], x[1::2].sin()), dim=3, tol=1e-6)
        >>> analysis.verdict, analysis.controlled.stderr < analysis.direct.stderr
        ('valid', True)
    """
    dim, num_probes, seed = _whole("dim", dim), _whole("num_probes", num_probes), _whole("seed", seed)
    if sigma != "auto":
        sigma = float(check_sigma(sigma))
    if num_probes < 2:
        raise ValueError(f"num_probes is {num_probes}; expected at least 2 draws")
    notes: list[str] = []
    if candidates is None:
        if len(risk) < 2:
            raise ValueError("the sample has one example and no candidates came; expected at least one of either more")
        risk, new = risk[:-1], risk[-1:]
        notes.append(
            "No candidates were given: the next example is the sample's own last one, which the model was trained on, "
            "and what is expected of the next takes the sample for the population."
        )
    else:
        new = candidates if isinstance(candidates, EmpiricalRisk) else risk.on(candidates)
        risk.check_same_model(new)
        shared = overlap(risk.digests(), new.digests())
        if shared:
            raise ValueError(
                f"{len(shared)} of {len(new)} candidates are in the sample too (the first is candidate {shared[0]}); "
                "expected examples that the model was not trained on: leave them out"
            )
    if tolerance is not None:
        check_request(tolerance, len(new) if len(new) > 1 else len(risk))
    if risk.upcast_from:
        notes.append(f"Parameters in {', '.join(risk.upcast_from)} were raised to float32.")
    store, seconds = Store.at(out), dict[str, float]()
    engine = _engine(risk, dim, compile)

    with progress.bar("analysis (stages)", 8 + laws + concentration) as advance:

        def stage(name: str, key: Any, kind: type[T], compute: Callable[[], T]) -> T:
            start = time.perf_counter()
            result, found = store.stage(name, key, kind, compute)
            if not found and store.directory is not None:
                (store.directory / "result.json").unlink(missing_ok=True)  # it would tell of another run's stages
            seconds[name] = 0.0 if found else float(f"{time.perf_counter() - start:.3g}")
            advance(1)
            return result

        risk_key, new_key = risk.key(), new.key()
        solver: dict[str, Any] = {"dim": dim, "which": which, "tol": tol, "max_matvecs": max_matvecs, "seed": seed}
        unfinished = None if store.directory is None else store.directory / "eigenspace.unfinished"
        subspace = stage(
            "eigenspace",
            [risk_key, solver],
            Subspace,
            lambda: top_eigenspace(risk, **solver, checkpoint=unfinished, compile=compile),
        )
        # By the basis itself: computed anew elsewhere, an eigenspace may come with other signs or another rotation.
        basis = digest(subspace.basis)
        sample = stage("sample", [risk_key, basis], ProjectedSample, lambda: project(risk, subspace))
        fresh = stage("candidates", [risk_key, new_key, basis], ProjectedSample, lambda: project(new, subspace))
        grid = sorted({*SIGMA_GRID, *([] if sigma == "auto" else [float(sigma)])})
        judged = new[:VALIDITY_CANDIDATES]
        directions = SubspaceProbe(subspace, 1.0).coordinates(num_probes, seed)[:VALIDITY_PROBES]  # Monte Carlo's own
        validity = stage(
            "validity",
            [risk_key, new_key, basis, grid, num_probes, seed],
            QuadraticValidity,
            lambda: subspace_validity(
                risk, grid, subspace, sample.mean(), directions, new=judged, fresh=fresh[: len(judged)]
            ),
        )
        chosen, source = _choose_sigma(sigma, validity, notes)
        law, around, first = SubspaceProbe(subspace, chosen), IsotropicProbe(chosen), new[:1]
        bent = min(num_probes, CONTROLLED_PROBES)
        draws = stage(
            "monte_carlo",
            [risk_key, new_key, basis, chosen, num_probes, seed],
            Draws,
            lambda: Draws(probe_increments(risk, first, law, num_probes, seed)),
        )
        isotropic = stage(
            "isotropic",
            [risk_key, new_key, chosen, num_probes, seed],
            IsotropicDraws,
            lambda: IsotropicDraws(
                probe_increments(risk, first, around, num_probes, seed),
                quadratic_model_at(
                    risk, first, itertools.islice(around.displacements(risk, num_probes, seed), bent), bent
                ),
            ),
        )
        full_space = stage(
            "full_space",
            [risk_key, new_key, chosen, seed],
            Estimate,
            lambda: full_space_moment(risk, first, sigma=chosen, num_probes=FULL_SPACE_PRODUCTS, seed=seed),
        )
        norms = stage("gradient_norms", [new_key], GradientNorms, lambda: GradientNorms(gradient_norms(new))).norms
        under = None
        if laws:
            under = stage(
                "laws",
                [risk_key, new_key, basis, chosen, num_probes, tol, seed],
                LawTable,
                lambda: compare_laws(
                    risk,
                    first,
                    default_laws(risk, subspace, chosen, tol=tol, seed=seed),
                    num_probes=num_probes,
                    seed=seed,
                ),
            )
        captured = None
        if concentration:
            few = new[:CONCENTRATION_CANDIDATES]
            captured = stage(
                "concentration",
                [risk_key, new_key, basis, chosen, tol, seed],
                ConcentrationCurve,
                lambda: concentration_curve(
                    risk,
                    few,
                    sigma=chosen,
                    subspaces=default_subspaces(risk, few, dim, tol=tol, seed=seed, hessian=subspace),
                    seed=seed,
                ),
            )

    model = increment(sample, fresh[0])
    closed = gaussian_moment(model, sigma=chosen)
    eigenvalues, converged = subspace.eigenvalues, subspace.converged
    assert eigenvalues is not None
    assert converged is not None
    if not bool(converged.all()):
        notes.append(f"Only {int(converged.sum())} of {dim} eigenpairs converged; raise max_matvecs or lower dim.")
    if subspace.next_eigenvalue > 0.9 * float(eigenvalues[-1]) > 0:
        notes.append(
            f"The cut after D = {dim} falls in a cluster: eigenvalue {dim} is {float(eigenvalues[-1]):.4g} and the "
            f"next about {subspace.next_eigenvalue:.4g}. Another D would be a more stable subspace."
        )
    ks = sorted({int(k) for k in torch.logspace(0, torch.tensor(len(risk)).log10(), DECAY_POINTS).round()})
    dims = sorted({1, min(4, dim), dim})
    pool = fresh if len(new) > 1 else None  # one candidate says nothing of the others: the sample stands for them
    result = Analysis(
        k=len(risk),
        num_candidates=len(new),
        num_params=risk.num_params,
        dtype=str(risk.dtype).split(".")[-1],
        loss=risk.value(),
        gradient_norm=float(risk.gradient().double().norm()),
        subspace=subspace,
        sample=sample,
        fresh=fresh,
        validity=validity,
        sigma=chosen,
        sigma_source=source,
        delta1=delta1(risk, first),
        closed_form=closed,
        quadratic=quadratic_monte_carlo(model, sigma=chosen, num_probes=num_probes, seed=seed),
        direct=summarise(draws.in_subspace, antithetic=True),
        controlled=control(closed, model, draws.in_subspace, law.coordinates(num_probes, seed)),
        isotropic=summarise(isotropic.true, antithetic=True),
        isotropic_controlled=corrected(full_space, isotropic.true[:bent], isotropic.model),
        isotropic_closed_form=full_space,
        surrogate_error=model_error(draws.in_subspace, model, law.coordinates(num_probes, seed)),
        expected=None if pool is None and len(sample) < 2 else expected_criterion(sample, pool, chosen),
        doubling=None if pool is None and len(sample) < 2 else expected_criterion(sample, pool, chosen, "double"),
        required=None
        if tolerance is None
        else required_sample_size(sample, pool, chosen, tolerance, validity=validity),
        stationarity=stationarity(risk, subspace, sample, fresh),
        theory=theory_checks(sample, fresh[0], chosen),
        laws=under,
        concentration=captured,
        ranking=rank_candidates(sample, fresh, chosen, gradient_norms=norms),
        decay=decay_curve(sample, ks, chosen, dims, fresh=fresh),
        shares=decay_curve(sample, [len(risk)], grid, [dim], fresh=fresh),
        notes=tuple(notes),
        config={
            **solver,
            "sigma": sigma,
            "num_probes": num_probes,
            "tolerance": tolerance,
            "laws": laws,
            "concentration": concentration,
            "engine": engine,
            "param_names": risk.param_names,
            "risk_key": risk_key,
            "candidates_key": new_key,
        },
        versions=_versions(),
        seconds=seconds,
    )
    if store.directory is not None:
        write_atomically(store.directory / "result.json", to_json(result.to_json()))
    return result


def _engine(risk: EmpiricalRisk, dim: int, compiled: bool) -> dict[str, Any]:
    """What was chosen for the work from the memory budget."""
    solving, basis_size, basis_device = plan_memory(risk, dim)
    return {
        "memory_budget": risk.memory_budget,
        "microbatch_size": risk.microbatch_size,
        "solver_microbatch_size": solving.microbatch_size,
        "graph_kept_between_products": len(risk) <= solving.microbatch_size and not compiled,
        "compile": compiled,
        "tangents_at_once": tangents_at_once(risk, min(len(risk), risk.microbatch_size)),
        "basis_size": basis_size,
        "basis_device": str(basis_device),
    }


def _whole(name: str, number: Any) -> int:
    try:
        value = operator.index(number)
    except TypeError:
        raise TypeError(f"{name} is {number!r}; expected a whole number") from None
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is {value}; expected a number of at most 63 bits")
    return value


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


def _versions() -> dict[str, str]:
    return {
        "curvprobe": __version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "machine": platform.machine(),
    }
