"""What a person may ask of an experiment beside its preset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Weights = Literal["sequential", "converged"]


@dataclass(frozen=True)
class Options:
    """Of a run.

    Attributes:
        text: file of text in UTF-8; None takes the help topics of Python.
        literal: also compute what the paper's released procedure computes, for the same figure.
        weights: "sequential" streams through the data and looks at the current weights; "converged" takes a minimiser
            at every k.
        seed: the first one.
        device: where the models live.
    """

    text: Path | None = None
    literal: bool = False
    weights: Weights = "sequential"
    seed: int = 0
    device: str = "cpu"
