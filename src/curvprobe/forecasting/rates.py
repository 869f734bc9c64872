"""How often forecasts were right in the study of docs/forecast.md, as benchmarks/results/forecast.json has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """Of the forecasts by one rule that were answered.

    Attributes:
        answered: share of all tries.
        within: share within a factor of the truth, the gain on average over samples, by the factor 1.5, 2 and 3.
        covered: share whose 90 % interval held the truth.
        realised: share whose interval held what one training on one larger sample took off.
        tries, cells: that were tried.
    """

    answered: float
    within: Mapping[float, float]
    covered: float
    realised: float
    tries: int
    cells: int

    def __str__(self) -> str:
        right, held, alone, answered = (
            f"{100 * share:.0f} %" for share in (self.within[2.0], self.covered, self.realised, self.answered)
        )
        return (
            f"forecasts like this one were within a factor 2 of the average gain in {right}, their intervals held it "
            f"in {held} (the gain of one training in {alone}): small networks, {self.cells} kinds of data and "
            f"training, {answered} answered"
        )


RATES: Mapping[str, tuple[Rate, ...]] = {
    "splits": (
        Rate(0.4345, {1.5: 0.7432, 2.0: 0.8904, 3.0: 0.9658}, 0.9349, 0.7979, 672, 84),
        Rate(0.4345, {1.5: 0.7021, 2.0: 0.8938, 3.0: 0.9692}, 0.9658, 0.9007, 672, 84),
    ),
    "one split": (
        Rate(0.3824, {1.5: 0.6926, 2.0: 0.8677, 3.0: 0.9728}, 0.9377, 0.7821, 672, 84),
        Rate(0.3824, {1.5: 0.6809, 2.0: 0.8833, 3.0: 0.9728}, 0.9805, 0.9222, 672, 84),
    ),
    "first k only": (
        Rate(0.3125, {1.5: 0.6619, 2.0: 0.8571, 3.0: 0.9619}, 0.9333, 0.7810, 672, 84),
        Rate(0.3125, {1.5: 0.6571, 2.0: 0.9, 3.0: 0.981}, 0.9810, 0.9190, 672, 84),
    ),
}
"""For twice and for four times the examples, by what was trained: halves of four splits, of one, or the first half."""
