"""The frozen result of an analysis: as a text, as flat metrics, as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvprobe.analysis.answer import Answer, answer
from curvprobe.analysis.concentration import ConcentrationCurve
from curvprobe.analysis.examination import Examination
from curvprobe.analysis.law_table import LawTable
from curvprobe.analysis.spectrum import Spectrum
from curvprobe.analysis.table import table
from curvprobe.criteria.decay import DecayCurve
from curvprobe.criteria.estimators import Estimate
from curvprobe.criteria.expected import ExpectedCriterion
from curvprobe.criteria.ranking import Ranking
from curvprobe.criteria.row_errors import RowErrors
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.criteria.sample_size import RequiredSampleSize
from curvprobe.criteria.stationarity import Stationarity
from curvprobe.criteria.theory import TheoryChecks
from curvprobe.criteria.verdicts import QuadraticValidity, Verdict
from curvprobe.errors import ArgumentError
from curvprobe.forecasting.result import Forecast
from curvprobe.probing.plane import Plane
from curvprobe.runtime.plain import number
from curvprobe.runtime.store import write_atomically
from curvprobe.subspace.spaces import Eigenspace

ESTIMATES = {
    "delta1": "delta1",
    "delta2_subspace_closed_form": "closed_form",
    "delta2_subspace_quadratic_monte_carlo": "quadratic",
    "delta2_subspace_direct_monte_carlo": "direct",
    "delta2_subspace_controlled_monte_carlo": "controlled",
    "delta2_isotropic_monte_carlo": "isotropic",
    "delta2_isotropic_controlled_monte_carlo": "isotropic_controlled",
    "delta2_isotropic_closed_form": "isotropic_closed_form",
}
"""Name in tables and loggers of every estimate for the first candidate, and the attribute that holds it."""

_OF_THE_MODEL = {
    "delta2_subspace_closed_form",
    "delta2_subspace_quadratic_monte_carlo",
    "delta2_isotropic_closed_form",
}

RESULT_VERSION = 7
"""Of ``result.json``: 6 was of all examples of a sample; 5 had one number of the validity's draws for all sigmas; 4
left out the held-out loss, and of the shape its interval and its directions; 3 the errors of single rows and other
orders than the second; 2 what was checked; 1 besides, of the validity what rounding is judged by, of expectations the
candidates' own contributions, and the keys of the stages."""


REPORT = "report.html"
"""The page that a run of the command leaves beside its result."""

_OPTIONAL: tuple[tuple[str, str, Any], ...] = (
    ("expected", "expected", ExpectedCriterion),
    ("doubling", "doubling", ExpectedCriterion),
    ("required", "required_sample_size", RequiredSampleSize),
    ("laws", "laws", LawTable),
    ("concentration", "concentration", ConcentrationCurve),
    ("examination", "examination", Examination),
    ("errors", "errors_of_rows", RowErrors),
)
"""Attribute, key in ``result.json`` and kind of what an analysis may lack."""


@dataclass(frozen=True)
class Absent:
    """What a result file alone does not hold: any use of it says so."""

    name: str

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # copying and pickling ask for these
            raise AttributeError(attribute)
        raise self._error()

    def __len__(self) -> int:
        raise self._error()

    def __getitem__(self, _: Any) -> Any:
        raise self._error()

    def _error(self) -> ArgumentError:
        return ArgumentError(
            f"this result was read without its {self.name}: the stage that it rests on does not lie beside it; load "
            "the run's folder, or repeat the run"
        )


