"""Everything that a result holds, in sections."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from curvprobe.analysis.answer import three
from curvprobe.analysis.concentration import ConcentrationCurve
from curvprobe.analysis.law_table import LawTable
from curvprobe.analysis.sections import Columns, Section, plain
from curvprobe.analysis.spectrum import SHOWN as SHOWN_VALUES
from curvprobe.analysis.spectrum import Spectrum
from curvprobe.criteria.decay import DecayCurve
from curvprobe.criteria.estimators import Estimate
from curvprobe.criteria.expected import PARTS, SOURCES, ExpectedCriterion
from curvprobe.criteria.ranking import SHOWN, Ranking
from curvprobe.criteria.row_errors import RowError, RowErrors
from curvprobe.criteria.sample_size import RequiredSampleSize
from curvprobe.criteria.stationarity import Stationarity
from curvprobe.criteria.theory import TheoryChecks
from curvprobe.criteria.verdicts import QuadraticValidity
from curvprobe.numerics.intervals import FEWEST_FOR_UPPER, NORMAL

if TYPE_CHECKING:
    from curvprobe.analysis.result import Analysis


def table(found: Analysis) -> str:
    """All that was found, as a text."""
    return plain(sections(found))


def sections(found: Analysis) -> list[Section]:
    """All that was found: what was measured, where, how far it holds, and what it is."""
    parts = [
        Section("The solution", (_facts(_solution(found)),)),
        Section("The eigenspace", (_facts(_eigenspace(found.spectrum)),)),
        Section("The probe and the quadratic model", (_facts(_probe(found)),)),
        Section(_of_next(found), (_units(found.p), *_next_example(found))),
        *([] if found.required is None else [Section("Sample size", (_facts(_size(found.required)),))]),
        Section("If the first candidate is added", _first_candidate(found)),
        Section("Stationarity", (_facts(_stationarity(found.stationarity)),)),
        Section("Theory, for the first candidate", (_facts(_theory(found.theory)),)),
        Section("Candidates that would move it most", _ranking(found.ranking, found.errors)),
    ]
    if found.laws is not None:
        parts.append(Section("The first candidate under other laws", (_laws(found.laws),)))
    if found.concentration is not None:
        parts.append(Section("How much of it the first D directions hold", _concentration(found.concentration)))
    if found.notes:
        parts.append(Section("Notes", (_facts([("-", note) for note in found.notes]),)))
    return parts


def _facts(pairs: list[tuple[str, str]]) -> Columns:
    return Columns(("", ""), tuple(pairs), words=(0, 1))


def _brief(value: float) -> str:
    return f"{value:.3g}"


def _with_reach(value: float, reach: float) -> str:
    """A number with half of its 95 % interval."""
    return _brief(value) if math.isnan(reach) else f"{value:.3g} +- {reach:.2g}"


def _interval(low: float, high: float) -> str:
    return f"[{low:.3g}, {high:.3g}]"


def _solution(found: Analysis) -> list[tuple[str, str]]:
    held_out = "" if math.isnan(found.held_out_loss) else f", {three(found.held_out_loss)} on the candidates"
    drawn = "" if found.drawn is None else f" (seen by {found.drawn:,} that were drawn)"
    return [
        ("examples", f"{found.k:,} in the sample{drawn}, {found.num_candidates:,} candidates"),
        ("parameters", f"{found.num_params:,} ({found.dtype})"),
        ("loss", f"{three(found.loss)} on the sample{held_out}"),
        ("gradient norm", f"{found.gradient_norm:.3g}"),
        *([] if found.examination is None else [("checks", found.examination.summary())]),
    ]


def _probe(found: Analysis) -> list[tuple[str, str]]:
    at, validity = found.sigma, found.validity
    error, reach = validity.error_at(at), validity.reach_at(at)
    return [
        ("sigma", f"{at:.3g} ({found.sigma_source})"),
        (
            "distance",
            f"a probe is {at * found.spectrum.dim**0.5:.2g} from the solution in the subspace, "
            f"{at * found.num_params**0.5:.2g} when isotropic",
        ),
        (
            "quadratic model",
            f"{found.verdict} for the candidates together: the increment's change is off by "
            f"{100 * error:.2g} +- {100 * reach:.1g} %; rows below tell how far their own is off",
        ),
        *_floors(validity, found.dtype),
    ]


def _floors(validity: QuadraticValidity, dtype: str) -> list[tuple[str, str]]:
    """Where rounding takes over: as measured in the model's own precision, and by the unit roundoff of bfloat16."""
    measured, rough = validity.precision_floor, validity.rounding_floor(torch.bfloat16)
    lines = [] if measured is None else [f"below sigma = {measured:.2g} it takes over in {dtype}"]
    if not bool(validity.change.isnan().any()):  # a result of the first version does not tell
        where = "at every sigma that was tried" if rough is None else f"below sigma = {rough:.2g}"
        lines.append(f"in bfloat16 it would hide the increment's change {where}")
    return [("rounding", "; ".join(lines))] if lines else []


