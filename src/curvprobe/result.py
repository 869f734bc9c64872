"""The frozen result of an analysis: as a table, as flat metrics, as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from curvprobe.concentration import ConcentrationCurve
from curvprobe.criteria import DecayCurve
from curvprobe.estimators import Estimate
from curvprobe.expectation import PARTS, SOURCES, ExpectedCriterion
from curvprobe.laws import LawTable
from curvprobe.projection import ProjectedSample
from curvprobe.ranking import Ranking
from curvprobe.sample_size import RequiredSampleSize
from curvprobe.stationarity import Stationarity
from curvprobe.store import SCHEMA_VERSION
from curvprobe.subspace import Subspace
from curvprobe.summary import lines
from curvprobe.theory import TheoryChecks
from curvprobe.validity import QuadraticValidity


@dataclass(frozen=True, eq=False)
class Analysis:
    """What :func:`curvprobe.analyze` found; print it for a table.

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
        controlled: the same draws with the quadratic model as control variate: the best estimate of the truth where the
            model is valid; elsewhere take whichever of the two has the smaller standard error.
        isotropic: Delta_2 for the first candidate, by Monte Carlo on the true loss.
        isotropic_controlled: some of these draws with the quadratic model as control variate.
        isotropic_closed_form: the same on the quadratic model, by stochastic traces.
        surrogate_error: relative error of the quadratic model of the first candidate's increment, in the draws of
            ``direct``: root mean square over that of the increment's change.
        expected: Delta_2^(D) averaged over the candidates as the next example, with its interval and table; for a
            single candidate over the sample's own examples, in all orders; None where there is but one of each.
        doubling: the same when as many join as there are.
        required: sample size for the tolerance; None where none was given.
        stationarity: how far the solution is from a minimiser.
        theory: the paper's statements, for the first candidate.
        laws: the first candidate under other laws; None unless asked for.
        concentration: share of the full-space signal that subspaces capture; None unless asked for.
        ranking: which candidates would move the landscape most.
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
    isotropic_controlled: Estimate
    isotropic_closed_form: Estimate
    surrogate_error: float
    expected: ExpectedCriterion | None
    doubling: ExpectedCriterion | None
    required: RequiredSampleSize | None
    stationarity: Stationarity
    theory: TheoryChecks
    laws: LawTable | None
    concentration: ConcentrationCurve | None
    ranking: Ranking
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

    @property
    def isotropic_distance(self) -> float:
        """Isotropic closed form less Monte Carlo on the true loss, in standard errors: how that model is judged."""
        stderr = math.hypot(self.isotropic.stderr, self.isotropic_closed_form.stderr)
        return (self.isotropic_closed_form.value - self.isotropic.value) / stderr if stderr > 0 else 0.0

    def estimates(self) -> dict[str, Estimate]:
        """Every estimate for the first candidate, by name."""
        return {
            "delta1": self.delta1,
            "delta2_subspace_closed_form": self.closed_form,
            "delta2_subspace_quadratic_monte_carlo": self.quadratic,
            "delta2_subspace_direct_monte_carlo": self.direct,
            "delta2_subspace_controlled_monte_carlo": self.controlled,
            "delta2_isotropic_monte_carlo": self.isotropic,
            "delta2_isotropic_controlled_monte_carlo": self.isotropic_controlled,
            "delta2_isotropic_closed_form": self.isotropic_closed_form,
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
            "quadratic_error": self.validity.error_at(self.sigma),
            "expected_delta2_subspace": float(self.decay.value[-1, -1, 0]),
            "expected_delta2_subspace_stderr": float(self.decay.stderr[-1, -1, 0]),
            "expected_shape": float(self.decay.shape[-1, -1, 0]),
            "expected_shape_stderr": float(self.decay.shape_stderr[-1, -1, 0]),
            "quadratic_error_stderr": self.validity.stderr_at(self.sigma),
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

        return pandas.DataFrame([{"criterion": name, **row} for name, row in self._rows().items()])

    def _rows(self) -> dict[str, dict[str, Any]]:
        """Every estimate as plain values, with what it is an estimate of."""
        of_the_model = {
            "delta2_subspace_closed_form",
            "delta2_subspace_quadratic_monte_carlo",
            "delta2_isotropic_closed_form",
        }
        return {
            name: {
                "target": "quadratic model" if name in of_the_model else "true loss",
                "value": estimate.value,
                "stderr": estimate.stderr,
                "rms": estimate.rms,
                "num_probes": estimate.num_probes,
                "level": estimate.level,
                "slope": estimate.slope,
                "curvature": estimate.curvature,
                "shape": estimate.shape,
            }
            for name, estimate in self.estimates().items()
        }

    def __str__(self) -> str:
        return "\n".join(lines(self))

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
                "stderr": self.validity.stderr,
                "threshold": self.validity.threshold,
                "verdicts": self.validity.verdicts,
                "num_probes": self.validity.num_probes,
                "validated_sigma": self.validity.validated_sigma,
                "precision_floor": self.validity.precision_floor,
                "increment_error_of_monte_carlo": self.surrogate_error,
            },
            "isotropic_closed_form_in_standard_errors": self.isotropic_distance,
            "sigma": {"value": self.sigma, "source": self.sigma_source, "verdict": self.verdict},
            "first_candidate": self._rows(),
            "expected": _expectation_json(self.expected),
            "doubling": _expectation_json(self.doubling),
            "required_sample_size": None if self.required is None else asdict(self.required),
            "stationarity": asdict(self.stationarity),
            "theory": asdict(self.theory),
            "laws": None if self.laws is None else self.laws.to_json(),
            "concentration": None if self.concentration is None else self.concentration.to_json(),
            "ranking": {"columns": self.ranking.columns(), "rank_correlation": self.ranking.agreement()},
            "decay": _curve_json(self.decay),
            "shares": _curve_json(self.shares),
            "notes": self.notes,
            "seconds": self.seconds,
        }


def _curve_json(curve: DecayCurve) -> dict[str, Any]:
    names = (
        "ks",
        "sigmas",
        "dims",
        "delta1",
        "value",
        "stderr",
        "level",
        "slope",
        "curvature",
        "shape",
        "shape_stderr",
    )
    return {name: getattr(curve, name) for name in names}


def _expectation_json(expected: ExpectedCriterion | None) -> dict[str, Any] | None:
    if expected is None:
        return None
    rows = zip(SOURCES, expected.table.tolist(), expected.table_stderr.tolist(), strict=True)
    return {
        "grow_by": expected.grow_by,
        "value": expected.value,
        "stderr": expected.stderr,
        "interval": expected.interval,
        "rms": expected.rms,
        "rms_interval": expected.rms_interval,
        "shape": expected.shape,
        "table": {
            source: {part: {"value": v, "stderr": e} for part, v, e in zip(PARTS, values, errors, strict=True)}
            for source, values, errors in rows
        },
    }
