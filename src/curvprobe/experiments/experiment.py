"""What an experiment is: its settings, what it measures, and how that becomes sentences and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curvprobe.experiments.cost import Cost
from curvprobe.experiments.options import Options
from curvprobe.runtime.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments.

    Attributes:
        name: on the command line.
        about: what is compared with what the paper saw.
        presets: settings by size, "cpu" and "paper".
        cost: what it goes through, from settings and options.
        measure: plain values, all that ``result.json`` holds; from settings, options and the store of finished points.
        findings: these values as sentences.
        figures: these values as figures, by name.
        grows: whether its sample grows, so that its weights may be converged ones.
        has_literal: whether the paper's released procedure can be computed beside it.
        reads_text: whether its models learn a language; else they are classifiers of digits.
    """

    name: str
    about: str
    presets: Mapping[str, Any]
    cost: Callable[[Any, Options], Cost]
    measure: Callable[[Any, Options, Store], dict[str, Any]]
    findings: Callable[[dict[str, Any]], list[str]]
    figures: Callable[[dict[str, Any]], dict[str, Figure]]
    grows: bool = False
    has_literal: bool = False
    reads_text: bool = True

    def has_language(self, options: Options) -> bool:
        """Whether its models learn a language with these options."""
        return self.reads_text and options.weights == "sequential"

    def sequences_needed(self, settings: Any) -> int:
        """Sequences of text that a model goes through, those that come next included."""
        return int(settings.ks[-1] + settings.candidates if self.grows else settings.trained + 1)