def _eigenspace(spectrum: Spectrum) -> list[tuple[str, str]]:
    more = ", ..." * (spectrum.dim > SHOWN_VALUES)
    reaches = [math.nan] * spectrum.dim if spectrum.reach is None else spectrum.reach.tolist()
    both = zip(spectrum.eigenvalues.tolist(), reaches, strict=True)
    values = [_with_reach(value, reach) for value, reach in both][:SHOWN_VALUES]
    return [
        ("eigenvalues", ", ".join(values) + more),
        ("next", f"about {_brief(spectrum.next_eigenvalue)}"),
        (
            "certified",
            f"{int(spectrum.converged.sum())} of {spectrum.dim}, largest residual "
            f"{float(spectrum.residuals.max()):.2g} of {spectrum.relative_to}",
        ),
        ("products", f"{spectrum.num_matvecs} with the Hessian"),
    ]


def _of_next(found: Analysis) -> str:
    if found.num_candidates > 1 or found.expected is None:
        return f"Whichever of the {found.num_candidates:,} candidates comes next"
    return "Whichever of the sample's own examples had come last"


def _next_example(found: Analysis) -> tuple[str | Columns, ...]:
    """The criterion over the candidates, and its parts."""
    expected, doubling = found.expected, found.doubling
    if expected is None:
        return (Columns(_HEADER, (_of_curve(found.decay),)),)
    rows = [_criterion_row("one more example", expected)]
    if expected.p == 2:
        low, high = expected.shape_rms_interval
        rows.append(
            ("its shape: all but the level", _brief(expected.shape), _brief(expected.shape_rms), _interval(low, high))
        )
    if doubling is not None:
        rows.append(_criterion_row("as many again", doubling))
    told: list[str | Columns] = [Columns(_HEADER, tuple(rows))]
    if not math.isfinite(expected.rms_interval[1]):
        told.append(f"(no upper end: it takes {FEWEST_FOR_UPPER} examples, none of which prevails)")
    if expected.pool:
        told.append("(averaged over all orders of the sample, to which the weights were fitted)")
    if expected.p == 2:
        told += ["", _cells(expected)]
    if found.errors is not None:
        it = "closed form" if found.p == 2 else f"closed form of order {found.p:g}"
        told.append(
            f"\nThe truth against the {it}, over {found.errors.num_candidates} candidates: {found.errors.expected}"
        )
    return tuple(told)


_HEADER = ("", "criterion", "root", "95 % of the root")


def _units(p: float) -> str:
    return f"({'squared loss units' if p == 2 else f'loss units to the power {p:g}'}; roots in loss units)"


def _criterion_row(name: str, expected: ExpectedCriterion) -> tuple[str, ...]:
    return (name, _brief(expected.value), _brief(expected.rms), _interval(*expected.rms_interval))


