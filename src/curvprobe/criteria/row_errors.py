"""How far the closed form of each printed row is from the true loss, by draws of its own."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from curvprobe.criteria.distribution import absolute_moments
from curvprobe.criteria.draws import check_sigma
from curvprobe.criteria.estimators import Estimate, independent, moment_parts, power_excess
from curvprobe.criteria.increment import QuadraticIncrement
from curvprobe.criteria.verdicts import Verdict, verdict_of
from curvprobe.numerics.intervals import freedom, standard_error, student_reach
from curvprobe.runtime.plain import brief, number

THRESHOLD = 0.1
"""Relative error of a criterion up to which its closed form is called valid: twice that of the increment, whose square
it is."""


@dataclass(frozen=True)
class RowError:
    """What the truth has beyond a closed form, relative to it.

    Attributes:
        total: of the criterion: 0.1 where the truth is a tenth larger.
        total_reach: half the width of its 95 % interval.
        shape, shape_reach: the same for the shape criterion; NaN where it was not looked at.
    """

    total: float
    total_reach: float
    shape: float
    shape_reach: float

    @property
    def total_verdict(self) -> Verdict:
        """Valid where the far end of the interval is within 10 % of the closed form; marginal within 40 %."""
        return verdict_of(abs(self.total) + self.total_reach, THRESHOLD)

    @property
    def shape_verdict(self) -> Verdict:
        """The same for the shape."""
        return verdict_of(abs(self.shape) + self.shape_reach, THRESHOLD)

    def to_json(self) -> dict[str, Any]:
        """Plain values with the verdicts."""
        return asdict(self) | {"total_verdict": self.total_verdict, "shape_verdict": self.shape_verdict}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> RowError:
        """What :meth:`to_json` has written."""
        names = ("total", "total_reach", "shape", "shape_reach")
        return cls(**{name: number(record[name], math.inf) for name in names})

    @classmethod
    def of_total(cls, closed: Estimate, true: Estimate) -> RowError:
        """From two estimates, of the quadratic model and of the true loss."""
        if closed.value <= 0:
            return cls(math.inf, math.inf, math.nan, math.nan)
        return cls(true.value / closed.value - 1, true.reach / closed.value, math.nan, math.nan)

    def __str__(self) -> str:
        total = f"total {self.total_verdict} ({_percent(self.total, self.total_reach)})"
        if math.isnan(self.shape):
            return total
        return f"{total}, shape {self.shape_verdict} ({_percent(self.shape, self.shape_reach)})"


@dataclass(frozen=True)
class RowErrors:
    """Errors of the closed forms of several candidates, and of their mean.

    Attributes:
        rows: by the candidate's position.
        expected: of the mean over the candidates that were not chosen for their size.
        num_candidates: how many these were.
    """

    rows: dict[int, RowError]
    expected: RowError
    num_candidates: int

    __repr__ = brief

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rows": {str(position): row.to_json() for position, row in self.rows.items()},
            "expected": self.expected.to_json(),
            "num_candidates": self.num_candidates,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> RowErrors:
        """What :meth:`to_json` has written."""
        rows = {int(position): RowError.from_json(row) for position, row in record["rows"].items()}
        return cls(rows, RowError.from_json(record["expected"]), record["num_candidates"])


def row_errors(
    candidates: list[int],
    judged: int,
    increments: QuadraticIncrement,
    sigma: float | Tensor,
    true: Tensor,
    coordinates: Tensor,
    p: float = 2.0,
) -> RowErrors:
    """Errors of closed forms against true increments at the same draws.

    Args:
        candidates: positions of the J candidates.
        judged: so many of them, from the first, stand for all of them in the mean; the others were chosen.
        increments: their quadratic models (J,).
        sigma: standard deviation of the draws in parameter units, scalar or (D,).
        true: float64 (S, J), their true increments at the draws.
        coordinates: float64 (S, D), the draws, in pairs of mirror images where S is even.
        p: order of the criterion.
    """
    scale = check_sigma(sigma, increments.dim)
    model = increments.at(coordinates).T
    level, slope, curvature = moment_parts(increments, scale)
    totals = level + slope + curvature if p == 2 else absolute_moments(increments, scale, p)
    excess = power_excess(true, model, p)
    shapes = slope + curvature
    centred, modelled = true - true.mean(0), model - model.mean(0)
    scatter = (centred - modelled) * (centred + modelled) * len(true) / (len(true) - 1)

    def error(columns: slice | int) -> RowError:
        chosen = [part[columns].mean() for part in (totals, shapes)]
        terms = [part[:, columns].reshape(len(true), -1).mean(1) for part in (excess, scatter)]
        return RowError(*_relative(terms[0], float(chosen[0])), *_relative(terms[1], float(chosen[1])))

    rows = {position: error(j) for j, position in enumerate(candidates)}
    return RowErrors(rows, error(slice(judged)), judged)


def _relative(excess: Tensor, closed: float) -> tuple[float, float]:
    """Mean of the excess (S,) and half its 95 % interval, relative to the closed form."""
    terms = independent(excess)
    mean, reach = float(terms.mean()), student_reach(standard_error(terms), freedom(terms))
    if closed == 0:
        return (0.0, 0.0) if mean == 0 and reach == 0 else (math.inf, math.inf)
    return mean / closed, reach / closed


def _percent(error: float, reach: float) -> str:
    if not math.isfinite(error):
        return "the closed form is zero"
    return f"{100 * error:+.1f} +- {100 * reach:.1f} %"
