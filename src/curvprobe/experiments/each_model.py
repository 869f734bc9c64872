"""The same measurement on several models: one a seed, each kept when it is finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

from curvprobe.experiments.machine import code_of
from curvprobe.experiments.options import Options
from curvprobe.experiments.released import released
from curvprobe.experiments.solutions import Language, Solution, streamed
from curvprobe.runtime import progress
from curvprobe.runtime.digest import digest
from curvprobe.runtime.store import Stage, Store

T = TypeVar("T")


class OfLanguage(Protocol):
    """Settings, a dataclass, of an experiment that looks at one solution of each of several language models."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def language(self) -> Language:
        """The model."""
        ...

    @property
    def trained(self) -> int:
        """Sequences it has streamed through."""
        ...

    @property
    def k(self) -> int:
        """Sequences of the sample."""
        ...

    @property
    def seeds(self) -> int:
        """Models."""
        ...


def each_model(
    name: str,
    settings: OfLanguage,
    options: Options,
    store: Store,
    kind: type[T],
    at: Callable[[Solution, int], T],
    also: object = None,
) -> list[T]:
    """``at(solution, seed)`` for every seed; those that the store holds are not computed again.

    What it depends on beside the settings and options goes into ``also``.
    """
    sequences = settings.language.sequences(options.text, store)
    looked_at = replace(settings, seeds=0)  # a model depends on no other
    found = []
    with progress.bar(f"{name} (models)", settings.seeds) as advance:
        for seed in range(options.seed, options.seed + settings.seeds):

            def compute(seed: int = seed) -> T:
                solution = streamed(
                    settings.language,
                    sequences,
                    settings.trained,
                    settings.k,
                    1,
                    seed=seed,
                    store=store,
                    device=options.device,
                )
                return at(solution, seed)

            key = [code_of(at), str(looked_at), digest(sequences), seed, options.literal, options.device]
            key += [code_of(released)] if options.literal else []
            key += [] if also is None else [also]
            found.append(store.result(Stage(f"{name}-seed{seed}", key, kind, compute)))
            advance(1)
    return found
