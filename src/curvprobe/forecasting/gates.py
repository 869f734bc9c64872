"""What must hold before any rule is believed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from curvprobe.criteria.stationarity import MOVING
from curvprobe.forecasting.refits import Mean, Refits
from curvprobe.forecasting.rules import Reason

FEWEST_HELD_OUT = 40

DRIFTED = 3.0
"""Standard errors by which examples of the sample may lose more or less than held-out ones, where neither was seen."""


def gates(sizes: Sequence[Refits]) -> tuple[Reason, ...]:
    """Why nothing is to be told; from the models on all examples, on halves, and perhaps on fewer."""
    full, half = sizes[0], sizes[1]
    found = []
    count = full.held_out.shape[1]
    if count < FEWEST_HELD_OUT:
        said = f"{count} held-out examples; expected at least {FEWEST_HELD_OUT}"
        found.append(Reason("few held-out examples", said))
    if torch.equal(half.held_out[0], full.held_out[0]):
        said = "training on half of the examples gave the same model: train does not look at what it is asked for"
        found.append(Reason("one model for all sizes", said))
    moving = float(full.moving[0])
    if moving > MOVING:
        said = (
            f"the point is not stationary: the squared mean gradient in all parameters is {moving:.3g} times what the "
            f"scatter of the examples' gradients explains (at most {MOVING:g})"
        )
        found.append(Reason("not stationary", said))
    drifted = drift(half)
    if abs(drifted) > DRIFTED:
        more = "less" if drifted > 0 else "more"
        said = (
            f"the models on halves lose {more} on the held-out examples than on the half that they did not see, by "
            f"{abs(drifted):.2g} standard errors: the held-out examples are of another kind than the sample"
        )
        found.append(Reason("held-out examples of another kind", said))
    return tuple(found)


def drift(half: Refits) -> float:
    """Loss on unseen examples of the sample less that on the held-out ones, in standard errors; 0 where unknown.

    The models are those on halves: each example of the sample is unseen by one of two.
    """
    if not half.others.shape[1]:
        return 0.0
    pooled = Mean(half.others.flatten(), half.other_weights.flatten())
    once = Mean(half.others[:2].flatten(), half.other_weights[:2].flatten())  # of one split: each example once
    stderr = math.hypot(once.stderr, half.test.stderr)
    return (pooled.value - half.test.value) / stderr if stderr > 0 else 0.0
