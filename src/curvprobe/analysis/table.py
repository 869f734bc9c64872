"""The text of everything that a result holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from curvprobe.criteria.decay import DecayCurve
from curvprobe.criteria.estimators import Estimate
from curvprobe.criteria.expected import ExpectedCriterion
from curvprobe.criteria.ranking import Ranking
from curvprobe.criteria.row_errors import RowError, RowErrors
from curvprobe.criteria.verdicts import QuadraticValidity
from curvprobe.numerics.intervals import FEWEST_FOR_UPPER

if TYPE_CHECKING:
    from curvprobe.analysis.result import Analysis


def estimate_row(name: str, e: Estimate, comment: str) -> str:
    """One estimate with its error, and what it is an estimate of."""
    error = "exact" if e.stderr == 0 and not e.num_probes else f"+- {e.reach:.1e}"
    if comment.startswith("quadratic model") and not e.num_probes:
        error = "exact for the model"
    root = "rms" if e.p == 2 else "root"
    return f"  {name:<38} {e.value:>12.5e}  {error:<20} {root} {e.rms:.3e}  {comment}"


def mean_lines(curve: DecayCurve, num_candidates: int, errors: RowErrors | None, p: float) -> list[str]:
    """The criterion averaged over the candidates, and its parts, at the largest sample and dimension of the curve."""
    dim = int(curve.dims[-1])
    value, stderr = float(curve.value[-1, -1, 0]), float(curve.stderr[-1, -1, 0])
    level, slope, curvature = (float(getattr(curve, part)[-1, -1, 0]) for part in ("level", "slope", "curvature"))
    total, several = level + slope + curvature or 1.0, num_candidates > 1
    spread = f" (standard error {stderr:.1e})" if several else " (one candidate: no standard error)"
    it = "it" if p == 2 else f"the closed form of order {p:g}"
    return [
        f"Averaged over the {num_candidates} candidates as the next example: Delta_2^({dim}) = "
        f"{value:.5e}{spread}, rms {value**0.5:.3e} loss units",
        f"  of it level {100 * level / total:.2f} %, slope {100 * slope / total:.2g} %, curvature "
        f"{100 * curvature / total:.2g} %; shape (all but the level) {slope + curvature:.3e}"
        + (f" (standard error {float(curve.shape_stderr[-1, -1, 0]):.1e})" if several else ""),
        *(
            []
            if errors is None
            else [f"  the truth against {it}, over {errors.num_candidates} of them: {errors.expected}"]
        ),
    ]


def expected_lines(expected: ExpectedCriterion | None, doubling: ExpectedCriterion | None) -> list[str]:
    """What is expected of the next example, and of as many again."""
    if expected is None:
        return []
    if doubling is None:
        return [
            f"Over the sample itself, to which the weights were fitted: {expected}" if expected.pool else str(expected)
        ]
    low, high = expected.rms_interval
    lines, of = list[str](), "the rms"
    if expected.pool:
        lines, of = [f"Averaged over all orders of the sample itself: rms {expected.rms:.3e} loss units"], "it"
    return [
        *lines,
        f"  95 % interval of {of}: [{low:.3e}, {high:.3e}]{_no_upper(high)}; {doubling.rms:.3e} when as many join as "
        "there are",
        *indented("\n".join(str(expected).split("\n")[1:])),
    ]


def _no_upper(high: float) -> str:
    return (
        "" if math.isfinite(high) else f" (no upper end: it takes {FEWEST_FOR_UPPER} examples, none of which prevails)"
    )


def ranking_lines(ranking: Ranking, errors: RowErrors | None) -> list[str]:
    """The ranking, with what is known of each row's closed form."""
    if errors is None:
        return [str(ranking)]
    return [ranking.text({position: str(row) for position, row in errors.rows.items()})]


