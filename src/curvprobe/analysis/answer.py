"""The answer of an analysis in ten lines: what the landscape does, by how much, and how far to trust that."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from curvprobe.analysis.notebook import answer_html
from curvprobe.criteria.expected import ExpectedCriterion
from curvprobe.criteria.sample_size import OF_MEAN_WEIGHT, Of
from curvprobe.criteria.stationarity import REMEDY
from curvprobe.criteria.verdicts import Verdict
from curvprobe.numerics.intervals import FEWEST_FOR_UPPER

if TYPE_CHECKING:
    from curvprobe.analysis.result import Analysis

Word = Literal["yes", "doubt", "no"]
Judgement = Literal["within tolerance", "not within", "cannot tell"]

_WORDS: dict[Verdict, Word] = {"valid": "yes", "marginal": "doubt", "invalid": "no"}

CARRYING = 3
"""Candidates whose share of the whole is told."""


@dataclass(frozen=True)
class Mark:
    """Whether one thing that the numbers rest on holds.

    Attributes:
        name: "minimum", "quadratic", "eigenspace", "precision" or "checks".
        word: "yes", "doubt" or "no".
        said: what was seen, in a few words.
    """

    name: str
    word: Word
    said: str

    def __str__(self) -> str:
        return f"{self.name} {self.word.upper()} ({self.said})"


@dataclass(frozen=True)
class Answer:
    """What an analysis found, for a reader with ten seconds; print it for at most ten lines.

    Attributes:
        model: what was analysed.
        findings: sentences: what one more example does to the landscape, how much of that is a constant, the losses and
            which examples carry it; or why there is no answer.
        judgement: on the tolerance; None where none was given.
        tolerance: the sentence on it; empty where none was given.
        trust: what the numbers rest on, a mark each.
        advice: what to do next.
        probe: which sigma, and how it came about.
    """

    model: str
    findings: tuple[str, ...]
    judgement: Judgement | None
    tolerance: str
    trust: tuple[Mark, ...]
    advice: str
    probe: str

    @property
    def word(self) -> Word:
        """The worst of its marks."""
        found = {mark.word for mark in self.trust}
        return "no" if "no" in found else "doubt" if "doubt" in found else "yes"

    def __str__(self) -> str:
        lines = [self.model, *self.findings, self.tolerance, f"trust: {' | '.join(map(str, self.trust))}"]
        return "\n".join([*filter(None, lines), f"next: {self.advice}", self.probe])

    def _repr_html_(self) -> str:
        """For a notebook."""
        return answer_html(self)


def answer(analysis: Analysis) -> Answer:
    """What an analysis says in ten lines."""
    judgement, tolerance = _tolerance(analysis)
    notes = len(analysis.notes)
    candidates = f"{analysis.num_candidates:,} candidates"
    if analysis.num_candidates == 1:
        candidates = "1 candidate, so the sample stands for what comes"
    return Answer(
        model=f"{analysis.probed} ({analysis.dtype}), {analysis.counted}, {candidates}",
        findings=(*_findings(analysis), _losses(analysis)),
        judgement=judgement,
        tolerance=tolerance,
        trust=_marks(analysis),
        advice=_advice(analysis, judgement),
        probe=f"sigma {analysis.sigma:.3g} ({_source(analysis)}), D = {analysis.spectrum.dim}"
        + (f"; {notes} note{'s' if notes > 1 else ''} in the details" if notes else ""),
    )


def refusal(analysis: Analysis) -> str | None:
    """Why the numbers are of no landscape that stays, or of none that was seen; None where they can be read."""
    moving = analysis.stationarity.refusal()
    if moving is not None:
        return moving
    if _only_down(analysis):
        dim = analysis.spectrum.dim
        return f"the point is no minimum: the loss bends upwards along none of the {dim} directions found; {REMEDY}"
    if analysis.expected is None:
        return "one example and one candidate say nothing of those to come; give more candidates"
    if not bool(analysis.spectrum.converged.any()):
        return "no eigenpair is certified; raise max_matvecs, or analyse the model in float64"
    if analysis.expected.value == 0:
        return (
            "on the quadratic model nothing moves, for any candidate; see the Monte Carlo on the true loss in the table"
        )
    total, _ = _quadratic(analysis)
    if total == "invalid":
        return f"{_model_off(analysis)} at sigma {analysis.sigma:.3g}; take a smaller sigma"
    return None


def _only_down(analysis: Analysis) -> bool:
    """Whether none of the directions of largest curvature bends upwards; the smallest ones say nothing of these."""
    return analysis.config.get("which") != "smallest" and not float(analysis.spectrum.eigenvalues.max()) > 0


def shape_told(analysis: Analysis) -> bool:
    """Whether what changes the shape can be read from the closed form."""
    expected = analysis.expected
    known = expected is not None and not math.isnan(expected.shape) and refusal(analysis) is None
    return known and _quadratic(analysis)[1] != "invalid"


# ---- the findings ----------------------------------------------------------------------------------------------------


def _findings(analysis: Analysis) -> list[str]:
    refused, expected = refusal(analysis), analysis.expected
    if refused is not None or expected is None:
        return [f"NO ANSWER: {refused}"]
    relative, order = "", "" if expected.p == 2 else f" (order {expected.p:g})"
    if analysis.loss > 0.1 * expected.rms:
        relative = f" ({short(100 * expected.rms / analysis.loss)} % of {three(analysis.loss)})"
    moves = f"one more example moves the loss here{order} by {ranged(expected.rms, rms_interval(expected))}{relative}"
    doubling = analysis.doubling
    if doubling is not None and doubling.value > 0:
        moves += f"; as many again by {ranged(doubling.rms, rms_interval(doubling))}"
    elif doubling is not None:
        moves += "; what as many again do is not told from noise"
    moves += _carried(expected)
    return [moves] if math.isnan(expected.shape) else [moves, _shape(analysis, expected)]


def rms_interval(expected: ExpectedCriterion, of: Of = "total") -> tuple[float, float]:
    """That of the whole or of its shape; without an upper end over the sample, to which the weights were fitted."""
    low, high = expected.shape_rms_interval if of == "shape" else expected.rms_interval
    return low, math.inf if expected.pool else high


def _shape(analysis: Analysis, expected: ExpectedCriterion) -> str:
    """How much of it is the mean over the probe, and what changes the shape about that."""
    level = 1 - expected.shape / expected.value if expected.value > 0 else 0.0
    line = f"{_share(level)} of its square is its mean over the probe (level); tilt and bend about that: "
    if not shape_told(analysis):
        return f"{line}not told, as {_model_off(analysis)}"
    line += ranged(expected.shape_rms, rms_interval(expected, "shape"))
    parts = expected.shape_by_direction
    whole = float(parts.sum())
    if len(parts) < 2 or not whole > 0:
        return line
    strongest = parts.argsort(descending=True)[:2].tolist()
    shares = ", ".join(f"{_share(float(parts[a]) / whole)} along direction {a + 1}" for a in strongest)
    return f"{line}, {shares}"


def _carried(expected: ExpectedCriterion) -> str:
    """How few examples make much of the mean."""
    if expected.num_candidates <= 2 * CARRYING:
        return ""
    positions, share = expected.largest_contributors(CARRYING)
    whose = "of the sample's " if expected.pool else "of "
    mean = "mean square" if expected.p == 2 else "mean"
    names = ", ".join(map(str, positions))
    return f"; {CARRYING} {whose}{expected.num_candidates:,} ({names}) make {_share(share)} of that {mean}"


def _losses(analysis: Analysis) -> str:
    line = f"loss {three(analysis.loss)} on the sample"
    return line if math.isnan(analysis.held_out_loss) else f"{line}, {three(analysis.held_out_loss)} on the candidates"


# ---- the tolerance ---------------------------------------------------------------------------------------------------


def _tolerance(analysis: Analysis) -> tuple[Judgement | None, str]:
    required, expected = analysis.required, analysis.expected
    if required is None:
        return None, ""
    of, asked = analysis.config.get("tolerance_on", "total"), analysis.config.get("tolerance", required.tolerance)
    name = f"tolerance {short(required.tolerance)}"
    if of == "relative":
        name += f" ({short(100 * asked)} % of the loss)"
    elif of == "shape":
        name += " on tilt and bend"
    if required.at_least is None or expected is None or refusal(analysis) is not None:
        return "cannot tell", f"{name}: CANNOT TELL; {required.verdict if required.at_least is None else 'see above'}"
    low, high = rms_interval(expected, required.of)
    judgement: Judgement = "cannot tell"
    if expected.p != 2:
        name += f" (of the root mean square, which order {expected.p:g} is not)"
    elif high <= required.tolerance:
        judgement = "within tolerance"
    elif low > required.tolerance:
        judgement = "not within"
    size = f"if the weights stay, from k = {_count(required.at_least)} at the earliest"
    if required.value is not None:
        ends = f"[{_count(required.interval[0])}, {_count(required.interval[1])}]"
        size = f"if the weights stay, from k = {_count(required.value)} {ends}"
    if OF_MEAN_WEIGHT in required.assumptions:
        size += ", counted at the candidates' mean weight"
    return judgement, f"{name}: {judgement.upper()}; {size}"


# ---- whether to trust it ---------------------------------------------------------------------------------------------


def _quadratic(analysis: Analysis) -> tuple[Verdict, Verdict]:
    """Of the mean's closed form, in the whole and in its shape, by draws on the true loss."""
    if analysis.errors is None:
        return analysis.verdict, analysis.verdict
    error = analysis.errors.expected
    return error.total_verdict, error.total_verdict if math.isnan(error.shape) else error.shape_verdict


