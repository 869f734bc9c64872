"""A model's examples, swept along the directions of a basis."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvprobe.curvature.nodewise.recording import UnknownOperationError, record
from curvprobe.curvature.nodewise.sweep import Found, Sweep
from curvprobe.curvature.per_example import loss_of_one
from curvprobe.risk.contract import unlike_losses
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Microbatch

NODEWISE = "examples projected operation by operation"
"""Name of the fast way."""


BRANCHES = 4
"""Ways at most that examples of one kind may go through a model, as with padding and without, to be swept together."""


@dataclass(frozen=True, eq=False)
class Sweeps:
    """Sweeps of a model's loss along the directions of a basis, for each kind of example and each way they go.

    Attributes:
        model: and its loss.
        directions: (D, *shape), by parameter.
        dim: D.
        known: by the types and shapes of an example's tensors, the last recorded first.
        recorded: kinds of the examples that were recorded, in order.
    """

    model: ProbedModel
    directions: dict[str, Tensor]
    dim: int
    known: dict[Hashable, list[Sweep]] = field(default_factory=dict)
    recorded: list[Hashable] = field(default_factory=list)

    @classmethod
    def along(cls, model: ProbedModel, basis: Tensor) -> Sweeps:
        """Along the columns of a basis (N, D), whose memory is shared where it lies by columns."""
        rows, dim = basis.T.contiguous(), basis.shape[1]
        probed = model.state.probed
        parts = torch.split(rows, [p.numel() for p in probed.values()], dim=1)
        named = {n: part.reshape(dim, *p.shape) for (n, p), part in zip(probed.items(), parts, strict=True)}
        return cls(model, model.trained(named, lead=1), dim)

    def bytes_per_example(self, examples: Microbatch) -> int:
        """What an example of this kind takes, if it goes the way of the first.

        Raises:
            UnknownOperationError: if an operation is not known, or the examples are not tensors.
        """
        if examples.kind not in self.known:
            self._record(examples, 0)
        return max(sweep.bytes_per_example for sweep in self.known[examples.kind])

    def __call__(self, examples: Microbatch, losses: Tensor) -> Found | None:
        """Losses, slopes and curvatures of examples whose losses are known; None where a loss comes out otherwise.

        A recording has taken the branches of the example that it was made on. Examples that it gives another loss are
        swept by a recording of the first of them, and so on.
        """
        leaves, count = pytree.tree_leaves(examples.batch), len(examples)
        left = torch.arange(count, device="cpu")
        found: Found | None = None
        attempts = list(self.known.get(examples.kind, []))[: BRANCHES if count > 1 else 1]
        for attempt in range(BRANCHES):
            sweep = attempts[attempt] if attempt < len(attempts) else self._record(examples, int(left[0]))
            part = _swept(sweep, leaves, left, alone=count == 1)
            if part is not None:
                found = part if found is None else _merged(found, left, part)
                again = part[0].cpu()
                unlike = set(unlike_losses(losses[left], again, self.model.dtype).tolist())
                branched = set((again.isnan() & ~losses[left].isnan()).nonzero().flatten().tolist())
                left = left[sorted(unlike | branched)]
            if len(left) == 0:
                return found
        return None

    def _record(self, examples: Microbatch, row: int) -> Sweep:
        leaves, structure = pytree.tree_flatten(examples.batch)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise UnknownOperationError("examples with parts that are no tensors")
        one = loss_of_one(self.model)
        params = {name: p.detach() for name, p in self.model.leaves().items()}
        program = record(
            lambda at, example: one(at, pytree.tree_unflatten(example, structure)),
            params,
            [leaf[row] for leaf in leaves],
        )
        sweep = Sweep.along(program, params, self.directions, self.dim)
        self.known[examples.kind] = [sweep, *self.known.get(examples.kind, [])][:BRANCHES]
        self.recorded.append(examples.kind)
        return sweep


def _swept(sweep: Sweep, leaves: list[Tensor], rows: Tensor, *, alone: bool) -> Found | None:
    """What a sweep finds of some rows; None where the one example has other shapes within than what was recorded."""
    try:
        return sweep(leaves if len(rows) == len(leaves[0]) else [leaf[rows.to(leaf.device)] for leaf in leaves])
    except Exception:  # whatever an operation raises at other shapes
        if not alone:
            raise
        return None


def _merged(found: Found, rows: Tensor, part: Found) -> Found:
    """The same with what was found of some rows in their places."""
    loss, slope, curved = (
        whole.index_copy(0, rows.to(whole.device), new) for whole, new in zip(found, part, strict=True)
    )
    return loss, slope, curved
