"""How often forecasts were right in the study of docs/forecast.md, as benchmarks/results/forecast.json has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """Of the forecasts by one rule that were answered.

    Attributes:
        answered: share of all tries.
        within: share within a factor of the truth, by the factor 1.5, 2 and 3.
        covered: share whose 90 % interval held the truth.
        tries, cells: that were tried.
    """

    answered: float
    within: Mapping[float, float]
    covered: float
    tries: int
    cells: int

    def __str__(self) -> str:
        return (
            f"forecasts like this one were within a factor 2 of the truth in {100 * self.within[2.0]:.0f} %, and their "
            f"intervals held it in {100 * self.covered:.0f} % ({self.tries:,} tries in {self.cells} kinds of data and "
            f"training, {100 * self.answered:.0f} % answered)"
        )


RATES: Mapping[str, tuple[Rate, ...]] = {"splits": (), "one split": (), "first k only": ()}
"""For twice and for four times the examples, by what was trained: halves of four splits, of one, or the first half."""