def _model_off(analysis: Analysis) -> str:
    """How far the quadratic model is off, in words."""
    if analysis.errors is None:
        return f"the quadratic model is {100 * analysis.validity.error_at(analysis.sigma):.2g} % off"
    return f"the quadratic model is off ({analysis.errors.expected})"


def _marks(analysis: Analysis) -> tuple[Mark, ...]:
    marks = [_minimum(analysis), _model(analysis), _eigenspace(analysis), _precision(analysis)]
    found = analysis.examination
    if found is not None and found.verdict != "pass":
        word: Word = "no" if found.verdict == "fail" else "doubt"
        marks.append(Mark("checks", word, ", ".join(f.check for f in (*found.named("fail"), *found.named("doubt")))))
    return tuple(marks)


def _still_falls(analysis: Analysis) -> bool:
    """Whether more can be taken off the loss than what is measured, by a gradient that the examples' scatter hides."""
    return analysis.expected is not None and analysis.stationarity.falls > analysis.expected.rms


def _minimum(analysis: Analysis) -> Mark:
    said, found = f"|g| {short(analysis.gradient_norm)}, {analysis.space}", analysis.spectrum
    least, largest = float(found.eigenvalues.min()), float(found.eigenvalues.abs().max())
    if analysis.stationarity.refusal() is not None or _only_down(analysis):
        return Mark("minimum", "no", said if least >= 0 else f"{said}, curvature {short(least)}")
    if least < -max(1e-6, float(found.residuals.max())) * largest:
        return Mark("minimum", "doubt", f"{said}, curvature {short(least)} along one direction")
    if math.isnan(analysis.stationarity.moving_ratio):
        return Mark("minimum", "doubt", f"{said}, and no scatter to judge it by")
    if analysis.gradient_norm == 0 and analysis.stationarity.least_curvature < 0:
        least = analysis.stationarity.least_curvature
        return Mark("minimum", "doubt", f"{said}, curvature {short(least)}: a saddle")
    if _still_falls(analysis):
        falls = short(analysis.stationarity.falls)
        return Mark("minimum", "doubt", f"{said}; a few steps take {falls} off the loss")
    return Mark("minimum", "yes", said)