def _of_curve(curve: DecayCurve) -> tuple[str, ...]:
    """The same for a single candidate, over which nothing can be averaged."""
    value = float(curve.value[-1, -1, 0])
    return ("the only candidate", _brief(value), _brief(max(0.0, value) ** 0.5), "none for one candidate")


def _cells(expected: ExpectedCriterion) -> Columns:
    rows = [
        (source, *(_with_reach(v, NORMAL * e) for v, e in zip(values, errors, strict=True)))
        for source, values, errors in zip(SOURCES, expected.table.tolist(), expected.table_stderr.tolist(), strict=True)
    ]
    total = expected.value or 1.0
    shares = [100 * part / total for part in expected.table.sum(0).tolist()]
    return Columns(("", *PARTS), (*rows, ("together", *(f"{share:.3g} %" for share in shares))))


def _size(size: RequiredSampleSize) -> list[tuple[str, str]]:
    asked, _, told = str(size).partition(": ")
    answer, _, condition = told.partition("\n")
    return [
        ("asked", asked[:1].lower() + asked[1:]),
        ("answer", answer),
        *([("condition", condition.strip(" ()"))] if condition else []),
    ]


def _first_candidate(found: Analysis) -> tuple[str | Columns, ...]:
    subspace, isotropic = f"Delta_2^({found.spectrum.dim})", "Delta_2 isotropic"
    if found.p != 2:
        subspace, isotropic = f"order {found.p:g}, D = {found.spectrum.dim}", f"order {found.p:g}, isotropic"
    rows = [
        ("Delta_1, at the solution", found.delta1, "truth"),
        (f"{subspace}, closed form", found.closed_form, "model"),
        (f"{subspace}, quadratic Monte Carlo", found.quadratic, "model"),
        (f"{subspace}, direct Monte Carlo", found.direct, "truth"),
        (f"{subspace}, controlled", found.controlled, "truth"),
        (f"{isotropic}, Monte Carlo", found.isotropic, "truth"),
        ("Delta_2 isotropic, controlled", found.isotropic_controlled, "truth"),
        ("Delta_2 isotropic, closed form", found.isotropic_closed_form, "model"),
    ]
    told: list[str | Columns] = [
        Columns(
            ("", "criterion", "95 %", "root", "of"),
            tuple(estimate_row(name, estimate, of) for name, estimate, of in rows if estimate is not None),
            words=(0, 4),
        )
    ]
    if found.errors is not None:
        told.append(f"\nThe truth against the closed form: {found.errors.rows[0]}")
    if found.isotropic_closed_form is not None and found.isotropic_controlled is not None:
        error = RowError.of_total(found.isotropic_closed_form, found.isotropic_controlled)
        told.append(f"The truth against the isotropic one: {error}")
    if found.drawn is not None:
        told.append("(The isotropic criterion is known from all examples only.)")
    elif found.isotropic is None:
        told.append("(The isotropic criterion was left out: stages = 'full' has it.)")
    return tuple(told)


def estimate_row(name: str, estimate: Estimate, of: str) -> tuple[str, ...]:
    """One estimate with its error, and what it is an estimate of."""
    exact = "exact" if estimate.stderr == 0 and not estimate.num_probes else f"+- {estimate.reach:.2g}"
    return (name, _brief(estimate.value), exact, _brief(estimate.rms), of)


def _stationarity(found: Stationarity) -> list[tuple[str, str]]:
    newton = f"in the subspace would take {_brief(found.newton_decrement)} off the loss"
    if math.isnan(found.newton_decrement):
        newton = "in the subspace is not defined (not all eigenvalues are positive)"
    rows = [
        ("gradient step", f"would take {_brief(found.step_decrease)} off the loss"),
        ("Newton step", newton),
        ("outside", f"the subspace is {100 * found.outside:.0f} % of the squared gradient"),
        ("slope", f"{100 * found.slope_share:.2g} % of its mean square is the sample's own gradient"),
    ]
    if not math.isnan(found.descent):
        met = f", and met a curvature of {found.least_curvature:.2g}" if found.least_curvature < 0 else ""
        rows.insert(
            2, ("conjugate gradients", f"a few steps of them took {_brief(found.descent)} off the loss itself{met}")
        )
    return rows


