"""What models that were trained on parts of a sample lose on held-out examples, and on their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Refits:
    """Models trained on samples of one size, p of them, with the losses at the weights that each ended in.

    Attributes:
        held_out: mean losses of the held-out examples, float64 (p, m).
        weights: of the held-out examples, float64 (m,).
        own: losses of the examples that each was trained on, float64 (p, n); at a size n.
        own_weights: float64 (p, n).
        others: losses of examples of the sample that each was not trained on, float64 (p, q); q may be 0.
        other_weights: float64 (p, q).
        moving: squared mean gradient of each over what its examples' scatter explains (p,), at its own weights.
        seconds: that each training took (p,).
        content: hash of the held-out examples.
    """

    held_out: Tensor
    weights: Tensor
    own: Tensor
    own_weights: Tensor
    others: Tensor
    other_weights: Tensor
    moving: Tensor
    seconds: Tensor
    content: str = ""

    @property
    def size(self) -> int:
        """Examples that each was trained on."""
        return self.own.shape[1]

    def __len__(self) -> int:
        return self.own.shape[0]

    @property
    def test(self) -> Mean:
        """Loss of the held-out examples, averaged over the models."""
        return Mean(self.held_out.mean(0), self.weights)


def joined(parts: Sequence[Refits]) -> Refits:
    """Those of several trainings of one size."""
    expect_one_content(parts)
    first = parts[0]
    names = ("held_out", "own", "own_weights", "others", "other_weights", "moving", "seconds")
    together = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Refits(weights=first.weights, content=first.content, **together)


OTHERS = (
    "train came with other held-out examples, or other weights of these, from one training to the next; expected the "
    "same ones, whatever rows it is asked for"
)


def expect_one_content(parts: Sequence[Refits]) -> None:
    """Refuse trainings that were looked at on other examples."""
    first = parts[0]
    if any(part.content != first.content or not torch.equal(part.weights, first.weights) for part in parts):
        raise ArgumentError(OTHERS)


@dataclass(frozen=True, eq=False)
class Mean:
    """A weighted mean over examples, with the errors that belong to it.

    Attributes:
        terms: of the examples, float64 (m,).
        weights: float64 (m,).
    """

    terms: Tensor
    weights: Tensor

    @property
    def value(self) -> float:
        """The mean."""
        return float((self.weights * self.terms).sum() / self.weights.sum())

    @property
    def influences(self) -> Tensor:
        """What each example moves the mean by (m,): they sum to 0, and their squares to its variance."""
        m = len(self.terms)
        share = self.weights / self.weights.sum()
        return share * (self.terms - self.value) * math.sqrt(m / max(1, m - 1))

    @property
    def stderr(self) -> float:
        """Standard error of the mean; NaN for one example."""
        return float(self.influences.norm()) if len(self.terms) > 1 else math.nan

    def __sub__(self, other: Mean) -> Mean:
        """The difference over the same examples."""
        return Mean(self.terms - other.terms, self.weights)

    def __mul__(self, factor: float) -> Mean:
        return Mean(self.terms * factor, self.weights)