def _model(analysis: Analysis) -> Mark:
    total, shape = _quadratic(analysis)
    if analysis.errors is None:
        return Mark("quadratic", _WORDS[total], f"{100 * analysis.validity.error_at(analysis.sigma):.2g} %")
    error = analysis.errors.expected
    said = f"{_within(error.total, error.total_reach)} of the whole"
    said += "" if math.isnan(error.shape) else f", {_within(error.shape, error.shape_reach)} of tilt and bend"
    said += analysis.of_those_drawn
    word = _WORDS[total] if shape == "valid" or total == "invalid" else "doubt"
    return Mark("quadratic", word, said)


def _within(error: float, reach: float) -> str:
    """The far end of an error's interval."""
    far = abs(error) + reach
    return f"{100 * far:.2g} %" if math.isfinite(far) else "no part known"


def _eigenspace(analysis: Analysis) -> Mark:
    found = analysis.spectrum
    certified, dim = int(found.converged.sum()), found.dim
    said = f"{certified} of {dim}{analysis.of_those_drawn}"
    if not found.cut_decided:
        said += f", cut after {dim} not decided"
    whole = certified == dim and found.cut_decided
    return Mark("eigenspace", "yes" if whole else "doubt" if certified else "no", said)


def _precision(analysis: Analysis) -> Mark:
    floor = analysis.validity.precision_floor
    checked = [f for f in analysis.examination.findings if f.check == "precision"] if analysis.examination else []
    if floor is not None and analysis.sigma < floor * (1 - 1e-9):
        return Mark("precision", "no", f"{analysis.dtype} rounds below sigma {floor:.2g}")
    word: Word = "doubt" if any(f.verdict != "pass" for f in checked) else "yes"
    return Mark("precision", word, analysis.dtype)


