"""Conditions on the numbers of an analysis, for a pipeline that stops where one is met."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass

from curvprobe.analysis.answer import refusal, rms_interval, shape_told
from curvprobe.analysis.result import Analysis
from curvprobe.errors import ArgumentError

_OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}

_FORM = re.compile(r"\s*(\w+)\s*(>=|<=|>|<)\s*([-+.\w]+)\s*")

ANSWERED = (
    *("rms", "rms_low", "rms_high", "rms_relative", "doubling_rms"),
    *("shape_rms", "shape_rms_low", "shape_rms_high", "required_sample_size"),
)
"""Numbers of the answer: without one where there is no answer, or where the number is not told."""

NAMES = (
    *ANSWERED,
    *("loss", "held_out_loss", "gradient_norm", "quadratic_error", "residual_max", "num_matvecs", "sigma"),
    *("doubts", "failures"),
)
"""What a condition may be on; ``doubts`` and ``failures`` count the marks of the answer's trust that are not yes."""


@dataclass(frozen=True)
class Condition:
    """A bound on one number of an analysis, as ``shape_rms > 0.01``."""

    name: str
    relation: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """From words; nothing is evaluated.

        Raises:
            ValueError: if it has another form, or names no number that is known.

        Example:
            >>> Condition.parse("shape_rms > 0.01")
            Condition(name='shape_rms', relation='>', bound=0.01)
        """
        form = _FORM.fullmatch(text)
        try:
            name, relation, bound = form.groups() if form else ("", "", "")
            value = float(bound)
        except ValueError:
            value = math.nan
        if form is None or math.isnan(value):
            raise ArgumentError(f"the condition is {text!r}; expected one such as 'shape_rms > 0.01'")
        if name not in NAMES:
            raise ArgumentError(f"the condition is on {name!r}; expected one of {', '.join(NAMES)}")
        return cls(name, relation, value)

    def __str__(self) -> str:
        return f"{self.name} {self.relation} {self.bound:g}"

    def met_by(self, analysis: Analysis) -> str | None:
        """Why a pipeline should stop: the condition is met, or cannot be decided. None where it is not met."""
        found = conditioned(analysis)[self.name]
        if math.isnan(found):
            return f"{self}: it is not known ({refusal(analysis) or 'see the answer'})"
        return f"{self}: it is {found:.4g}" if _OPERATORS[self.relation](found, self.bound) else None


def conditioned(analysis: Analysis) -> dict[str, float]:
    """What conditions may be on, by name; NaN for what is not told."""
    found, words = analysis.metrics(), [mark.word for mark in analysis.answer.trust]
    values = {name: found.get(f"curvprobe/{name}", math.nan) for name in NAMES}
    values |= {"held_out_loss": analysis.held_out_loss}
    values |= {"doubts": float(words.count("doubt")), "failures": float(words.count("no"))}
    values |= dict.fromkeys(ANSWERED, math.nan)
    expected, doubling, required = analysis.expected, analysis.doubling, analysis.required
    if expected is None or refusal(analysis) is not None:
        return values
    low, high = rms_interval(expected)
    values |= {"rms": expected.rms, "rms_low": low, "rms_high": high}
    values["rms_relative"] = expected.rms / abs(analysis.loss) if analysis.loss else math.inf
    values["doubling_rms"] = doubling.rms if doubling is not None and doubling.value > 0 else math.nan
    if shape_told(analysis):
        low, high = rms_interval(expected, "shape")
        values |= {"shape_rms": expected.shape_rms, "shape_rms_low": low, "shape_rms_high": high}
    if required is not None and required.value is not None:
        values["required_sample_size"] = float(required.value)
    return values