def _theory(found: TheoryChecks) -> list[tuple[str, str]]:
    bound, sets, form = found.rate_bound, found.extremality, found.spectral_closed_form
    ambient = "" if math.isnan(bound.ambient_bound) else f"; with N for D at least {_brief(bound.ambient_bound)}"
    holds = "holds" if sets.premise else "does not hold: the shifts are not all positive and in order, or B mixes them"
    return [
        ("rate bound", f"{_brief(bound.bound)}, {bound.slack:.2g} times the value{ambient}"),
        ("spectral form", f"{_brief(form.value)}; {100 * form.misalignment:.0f} % of B is not in the shifts"),
        (
            "extremality",
            f"of {sets.num_sets} sets of {len(sets.best_set)} of the directions found, {100 * sets.share_below:.0f} % "
            f"bend no more than the leading ones (the proposition's premise {holds})",
        ),
    ]


def _ranking(ranking: Ranking, errors: RowErrors | None) -> tuple[str | Columns, ...]:
    """The candidates that would move the landscape most beside plain baselines, with what is known of each row."""
    agreement = ", ".join(
        f"{name.replace('_', ' ')} {value:.2f}" for name, value in ranking.agreement()["shape"].items()
    )
    last = f"Ranking by shape agrees with {agreement} (rank correlation)"
    if len(ranking.total) < 2:
        return (last,)
    known = ranking.columns().items()  # quick stages take no gradient norms
    columns = {name: column for name, column in known if not all(map(math.isnan, column))}
    first = ranking.order[:SHOWN].tolist()
    rows = tuple((str(j), *(_brief(float(column[j])) for column in columns.values())) for j in first)
    header = ("candidate", *(name.replace("_", " ").replace("gradient norm", "gradient") for name in columns))
    told: list[str | Columns] = [Columns(header, rows, words=())]
    if errors is not None and any(j in errors.rows for j in first):
        told.append("\nThe truth against the total and the shape:")
        told.append(_facts([(str(j), str(errors.rows[j])) for j in first if j in errors.rows]))
    return (*told, f"\n{last}")


def _laws(laws: LawTable) -> Columns:
    rows = []
    for i, name in enumerate(laws.names):
        closed, true, reach = float(laws.closed[i]), float(laws.true[i]), float(laws.true_reach[i])
        against = str(RowError(true / closed - 1, reach / closed, math.nan, math.nan)) if closed > 0 else "none"
        rows.append((name, _brief(closed), _brief(float(laws.shape[i])), _with_reach(true, reach), against))
    header = ("law", "closed form", "shape", "true loss", "against the closed form")
    return Columns(header, tuple(rows), words=(0, 4))


def _concentration(curve: ConcentrationCurve) -> tuple[str | Columns, ...]:
    def cell(row: int, column: int) -> str:
        value = float(curve.shape[row, column])
        return "-" if math.isnan(value) else _with_reach(value, NORMAL * float(curve.shape_stderr[row, column]))

    first = (
        f"Averaged over the candidates at sigma {curve.sigma:.3g}: criterion in all {curve.num_params:,} parameters "
        f"{_with_reach(curve.full_criterion, NORMAL * curve.full_criterion_stderr)}, of it shape "
        f"{curve.full_shape:.3g}. Share of that shape, and certified directions:"
    )
    rows = tuple(
        (name, str(int(curve.certified[i])), *(cell(i, j) for j in range(len(curve.dims))))
        for i, name in enumerate(curve.names)
    )
    null = ("null, D / N", "", *(_brief(value) for value in curve.null.tolist()))
    dims = tuple(f"D = {dim}" for dim in curve.dims.tolist())
    return first, Columns(("directions", "certified", *dims), (*rows, null))
