"""One operation at one example, as the rules see it, and what a rule says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""Tensors (D, ...) whose inner products G_ab are half of what an operation adds: ``H += G + G^T``."""

Pushed = tuple[Sequence[Tensor | None], list[Pair]]
"""Tangents (D, *shape) of an operation's outputs, and the pairs that it adds."""


@dataclass(frozen=True)
class Local:
    """An operation at one example.

    Attributes:
        function: the operation.
        args, options: values of its arguments.
        tangents: of the arguments in their places, (D, *shape); None where an argument does not move.
        outputs: values of its results.
        adjoint: of the first result; None where what the operation adds is not wanted.
        dim: D.
        alone: whether it is seen at one example, and not at many through vmap.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]
    tangents: tuple[Any, ...]
    outputs: tuple[Any, ...]
    adjoint: Tensor | None
    dim: int
    alone: bool = False

    def argument(self, place: int, default: Any) -> Any:
        """The argument in a place, where it is given."""
        return self.args[place] if place < len(self.args) else default

    def tangent(self, place: int) -> Tensor | None:
        """The tangents of the argument in a place; None where it does not move, or is not given."""
        found = self.tangents[place] if place < len(self.tangents) else None
        return found if isinstance(found, Tensor) else None


Rule = Callable[[Local], Pushed]
"""What is known of an operation."""


def lifted(tangent: Tensor, rank: int) -> Tensor:
    """Tangents (D, *shape) with as many dimensions behind the first as a tensor that they are spread over has."""
    missing = rank + 1 - tangent.dim()
    return tangent.reshape(tangent.shape[0], *[1] * missing, *tangent.shape[1:])


def dims_behind(tangent: Tensor, dim: int) -> int:
    """A dimension of a value, as one of its tangents (D, *shape)."""
    rank = tangent.dim() - 1
    return dim % rank + 1 if rank else 0
