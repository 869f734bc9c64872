"""A user's training, repeated on parts of the sample; of each model it is seen what it loses, and it is let go.

A training may run in a process of its own: what is said here of it can be pickled where the user's function can.
"""

from __future__ import annotations

import inspect
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from curvprobe.criteria.stationarity import explained, over_scatter
from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.forecasting.refits import OTHERS, Refits
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.risk.examples import Examples
from curvprobe.runtime.digest import digest
from curvprobe.subspace.gradients import gradient_norms

SIZE = "k"
"""Name of a training function's first parameter that asks for how many examples; else it asks for which."""

Trained = EmpiricalRisk | tuple[EmpiricalRisk, Any]
"""What a training returns: the risk at its weights, perhaps with the held-out examples."""


@dataclass(frozen=True)
class Training:
    """How a model is trained, and on what it is then looked at.

    Attributes:
        train: the user's function of the rows of the sample, or of their number.
        held_out: examples outside the sample; None where the function returns them too.
        allow_overlap: whether some of these may equal examples of the sample.
    """

    train: Callable[[Any], Trained]
    held_out: Any = None
    allow_overlap: bool = False

    @property
    def by_size(self) -> bool:
        """Whether the function is asked for the first k examples, and not for rows."""
        asked = getattr(self.train, "asked", self.train)
        try:
            return next(iter(inspect.signature(asked).parameters), None) == SIZE
        except (TypeError, ValueError):
            return False

    def content(self) -> tuple[Any, ...]:
        """What tells one training from another in a later run: its code, what that names, and held-out data."""
        held_out = () if self.held_out is None else Examples(self.held_out).digests()
        return (*_code(inspect.unwrap(getattr(self.train, "asked", self.train))), held_out)

    def refits(self, pieces: Sequence[Sequence[int]], seed: int) -> Refits:
        """Train on each of these rows of the sample, and see what comes of it.

        Raises:
            ArgumentError: for a risk on other examples than were asked for, or held-out ones that it was trained on.
        """
        found = [self._trained(list(rows), seed + place) for place, rows in enumerate(pieces)]
        others = [found[1], found[0]] if len(found) == 2 else []
        outside = [new.on_those_of(old) for (new, *_), (old, *_) in zip(found, others, strict=False)]
        _expect_one_kind([risk for risk, *_ in found], [new for _, new, _ in found])
        return Refits(
            held_out=torch.stack([new.losses() for _, new, _ in found]),
            weights=found[0][1].weights,
            own=torch.stack([risk.losses() for risk, *_ in found]),
            own_weights=torch.stack([risk.weights for risk, *_ in found]),
            others=_stacked([one.losses() for one in outside], len(found)),
            other_weights=_stacked([one.weights for one in outside], len(found)),
            moving=torch.tensor([_moving(risk) for risk, *_ in found], dtype=torch.float64, device="cpu"),
            content=digest(found[0][1].digests()),
            seconds=torch.tensor([seconds for *_, seconds in found], dtype=torch.float64, device="cpu"),
        )

    def _trained(self, rows: list[int], seed: int) -> tuple[EmpiricalRisk, EmpiricalRisk, float]:
        """The risks at the weights that training on these rows ends in, on them and on held-out examples; seconds."""
        start = time.perf_counter()
        with _seeded(seed):
            made = self.train(len(rows) if self.by_size else rows)
        seconds = time.perf_counter() - start
        risk, held_out = made if isinstance(made, tuple) else (made, self.held_out)
        if not isinstance(risk, EmpiricalRisk):
            raise ArgumentTypeError(
                f"train returned a {type(risk).__name__}; expected a curvprobe.EmpiricalRisk on the examples that it "
                "was asked for, at the weights that it trained on them"
            )
        if len(risk) != len(rows):
            raise ArgumentError(
                f"train was asked for {len(rows)} examples and returned a risk on {len(risk)}; expected as many"
            )
        if held_out is None:
            raise ArgumentError("held_out is None; expected examples that no training sees")
        new = risk.on(held_out)
        seen = set(risk.digests())
        shared = 0 if self.allow_overlap else sum(found in seen for found in new.digests())
        if shared:
            raise ArgumentError(
                f"{shared} of the {len(new)} held-out examples are among those that were trained on; expected others, "
                "from which a gain can be told. Where they are others that are equal, allow_overlap=True takes them"
            )
        return risk, new, seconds


def _code(function: Any) -> tuple[Any, ...]:
    """The file that holds a function, and the plain values and tensors outside it that it names.

    Where there is no source, it is like nothing else: no later run takes what it has trained for its own.
    """
    try:
        file = inspect.getsourcefile(function)
        text = Path(file).read_text(encoding="utf-8") if file and Path(file).is_file() else inspect.getsource(function)
        named = inspect.getclosurevars(function)
    except (OSError, TypeError):
        return (uuid.uuid4().hex,)
    around = {**named.globals, **named.nonlocals}
    kept = {name: value for name, value in around.items() if isinstance(value, _PLAIN)}
    return (function.__qualname__, text, sorted(kept), [kept[name] for name in sorted(kept)])


_PLAIN = (int, float, str, Tensor, numpy.ndarray)


def _moving(risk: EmpiricalRisk) -> float:
    """Squared mean gradient over what the scatter of the examples' gradients explains."""
    square = risk.probed.vectors.norm(risk.gradient()) ** 2
    return over_scatter(square, explained(square, gradient_norms(risk), risk.shares), len(risk))


def _stacked(parts: list[Tensor], count: int) -> Tensor:
    return torch.stack(parts) if parts else torch.zeros(count, 0, dtype=torch.float64, device="cpu")


def _expect_one_kind(risks: list[EmpiricalRisk], held_out: list[EmpiricalRisk]) -> None:
    """Refuse trainings of which one had another model or other held-out examples."""
    first = risks[0]
    if len(risks) > 1 and risks[1].digests() == first.digests():
        raise ArgumentError(
            "train returned the same examples for other rows; expected the risk on the rows that it is asked for"
        )
    for risk, new in zip(risks, held_out, strict=True):
        if risk.num_params != first.num_params:
            raise ArgumentError(
                f"train returned models of {first.num_params} and of {risk.num_params} parameters; expected one model"
            )
        if new.digests() != held_out[0].digests() or not torch.equal(new.weights, held_out[0].weights):
            raise ArgumentError(OTHERS)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A block in which the random generators of torch, NumPy and Python start at a seed; then they are as before."""
    states = numpy.random.get_state(), random.getstate()  # noqa: NPY002 - a training may use it
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        numpy.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            numpy.random.set_state(states[0])  # noqa: NPY002
            random.setstate(states[1])
