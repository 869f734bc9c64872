"""The result of an analysis as a text that fits on a screen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from curvprobe.estimators import Estimate

if TYPE_CHECKING:
    from curvprobe.result import Analysis

SHOWN = 5
"""Candidates of the ranking."""


def lines(a: Analysis) -> list[str]:
    """The whole table."""
    eigenvalues, residuals, converged = a.subspace.eigenvalues, a.subspace.residuals, a.subspace.converged
    assert eigenvalues is not None
    assert residuals is not None
    assert converged is not None
    shown = ", ".join(f"{value:.4g}" for value in eigenvalues[:6].tolist()) + (", ..." if len(eigenvalues) > 6 else "")
    parts = [float(getattr(a.decay, part)[-1, -1, 0]) for part in ("level", "slope", "curvature")]
    total = sum(parts) or 1.0
    expected, stderr = float(a.decay.value[-1, -1, 0]), float(a.decay.stderr[-1, -1, 0])

    def row(name: str, e: Estimate, comment: str) -> str:
        error = "exact" if e.stderr == 0 and not e.num_probes else f"+- {e.stderr:.1e}"
        if comment.startswith("quadratic model") and not e.num_probes:
            error = "exact for the model"
        return f"  {name:<38} {e.value:>12.5e}  {error:<20} rms {e.rms:.3e}  {comment}"

    spread = f" +- {stderr:.1e}" if a.num_candidates > 1 else " (one candidate: no standard error)"
    shown_lines = [
        f"Sample: {a.k} examples, {a.num_candidates} candidates; {a.num_params} parameters ({a.dtype})",
        f"Solution: loss {a.loss:.5g}, gradient norm {a.gradient_norm:.2e}",
        f"Top-{a.subspace.dim} eigenvalues: {shown}; next about {a.subspace.next_eigenvalue:.4g}",
        f"  {int(converged.sum())} of {len(converged)} certified, largest residual {float(residuals.max()):.1e} of the "
        f"first eigenvalue, {a.subspace.num_matvecs} Hessian products",
        f"Probe: sigma = {a.sigma:.3g} ({a.sigma_source}); the quadratic model is {a.verdict} there, error "
        f"{100 * a.validity.error_at(a.sigma):.2g} +- {100 * a.validity.stderr_at(a.sigma):.1g} % "
        f"({100 * a.surrogate_error:.2g} % for the first candidate in all draws of Monte Carlo)",
        *_floor_lines(a),
        "",
        "If the first candidate is added (squared loss units; rms in loss units):",
        row("Delta_1 at the solution", a.delta1, "true loss, loss units"),
        row(f"Delta_2^({a.subspace.dim}) closed form", a.closed_form, "quadratic model"),
        row(f"Delta_2^({a.subspace.dim}) quadratic Monte Carlo", a.quadratic, "quadratic model"),
        row(f"Delta_2^({a.subspace.dim}) direct Monte Carlo", a.direct, "true loss"),
        row(f"Delta_2^({a.subspace.dim}) controlled Monte Carlo", a.controlled, "true loss"),
        row("Delta_2 isotropic Monte Carlo", a.isotropic, "true loss"),
        row("Delta_2 isotropic controlled", a.isotropic_controlled, "true loss"),
        row(
            "Delta_2 isotropic closed form",
            a.isotropic_closed_form,
            f"quadratic model, {abs(a.isotropic_distance):.1f} standard errors from the true loss",
        ),
        f"  (A probe is {a.sigma * a.subspace.dim**0.5:.2g} from the solution in the subspace, and "
        f"{a.sigma * a.num_params**0.5:.2g} when isotropic.)",
        "",
        f"Averaged over the {a.num_candidates} candidates as the next example: Delta_2^({a.subspace.dim}) = "
        f"{expected:.5e}{spread}, rms {expected**0.5:.3e} loss units",
        f"  of it level {100 * parts[0] / total:.2f} %, slope {100 * parts[1] / total:.2g} %, curvature "
        f"{100 * parts[2] / total:.2g} %; shape (all but the level) {parts[1] + parts[2]:.3e}"
        + (f" +- {float(a.decay.shape_stderr[-1, -1, 0]):.1e}" if a.num_candidates > 1 else ""),
    ]
    shown_lines += _expectation_lines(a)
    if a.notes:
        shown_lines += ["", "Notes:", *(f"  - {note}" for note in a.notes)]
    return shown_lines


def _expectation_lines(a: Analysis) -> list[str]:
    """What is expected of the next example, and of as many again."""
    lines = []
    if a.expected is not None and a.doubling is not None:
        low, high = a.expected.rms_interval
        of = "the rms"
        if a.expected.pool:
            lines += [f"Averaged over all orders of the sample itself: rms {a.expected.rms:.3e} loss units"]
            of = "it"
        lines += [
            f"  95 % interval of {of}: [{low:.3e}, {high:.3e}]; {a.doubling.rms:.3e} when as many join as there are",
            *(f"  {line}" for line in str(a.expected).split("\n")[1:]),
        ]
    if a.required is not None:
        low, high = a.required.interval
        size = f"{a.required.value} [{low:.0f}, {high:.0f}]" if a.required.value else "no answer"
        lines += [f"Sample size for an rms of {a.required.tolerance:g} loss units: {size}; {a.required.verdict}"]
        lines += [f"  (if {a.required.assumptions})"] if a.required.value else []
    s, bound, shape = a.stationarity, a.theory.rate_bound, a.ranking.agreement()["shape"]
    promised = "is not defined (not all eigenvalues are positive)"
    if not math.isnan(s.newton_decrement):
        promised = f"would take {s.newton_decrement:.2e} off the loss"
    lines += [
        "",
        f"Stationarity: a Newton step in the subspace {promised};",
        f"  in the slope's mean square the sample's own gradient is {100 * s.slope_share:.2g} %",
        f"Theory, first candidate: rate bound {bound.bound:.2e}, {bound.slack:.2g} times the value; spectral form "
        f"{a.theory.spectral_closed_form.value:.2e};",
        f"  of {a.theory.extremality.num_sets} sets of directions, {100 * a.theory.extremality.share_below:.0f} % bend "
        "no more than the leading ones",
        *_ranking_lines(a),
        "Ranking by shape agrees with "
        + ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in shape.items())
        + " (rank correlation)",
    ]
    if a.laws is not None:
        lines += [
            "",
            "If the first candidate is added, under other laws:",
            *(f"  {x}" for x in str(a.laws).split("\n")),
        ]
    if a.concentration is not None:
        lines += ["", *str(a.concentration).split("\n")]
    return lines


def _floor_lines(a: Analysis) -> list[str]:
    """Where rounding takes over: as measured in the model's own precision, and by the unit roundoff of bfloat16."""
    measured, rough = a.validity.precision_floor, a.validity.rounding_floor(torch.bfloat16)
    lines = [] if measured is None else [f"  Below sigma = {measured:.2g} rounding in {a.dtype} takes over."]
    where = "at every sigma that was tried" if rough is None else f"below sigma = {rough:.2g}"
    return [*lines, f"  In bfloat16, rounding of the losses would hide the increment's change {where}."]


def _ranking_lines(a: Analysis) -> list[str]:
    """The candidates that would move the landscape most, beside plain baselines."""
    if a.num_candidates < 2:
        return []
    columns = a.ranking.columns()
    lines = [
        "Candidates that would move it most:",
        "  " + f"{'candidate':>9}" + "".join(f"{name.replace('_', ' '):>25}" for name in columns),
    ]
    rows = a.ranking.order[:SHOWN].tolist()
    return lines + [f"  {j:>9}" + "".join(f"{column[j]:>25.4g}" for column in columns.values()) for j in rows]