def _advice(analysis: Analysis, judgement: Judgement | None) -> str:
    """One thing to do."""
    refused = refusal(analysis)
    if refused is not None:
        return refused.rsplit("; ", 1)[-1]
    found, expected = analysis.spectrum, analysis.expected
    if _still_falls(analysis):
        return REMEDY
    if expected is not None and expected.pool:
        return "give examples that the weights were not fitted to: the sample's own set no upper end"
    if not bool(found.converged.all()):
        return "raise max_matvecs or lower dim, until all eigenpairs are certified"
    if not found.cut_decided:
        return f"take another D than {found.dim}, or a smaller tol: the directions around the cut are not told apart"
    if _quadratic(analysis) != ("valid", "valid"):
        return f"take a smaller sigma than {analysis.sigma:.3g}, where the increments follow the quadratic model"
    if expected is not None and not math.isfinite(expected.interval[1]):
        few = expected.num_candidates < FEWEST_FOR_UPPER
        return (
            f"give {FEWEST_FOR_UPPER} held-out examples or more: fewer set no upper end"
            if few
            else "a few examples make the whole mean, and no upper end can be set: look at them"
        )
    if judgement == "cannot tell" and expected is not None and expected.p == 2:
        return "give more held-out examples: the interval holds the tolerance"
    return f"to compare runs, give all of them this sigma: {analysis.sigma:.3g}"


def _source(analysis: Analysis) -> str:
    return analysis.sigma_source + ("; fix it to compare runs" if analysis.sigma_source.startswith("auto") else "")


# ---- numbers as they are read ----------------------------------------------------------------------------------------


def short(value: float) -> str:
    """Two digits, without a padded exponent: 3.3e-4, 0.029, 120.

    Example:
        >>> [short(x) for x in (0.00033, 0.0291, 123.0, 4.2e7, float("inf"))]
        ['3.3e-4', '0.029', '120', '4.2e7', 'inf']
    """
    if value == 0 or (math.isfinite(value) and 1e-3 <= abs(value) < 1e5):
        return f"{float(f'{value:.2g}'):.6g}"
    return _without_padding(f"{value:.1e}").replace(".0e", "e")


def _without_padding(text: str) -> str:
    """A number with an exponent, without the plus and the zeros that it is padded with."""
    return re.sub(r"e([+-])0*", lambda found: "e" + found[1].replace("+", ""), text)


def three(value: float) -> str:
    """Three digits, of a number that is known better: 0.500.

    Example:
        >>> [three(x) for x in (0.5, 12.345, 2.0e-5)]
        ['0.500', '12.3', '2.00e-5']
    """
    return _without_padding(f"{value:#.3g}").rstrip(".")


def ranged(value: float, interval: tuple[float, float]) -> str:
    """A number with its 95 % interval."""
    low, high = interval
    if low == 0 and math.isinf(high):
        return f"{short(value)} [no interval]"
    return f"{short(value)} [{short(low)}, {short(high) if math.isfinite(high) else 'no upper end'}]"


def _share(part: float) -> str:
    """A share in per cent, never rounded to all or nothing."""
    percent = 100 * min(1.0, max(0.0, part))
    if percent >= 99.95:
        return "all" if part >= 1 else "over 99.9 %"
    if percent < 0.1:
        return "none" if part <= 0 else "under 0.1 %"
    return f"{percent:.1f} %" if percent >= 99 else f"{percent:.2g} %"


def _count(number: float) -> str:
    """Three digits of a number of examples that are needed, rounded up."""
    if not math.isfinite(number):
        return "no upper end"
    unit = 10 ** max(0, len(str(int(number))) - 3)
    return f"{math.ceil(number / unit - 1e-9) * unit:,}"