def floor_lines(validity: QuadraticValidity, dtype: str) -> list[str]:
    """Where rounding takes over: as measured in the model's own precision, and by the unit roundoff of bfloat16."""
    measured, rough = validity.precision_floor, validity.rounding_floor(torch.bfloat16)
    lines = [] if measured is None else [f"  Below sigma = {measured:.2g} rounding in {dtype} takes over."]
    if bool(validity.change.isnan().any()):  # a result of the first version does not tell
        return lines
    where = "at every sigma that was tried" if rough is None else f"below sigma = {rough:.2g}"
    return [*lines, f"  In bfloat16, rounding of the losses would hide the increment's change {where}."]


def indented(text: str) -> list[str]:
    """The lines of a text, two spaces in."""
    return [f"  {line}" for line in text.split("\n")]


def table(found: Analysis) -> str:
    """All that was found, as a text."""
    at = found.sigma
    error, stderr = (100 * part for part in (found.validity.error_at(at), found.validity.stderr_at(at)))
    lines = [
        f"Sample: {found.k} examples, {found.num_candidates} candidates; {found.num_params} parameters ({found.dtype})",
        f"Solution: loss {found.loss:.5g}, gradient norm {found.gradient_norm:.2e}",
        *([] if found.examination is None else [f"Checks: {found.examination.summary()}"]),
        str(found.spectrum),
        f"Probe: sigma = {at:.3g} ({found.sigma_source}); for the candidates together the quadratic model is "
        f"{found.verdict} there, error {error:.2g} +- {stderr:.1g} %; each row below says how far its own is off",
        *floor_lines(found.validity, found.dtype),
        "",
        *_first_candidate_lines(found),
        "",
        *mean_lines(found.decay, found.num_candidates, found.errors, found.p),
        *expected_lines(found.expected, found.doubling),
        *([] if found.required is None else [str(found.required)]),
        "",
        str(found.stationarity),
        str(found.theory),
        *ranking_lines(found.ranking, found.errors),
    ]
    if found.laws is not None:
        lines += ["", "If the first candidate is added, under other laws:", *indented(str(found.laws))]
    if found.concentration is not None:
        lines += ["", str(found.concentration)]
    if found.notes:
        lines += ["", "Notes:", *(f"  - {note}" for note in found.notes)]
    return "\n".join(lines)


def _first_candidate_lines(found: Analysis) -> list[str]:
    subspace = f"Delta_2^({found.spectrum.dim})"
    isotropic = "Delta_2 isotropic" if found.p == 2 else f"Order {found.p:g}, isotropic"
    wide, first = "quadratic model", "quadratic model"
    if found.errors is not None:
        first = f"quadratic model; the truth against it: {found.errors.rows[0]}"
    if found.isotropic_closed_form is not None and found.isotropic_controlled is not None:
        error = RowError.of_total(found.isotropic_closed_form, found.isotropic_controlled)
        wide = f"quadratic model; the truth against it: {error}"
    unit = "squared loss units; rms in loss units"
    if found.p != 2:
        subspace, unit = f"Order {found.p:g}, D = {found.spectrum.dim}", f"loss units to the power {found.p:g}"
    rows = [
        ("Delta_1 at the solution", found.delta1, "true loss, loss units"),
        (f"{subspace} closed form", found.closed_form, first),
        (f"{subspace} quadratic Monte Carlo", found.quadratic, "quadratic model"),
        (f"{subspace} direct Monte Carlo", found.direct, "true loss"),
        (f"{subspace} controlled Monte Carlo", found.controlled, "true loss"),
        (f"{isotropic} Monte Carlo", found.isotropic, "true loss"),
        ("Delta_2 isotropic controlled", found.isotropic_controlled, "true loss"),
        ("Delta_2 isotropic closed form", found.isotropic_closed_form, wide),
    ]
    return [
        f"If the first candidate is added ({unit}; 95 % intervals):",
        *(estimate_row(name, estimate, comment) for name, estimate, comment in rows if estimate is not None),
        f"  (A probe is {found.sigma * found.spectrum.dim**0.5:.2g} from the solution in the subspace, and "
        f"{found.sigma * found.num_params**0.5:.2g} when isotropic.)",
        *(["  (The isotropic criterion was left out: stages = 'full' has it.)"] if found.isotropic is None else []),
    ]