@dataclass(frozen=True, eq=False)
class Analysis:
    """What :func:`curvprobe.analyze` found; print it for the answer in ten lines, and its :meth:`table` for the rest.

    Attributes:
        p: order of the criterion, where nothing else is said.
        k: examples in the sample.
        num_candidates: examples outside it that were tried as the next one.
        num_params, dtype: of the probed parameters.
        loss, gradient_norm: of the empirical risk at the solution: value, and Euclidean norm of the gradient.
        held_out_loss: that of the candidates; NaN for a single one, and in a result of an earlier version.
        spectrum: the top-D eigenvalues, with residuals.
        validity: error of the quadratic model over sigma.
        sigma: standard deviation of the probe; ``sigma_source`` tells where it comes from.
        delta1: pointwise criterion for the first candidate.
        closed_form: Delta_2^(D) for the first candidate, on the quadratic model, split into its parts.
        quadratic: the same by Monte Carlo on the quadratic model.
        direct: Delta_2^(D) for the first candidate, by Monte Carlo on the true loss.
        controlled: the same draws with the quadratic model as control variate: the best estimate of the truth where the
            model is valid; elsewhere take whichever of the two has the smaller standard error.
        isotropic: Delta_2 for the first candidate, by Monte Carlo on the true loss; this and the next two are None in a
            quick analysis, and the next two unless p = 2.
        isotropic_controlled: some of these draws with the quadratic model as control variate.
        isotropic_closed_form: the same on the quadratic model, by stochastic traces.
        surrogate_error: relative error of the quadratic model of the first candidate's increment, in the draws of
            ``direct``: root mean square over that of the increment's change.
        errors: how far the closed forms of the first candidates, of those that the ranking shows, and their mean are
            from the true loss, each by draws of its own; None in a result of an earlier version.
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
        examination: what was checked of the model, its loss and its data, as :func:`curvprobe.examine` does; None in a
            result of an earlier version.
        notes: what a reader should know before trusting the numbers.
        config, versions: how it was made.
        seconds: of every stage; a stage that was found on disk has 0.
        subspace: the top-D eigenspace.
        sample, fresh: projected sample and candidates. Where a result file was read without the stages that it rests
            on, a use of these three raises :class:`curvprobe.ArgumentError`.
        plane: the loss itself over the first two eigenvectors; None where it was not computed, or not read.
        drawn: examples of the k that all this was estimated from (``max_examples``), and as many others that the
            eigenspace was found from; None where all were taken.
    """

    p: float
    k: int
    num_candidates: int
    num_params: int
    dtype: str
    loss: float
    gradient_norm: float
    held_out_loss: float
    spectrum: Spectrum
    validity: QuadraticValidity
    sigma: float
    sigma_source: str
    delta1: Estimate
    closed_form: Estimate
    quadratic: Estimate
    direct: Estimate
    controlled: Estimate
    isotropic: Estimate | None
    isotropic_controlled: Estimate | None
    isotropic_closed_form: Estimate | None
    surrogate_error: float
    errors: RowErrors | None
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
    examination: Examination | None
    notes: tuple[str, ...]
    config: dict[str, Any]
    versions: dict[str, str]
    seconds: dict[str, float]
    subspace: Eigenspace
    sample: ProjectedSample
    fresh: ProjectedSample
    plane: Plane | None = None
    drawn: int | None = None

    @property
    def verdict(self) -> Verdict:
        """Of the quadratic model at the chosen sigma: valid, marginal or invalid."""
        return self.validity.verdict(self.sigma)

    @property
    def isotropic_distance(self) -> float:
        """Isotropic closed form less Monte Carlo on the true loss, in standard errors: how that model is judged."""
        if self.isotropic_closed_form is None or self.isotropic is None:
            return math.nan
        stderr = math.hypot(self.isotropic.stderr, self.isotropic_closed_form.stderr)
        return (self.isotropic_closed_form.value - self.isotropic.value) / stderr if stderr > 0 else 0.0

    def estimates(self) -> dict[str, Estimate]:
        """Every estimate for the first candidate, by name."""
        found = {name: getattr(self, attribute) for name, attribute in ESTIMATES.items()}
        return {name: estimate for name, estimate in found.items() if estimate is not None}

    def metrics(self) -> dict[str, float]:
        """Flat numbers for an experiment logger, keyed ``curvprobe/...``."""
        values: dict[str, float] = {
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "k": self.k,
            "sigma": self.sigma,
            "num_matvecs": self.spectrum.num_matvecs,
            "residual_max": float(self.spectrum.residuals.max()),
            "quadratic_error": self.validity.error_at(self.sigma),
            "expected_delta2_subspace": float(self.decay.value[-1, -1, 0]),
            "expected_delta2_subspace_stderr": float(self.decay.stderr[-1, -1, 0]),
            "expected_shape": float(self.decay.shape[-1, -1, 0]),
            "expected_shape_stderr": float(self.decay.shape_stderr[-1, -1, 0]),
            "quadratic_error_stderr": self.validity.stderr_at(self.sigma),
        }
        values |= {f"eigenvalue_{i + 1}": float(value) for i, value in enumerate(self.spectrum.eigenvalues)}
        for name, estimate in self.estimates().items():
            values[name] = estimate.value
            values[f"{name}_stderr"] = estimate.stderr
        for part in ("level", "slope", "curvature"):
            values[f"expected_{part}"] = float(getattr(self.decay, part)[-1, -1, 0])
        return {f"curvprobe/{name}": float(value) for name, value in values.items()}

    def to_dataframe(self) -> Any:
        """The estimates as a pandas DataFrame, one row each."""
        import pandas

        return pandas.DataFrame([{"criterion": name, **row} for name, row in self.rows().items()])

    def rows(self) -> dict[str, dict[str, Any]]:
        """Every estimate for the first candidate as plain values, with what it is an estimate of."""
        return {
            name: {"target": "quadratic model" if name in _OF_THE_MODEL else "true loss", **estimate.to_json()}
            for name, estimate in self.estimates().items()
        }

    def to_json(self) -> dict[str, Any]:
        """Everything but the bulk tensors, as ``result.json`` holds it."""
        return {
            "schema_version": RESULT_VERSION,
            "versions": self.versions,
            "config": self.config,
            "p": self.p,
            "sample": {
                "k": self.k,
                "num_candidates": self.num_candidates,
                "num_params": self.num_params,
                "dtype": self.dtype,
                "loss": self.loss,
                "gradient_norm": self.gradient_norm,
                "held_out_loss": self.held_out_loss,
                "drawn": self.drawn,
            },
            "eigenspace": self.spectrum.to_json(),
            "validity": self.validity.to_json() | {"increment_error_of_monte_carlo": self.surrogate_error},
            "isotropic_closed_form_in_standard_errors": self.isotropic_distance,
            "sigma": {"value": self.sigma, "source": self.sigma_source, "verdict": self.verdict},
            "first_candidate": self.rows(),
            "errors_of_rows": None if self.errors is None else self.errors.to_json(),
            "expected": None if self.expected is None else self.expected.to_json(),
            "doubling": None if self.doubling is None else self.doubling.to_json(),
            "required_sample_size": None if self.required is None else self.required.to_json(),
            "stationarity": self.stationarity.to_json(),
            "theory": self.theory.to_json(),
            "laws": None if self.laws is None else self.laws.to_json(),
            "concentration": None if self.concentration is None else self.concentration.to_json(),
            "ranking": self.ranking.to_json(),
            "decay": self.decay.to_json(),
            "shares": self.shares.to_json(),
            "examination": None if self.examination is None else self.examination.to_json(),
            "notes": self.notes,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], **bulk: Any) -> Analysis:
        """What :meth:`to_json` has written, with ``subspace``, ``sample`` and ``fresh``; see :class:`Absent`."""
        rows = record["first_candidate"]
        parts: dict[str, Any] = {
            attribute: Estimate.from_json(rows[name]) if name in rows else None for name, attribute in ESTIMATES.items()
        }
        for attribute, key, kind in _OPTIONAL:
            parts[attribute] = None if record.get(key) is None else kind.from_json(record[key])
        return cls(
            p=record.get("p", 2.0),
            **record["sample"] | {"held_out_loss": number(record["sample"].get("held_out_loss"))},
            spectrum=Spectrum.from_json(record["eigenspace"]),
            validity=QuadraticValidity.from_json(record["validity"]),
            sigma=record["sigma"]["value"],
            sigma_source=record["sigma"]["source"],
            surrogate_error=number(record["validity"]["increment_error_of_monte_carlo"]),
            **parts,
            stationarity=Stationarity.from_json(record["stationarity"]),
            theory=TheoryChecks.from_json(record["theory"]),
            ranking=Ranking.from_json(record["ranking"]),
            decay=DecayCurve.from_json(record["decay"]),
            shares=DecayCurve.from_json(record["shares"]),
            notes=tuple(record["notes"]),
            config=record["config"],
            versions=record["versions"],
            seconds=record["seconds"],
            **bulk,
        )

    @property
    def answer(self) -> Answer:
        """What was found in ten lines: what the landscape does, by how much, and how far to trust that."""
        return answer(self)

    def __str__(self) -> str:
        return f"{self.answer}\ndetails: analysis.table()"

    def _repr_html_(self) -> str:
        """For a notebook."""
        return self.answer._repr_html_()

    @property
    def probed(self) -> str:
        """How many parameters were probed, and of how many, where that is a part of the model."""
        others = int(self.config.get("num_other_params", 0))  # a result of an earlier version does not tell
        return f"{self.num_params:,} {f'of {self.num_params + others:,} ' if others else ''}parameters"

    @property
    def counted(self) -> str:
        """How many examples are in the sample, and from how many of them this was found."""
        if self.drawn is None:
            return f"k = {self.k:,}"
        return f"k = {self.k:,} (from {self.drawn:,} of {self.k:,} examples, seed {self.config['seed']})"

    @property
    def space(self) -> str:
        """What the gradient was looked at in, and from how many examples where that is not all."""
        where = "all that are probed" if self.config.get("num_other_params") else "whole space"
        return where if self.drawn is None else f"{where}, as far as {self.drawn:,} examples tell"

    @property
    def of_those_drawn(self) -> str:
        """What is said beside a verdict that holds of drawn examples."""
        return "" if self.drawn is None else f", of {self.drawn:,} drawn"

    def __repr__(self) -> str:
        return f"Analysis(k={self.k}, num_params={self.num_params}, dim={self.spectrum.dim}, sigma={self.sigma:.3g})"

    def to_html(
        self,
        path: str | Path,
        *,
        title: str = "",
        names: Sequence[str] | None = None,
        pictures: Any = None,
        forecast: Forecast | None = None,
    ) -> Path:
        """Write one self-contained page: the answer, the landscape settling, sliders that recompute, and all the rest.

        Args:
            path: of the file; an earlier one is replaced.
            title: of the page; the file's folder otherwise.
            names: of the candidates, in their order, for the ranking; None numbers them.
            pictures: of the candidates, for the first hundred rows of the ranking: (n, H, W) or (n, C, H, W) numbers
                with one channel or three, or a sequence of such arrays.
            forecast: of :func:`curvprobe.forecast` for the same model, which gets a panel apart from the criteria.

        Raises:
            ImportError: without ``pip install 'curvprobe[report]'``.
            ValueError: for a result that was read without its projections, or names or pictures that are not as many
                as candidates.
        """
        from curvprobe.report.page import page

        file = Path(path)
        title = title or file.resolve().parent.name
        write_atomically(file, page(self, title=title, names=names, pictures=pictures, forecast=forecast).encode())
        return file

    def table(self) -> str:
        """All that was found, as a text."""
        return table(self)
