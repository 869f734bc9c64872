"""The whole job: from a trained model to certified criteria, stage by stage, into one frozen result."""

from __future__ import annotations

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
from curvprobe.criteria import DecayCurve, decay_curve, delta1
from curvprobe.eigensolver import Which
from curvprobe.estimators import Estimate, control, gaussian_moment, probe_increments, quadratic_monte_carlo, summarise
from curvprobe.examples import overlap
from curvprobe.increment import increment
from curvprobe.probes import IsotropicProbe, SubspaceProbe, check_sigma
from curvprobe.projection import ProjectedSample, project
from curvprobe.risk import EmpiricalRisk
from curvprobe.store import SCHEMA_VERSION, Store, to_json, write_atomically
from curvprobe.subspace import Subspace, top_eigenspace
from curvprobe.validity import QuadraticValidity, subspace_validity
from curvprobe.version import __version__

SIGMA_GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 2))
"""Standard deviations at which the quadratic model is judged: half decades from 1e-5 to 3.2."""

VALIDITY_CANDIDATES = 32
"""Candidates whose increments the quadratic model is judged by."""

DECAY_POINTS = 60
"""Sample sizes of the decay curve when there are more."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Draws:
    """True increments of the first next example at Monte-Carlo draws, float64."""

    in_subspace: Tensor
    isotropic: Tensor


@dataclass(frozen=True, eq=False)
class Analysis:
    """What :func:`analyze` found; print it for a table.

    Attributes:
        k: examples in the sample.
        num_candidates: examples outside it that were tried as the next one.
        num_params, dtype: of the probed parameters.
        loss, gradient_norm: of the empirical risk at the solution: value, and Euclidean norm of the gradient.
        subspace: the top-D eigenspace, with residuals.
        sample, fresh: projected sample and candidates.
        validity: error of the quadratic model over sigma.
        sigma: standard deviation of the probe; ``sigma_source`` tells where it comes from.
        delta1: pointwise criterion for the first candidate.
        closed_form: Delta_2^(D) for the first candidate, on the quadratic model, split into its parts.
        quadratic: the same by Monte Carlo on the quadratic model.
        direct: Delta_2^(D) for the first candidate, by Monte Carlo on the true loss.
        controlled: the same draws with the quadratic model as control variate: the best estimate of the truth.
        isotropic: Delta_2 for the first candidate, by Monte Carlo on the true loss.
        decay: criteria against k, averaged over the candidates.
        shares: criteria against sigma at the full sample, averaged over the candidates.
        notes: what a reader should know before trusting the numbers.
        config, versions: how it was made.
        seconds: of every stage; a stage that was found on disk has 0.
    """

    k: int
    num_candidates: int
    num_params: int
    dtype: str
    loss: float
    gradient_norm: float
    subspace: Subspace
    sample: ProjectedSample
    fresh: ProjectedSample
    validity: QuadraticValidity
    sigma: float
    sigma_source: str
    delta1: Estimate
    closed_form: Estimate
    quadratic: Estimate
    direct: Estimate
    controlled: Estimate
    isotropic: Estimate
    decay: DecayCurve
    shares: DecayCurve
    notes: tuple[str, ...]
    config: dict[str, Any]
    versions: dict[str, str]
    seconds: dict[str, float]

    @property
    def verdict(self) -> str:
        """Of the quadratic model at the chosen sigma: valid, marginal or invalid."""
        return self.validity.verdict(self.sigma)

    def estimates(self) -> dict[str, Estimate]:
        """Every estimate for the first candidate, by name."""
        return {
            "delta1": self.delta1,
            "delta2_subspace_closed_form": self.closed_form,
            "delta2_subspace_quadratic_monte_carlo": self.quadratic,
            "delta2_subspace_direct_monte_carlo": self.direct,
            "delta2_subspace_controlled_monte_carlo": self.controlled,
            "delta2_isotropic_monte_carlo": self.isotropic,
        }

    def metrics(self) -> dict[str, float]:
        """Flat numbers for an experiment logger, keyed ``curvprobe/...``."""
        eigenvalues, residuals = self.subspace.eigenvalues, self.subspace.residuals
        assert eigenvalues is not None
        assert residuals is not None
        values: dict[str, float] = {
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "k": self.k,
            "sigma": self.sigma,
            "num_matvecs": self.subspace.num_matvecs,
            "residual_max": float(residuals.max()),
            "quadratic_error": float(self.validity.error[(self.validity.sigmas - self.sigma).abs().argmin()]),
            "expected_delta2_subspace": float(self.decay.value[-1, -1, 0]),
            "expected_delta2_subspace_stderr": float(self.decay.stderr[-1, -1, 0]),
            "expected_shape": float(self.decay.shape[-1, -1, 0]),
        }
        values |= {f"eigenvalue_{i + 1}": float(value) for i, value in enumerate(eigenvalues)}
        for name, estimate in self.estimates().items():
            values[name] = estimate.value
            values[f"{name}_stderr"] = estimate.stderr
        for part in ("level", "slope", "curvature"):
            values[f"expected_{part}"] = float(getattr(self.decay, part)[-1, -1, 0])
        return {f"curvprobe/{name}": float(value) for name, value in values.items()}

    def to_dataframe(self) -> Any:
        """The estimates as a pandas DataFrame, one row each."""
        import pandas

        rows = [
            {
                "criterion": name,
                "value": estimate.value,
                "stderr": estimate.stderr,
                "rms": estimate.rms,
                "level": estimate.level,
                "slope": estimate.slope,
                "curvature": estimate.curvature,
                "shape": estimate.shape,
                "num_probes": estimate.num_probes,
            }
            for name, estimate in self.estimates().items()
        ]
        return pandas.DataFrame(rows)

    def __str__(self) -> str:
        return "\n".join(_table(self))

    def to_json(self) -> dict[str, Any]:
        """Everything but the bulk tensors, as ``result.json`` holds it."""
        space = self.subspace
        return {
            "schema_version": SCHEMA_VERSION,
            "versions": self.versions,
            "config": self.config,
            "sample": {
                "k": self.k,
                "num_candidates": self.num_candidates,
                "num_params": self.num_params,
                "dtype": self.dtype,
                "loss": self.loss,
                "gradient_norm": self.gradient_norm,
            },
            "eigenspace": {
                "eigenvalues": space.eigenvalues,
                "residuals": space.residuals,
                "converged": space.converged,
                "next_eigenvalue": space.next_eigenvalue,
                "num_matvecs": space.num_matvecs,
            },
            "validity": {
                "sigmas": self.validity.sigmas,
                "loss_error": self.validity.loss_error,
                "increment_error": self.validity.increment_error,
                "threshold": self.validity.threshold,
                "verdicts": self.validity.verdicts,
                "num_probes": self.validity.num_probes,
                "validated_sigma": self.validity.validated_sigma,
            },
            "sigma": {"value": self.sigma, "source": self.sigma_source, "verdict": self.verdict},
            "first_candidate": {
                name: {
                    "value": e.value,
                    "stderr": e.stderr,
                    "rms": e.rms,
                    "num_probes": e.num_probes,
                    "level": e.level,
                    "slope": e.slope,
                    "curvature": e.curvature,
                    "shape": e.shape,
                    "exact_for": "quadratic model" if name.endswith("closed_form") else "true loss",
                }
                for name, e in self.estimates().items()
            },
            "decay": _curve_json(self.decay),
            "shares": _curve_json(self.shares),
            "notes": self.notes,
            "seconds": self.seconds,
        }


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
    seed: int = 0,
    out: str | Path | None = None,
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
        seed: of everything random.
        out: folder for the finished stages and ``result.json``; a stage found there under the same model, data and
            settings is not computed again.

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
    if sigma != "auto":
        check_sigma(sigma)
    notes: list[str] = []
    if candidates is None:
        if len(risk) < 2:
            raise ValueError("the sample has one example and no candidates came; expected at least one of either more")
        risk, new = risk[:-1], risk[-1:]
        notes.append(
            "No candidates were given: the next example is the sample's own last one, which the model was trained on."
        )
    else:
        new = candidates if isinstance(candidates, EmpiricalRisk) else risk.on(candidates)
        shared = overlap(risk.digests(), new.digests())
        if shared:
            raise ValueError(
                f"{len(shared)} of {len(new)} candidates are in the sample too (the first is candidate {shared[0]}); "
                "expected examples that the model was not trained on: leave them out"
            )
    if risk.upcast_from:
        notes.append(f"Parameters in {', '.join(risk.upcast_from)} were raised to float32.")
    store, seconds = Store(None if out is None else Path(out)), dict[str, float]()

    with progress.bar("analysis (stages)", 5) as advance:

        def stage(name: str, key: Any, kind: type[T], compute: Callable[[], T]) -> T:
            start = time.perf_counter()
            result, found = store.stage(name, key, kind, compute)
            seconds[name] = 0.0 if found else round(time.perf_counter() - start, 3)
            advance(1)
            return result

        risk_key, new_key = risk.key(), new.key()
        solver: dict[str, Any] = {"dim": dim, "which": which, "tol": tol, "max_matvecs": max_matvecs, "seed": seed}
        subspace = stage("eigenspace", [risk_key, solver], Subspace, lambda: top_eigenspace(risk, **solver))
        sample = stage("sample", [risk_key, solver], ProjectedSample, lambda: project(risk, subspace))
        fresh = stage("candidates", [risk_key, new_key, solver], ProjectedSample, lambda: project(new, subspace))
        grid = sorted({*SIGMA_GRID, *([] if sigma == "auto" else [float(sigma)])})
        judged = new[:VALIDITY_CANDIDATES]
        validity = stage(
            "validity",
            [risk_key, new_key, solver, grid],
            QuadraticValidity,
            lambda: subspace_validity(
                risk, grid, subspace, sample.mean(), new=judged, fresh=fresh[: len(judged)], seed=seed
            ),
        )
        chosen, source = _choose_sigma(sigma, validity, notes)
        law, first = SubspaceProbe(subspace, chosen), new[:1]
        draws = stage(
            "monte_carlo",
            [risk_key, new_key, solver, chosen, num_probes],
            Draws,
            lambda: Draws(
                probe_increments(risk, first, law, num_probes, seed),
                probe_increments(risk, first, IsotropicProbe(chosen), num_probes, seed),
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
        direct=summarise(draws.in_subspace),
        controlled=control(closed, model, draws.in_subspace, law.coordinates(num_probes, seed)),
        isotropic=summarise(draws.isotropic),
        decay=decay_curve(sample, ks, chosen, dims, fresh=fresh),
        shares=decay_curve(sample, [len(risk)], grid, [dim], fresh=fresh),
        notes=tuple(notes),
        config={**solver, "sigma": sigma, "num_probes": num_probes, "microbatch_size": risk.microbatch_size},
        versions=_versions(),
        seconds=seconds,
    )
    if store.directory is not None:
        write_atomically(store.directory / "result.json", to_json(result.to_json()))
    return result


def _choose_sigma(sigma: float | Literal["auto"], validity: QuadraticValidity, notes: list[str]) -> tuple[float, str]:
    if sigma != "auto":
        if validity.verdict(sigma) != "valid":
            notes.append(
                f"At the given sigma = {sigma:g} the quadratic model is {validity.verdict(sigma)}: its closed form is "
                "not the criterion of the true loss. Read the controlled Monte Carlo."
            )
        return float(sigma), "given"
    if validity.validated_sigma is not None:
        return validity.validated_sigma, "auto: the largest validated"
    best = int(validity.error.argmin())
    value, error = float(validity.sigmas[best]), float(validity.error[best])
    message = (
        f"The quadratic model is validated at no sigma; sigma = {value:g}, where its error is smallest "
        f"({100 * error:.0f} %), was taken. Read the controlled Monte Carlo, not the closed form."
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


def _curve_json(curve: DecayCurve) -> dict[str, Any]:
    names = ("ks", "sigmas", "dims", "delta1", "value", "stderr", "level", "slope", "curvature", "shape")
    return {name: getattr(curve, name) for name in names}


def _table(a: Analysis) -> list[str]:
    eigenvalues, residuals, converged = a.subspace.eigenvalues, a.subspace.residuals, a.subspace.converged
    assert eigenvalues is not None
    assert residuals is not None
    assert converged is not None
    shown = ", ".join(f"{value:.4g}" for value in eigenvalues[:6].tolist()) + (", ..." if len(eigenvalues) > 6 else "")
    error = float(a.validity.error[(a.validity.sigmas - a.sigma).abs().argmin()])
    parts = [float(getattr(a.decay, part)[-1, -1, 0]) for part in ("level", "slope", "curvature")]
    total = sum(parts) or 1.0
    expected, stderr = float(a.decay.value[-1, -1, 0]), float(a.decay.stderr[-1, -1, 0])

    def row(name: str, e: Estimate, comment: str) -> str:
        error = "exact" if e.stderr == 0 and not e.num_probes else f"+- {e.stderr:.1e}"
        if comment.startswith("quadratic model") and not e.num_probes:
            error = "exact for the model"
        return f"  {name:<38} {e.value:>12.5e}  {error:<20} rms {e.rms:.3e}  {comment}"

    lines = [
        f"Sample: {a.k} examples, {a.num_candidates} candidates; {a.num_params} parameters ({a.dtype})",
        f"Solution: loss {a.loss:.5g}, gradient norm {a.gradient_norm:.2e}",
        f"Top-{a.subspace.dim} eigenvalues: {shown}; next about {a.subspace.next_eigenvalue:.4g}",
        f"  {int(converged.sum())} of {len(converged)} certified, largest residual {float(residuals.max()):.1e} of the "
        f"first eigenvalue, {a.subspace.num_matvecs} Hessian products",
        f"Probe: sigma = {a.sigma:.3g} ({a.sigma_source}); the quadratic model is {a.verdict} there, error "
        f"{100 * error:.2g} %",
        "",
        "If the first candidate is added (squared loss units; rms in loss units):",
        row("Delta_1 at the solution", a.delta1, "true loss, loss units"),
        row(f"Delta_2^({a.subspace.dim}) closed form", a.closed_form, "quadratic model"),
        row(f"Delta_2^({a.subspace.dim}) quadratic Monte Carlo", a.quadratic, "quadratic model"),
        row(f"Delta_2^({a.subspace.dim}) direct Monte Carlo", a.direct, "true loss"),
        row(f"Delta_2^({a.subspace.dim}) controlled Monte Carlo", a.controlled, "true loss"),
        row("Delta_2 isotropic Monte Carlo", a.isotropic, "true loss"),
        f"  (A probe is {a.sigma * a.subspace.dim**0.5:.2g} from the solution in the subspace, and "
        f"{a.sigma * a.num_params**0.5:.2g} when isotropic.)",
        "",
        f"Averaged over the candidates: Delta_2^({a.subspace.dim}) = {expected:.5e} +- {stderr:.1e}, rms "
        f"{expected**0.5:.3e} loss units",
        f"  of it level {100 * parts[0] / total:.2f} %, slope {100 * parts[1] / total:.2g} %, curvature "
        f"{100 * parts[2] / total:.2g} %; shape (all but the level) {parts[1] + parts[2]:.3e}",
    ]
    if a.notes:
        lines += ["", "Notes:", *(f"  - {note}" for note in a.notes)]
    return lines
