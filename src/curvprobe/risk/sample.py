"""The sample of a risk: its examples as the model takes them, and what is remembered of them at the solution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvprobe.numerics.strata import Draw, whole_size
from curvprobe.risk.examples import Batch, Examples, fresh, to_model


@dataclass(frozen=True)
class Microbatch:
    """Examples that go through the model together.

    Attributes:
        data: the batch, which may share memory with the user's data.
        rows: where they stand in their sample.
        scale: what each one's loss and weight are multiplied by, since it stands for others too; None is 1.
        counted: how many of them count, the first ones; None for all. The others keep the pace of other processes.
    """

    data: Batch
    rows: slice
    scale: Tensor | None = None
    counted: int | None = None

    def total(self, loss_sum: Tensor) -> Tensor:
        """The sum of the examples' losses (n,), of those that count."""
        return loss_sum[: self.counted].sum()

    @property
    def batch(self) -> Batch:
        """What the model and the loss are given: a copy each time, since they may change it in place."""
        return fresh(self.data)

    def __len__(self) -> int:
        return int(self.rows.stop - self.rows.start)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the batch's tensors."""
        return tuple(tuple(leaf.shape) for leaf in pytree.tree_leaves(self.data) if isinstance(leaf, Tensor))

    @property
    def kind(self) -> tuple[Any, ...]:
        """Types and shapes of single examples' tensors, by which a model might go another way."""
        leaves = pytree.tree_leaves(self.data)
        return tuple((leaf.dtype, tuple(leaf.shape[1:])) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves)


@dataclass
class Known:
    """What is remembered of a sample at the solution, once it was computed: the first word stands.

    Attributes:
        losses, weights: float64 (n,).
        gradient: of the risk (N,).
        key: hash of what the risk is.
    """

    losses: Tensor | None = None
    weights: Tensor | None = None
    gradient: Tensor | None = None
    key: str | None = None

    def keep(
        self, *, losses: Tensor | None = None, weights: Tensor | None = None, gradient: Tensor | None = None
    ) -> None:
        """Remember what was not known yet."""
        self.losses = losses if self.losses is None else self.losses
        self.weights = weights if self.weights is None else self.weights
        self.gradient = gradient if self.gradient is None else self.gradient

    def of(self, rows: Sequence[int]) -> Known:
        """What this tells of a selection of the examples."""
        losses, weights = (None if part is None else part[rows] for part in (self.losses, self.weights))
        return Known(losses, weights)


@dataclass(frozen=True, eq=False)
class Sample:
    """Examples in a fixed order, brought to the model's type and device.

    Attributes:
        examples: as the user gave them.
        dtype, device: what floating-point tensors are brought to.
        is_selection: whether it is a part of a larger sample, and need not say anything of the parameters by itself.
        known: what is remembered.
        scale: float64 (n,), what each weight is multiplied by in a sample that stands for a larger one; None is 1.
        design: int (n, 2), how such a sample was drawn, see :class:`curvprobe.numerics.strata.Draw`; else None.
        offset: what is added to its mean loss at any point, so that it is the larger one's own at the solution.
        counted: how many of the examples count, the first ones; None for all.
    """

    examples: Examples
    dtype: torch.dtype
    device: torch.device
    is_selection: bool = False
    known: Known = field(default_factory=Known)
    scale: Tensor | None = None
    design: Tensor | None = None
    offset: float = 0.0
    counted: int | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def size(self) -> int:
        """How many examples it stands for."""
        return len(self) if self.design is None else whole_size(self.design)

    def read(self, start: int, stop: int) -> Microbatch:
        """The examples from ``start`` to ``stop``."""
        data = to_model(self.examples.batch(start, stop), self.dtype, self.device)
        scale = None if self.scale is None else self.scale[start:stop].to(self.device)
        counted = None if self.counted is None else max(0, self.counted - start)
        return Microbatch(data, slice(start, stop), scale, counted)

    def microbatches(self, size: int) -> Iterator[Microbatch]:
        """All examples, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.read(start, min(start + size, len(self)))

    def select(self, rows: Sequence[int]) -> Sample:
        """Some of the examples."""
        scale = None if self.scale is None else self.scale[rows]
        known = self.known.of(rows)
        return replace(
            self, examples=self.examples.select(rows), is_selection=True, known=known, scale=scale, design=None
        )

    def standing(self, found: Draw, offset: float) -> Sample:
        """Those of the examples that were drawn, for all of them."""
        part = self.select(found.rows.tolist())
        return replace(
            part, known=Known(part.known.losses, found.weight), scale=found.scale, design=found.design, offset=offset
        )

    def padded(self, rows: range, count: int) -> Sample:
        """So many examples: those at ``rows``, and others that do not count."""
        others = [min(rows.start, len(self) - 1)] * (count - len(rows))
        return replace(self.select([*rows, *others]), counted=len(rows))

    def anew(self) -> Sample:
        """The same examples, of which nothing is remembered."""
        return replace(self, known=Known())

    def in_double(self) -> Sample:
        """The same examples for a model in float64."""
        return replace(self, dtype=torch.float64, known=Known())
