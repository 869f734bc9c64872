"""Which rows a selection means."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy
import torch
from torch import Tensor

from curvprobe.errors import ArgumentError, ArgumentTypeError, PositionError


def resolve_rows(selection: int | slice | Sequence[int] | Tensor, length: int) -> list[int]:
    """Positions that an index, slice, list or boolean mask selects from ``length`` examples."""
    if isinstance(selection, slice):
        rows = list(range(length))[selection]
    elif isinstance(selection, Integral) and not isinstance(selection, bool):
        rows = [int(selection)]
    else:
        rows = _listed_rows(selection, length)
    for row in rows:
        if not -length <= row < length:
            raise PositionError(f"example {row} was asked for; there are {length}")
    if not rows:
        raise ArgumentError(f"the selection {selection!r} holds none of the {length} examples; expected at least one")
    return [row % length for row in rows]


def _listed_rows(selection: Any, length: int) -> list[int]:
    listed = isinstance(selection, Sequence | Tensor | numpy.ndarray) and not isinstance(selection, str)
    nothing = torch.empty(0, dtype=torch.long, device="cpu")
    items = torch.as_tensor(selection, device="cpu").flatten() if listed and len(selection) else nothing
    if not listed or items.is_floating_point() or items.is_complex():
        kind = f"{items.dtype} values" if listed else type(selection).__name__
        raise ArgumentTypeError(
            f"cannot select examples by {kind}; expected an index, a slice, a list of indices or a mask"
        )
    if items.dtype != torch.bool:
        return [int(i) for i in items]
    if len(items) != length:
        raise ArgumentError(f"the mask has {len(items)} entries for {length} examples; expected one each")
    return [int(i) for i in items.nonzero().flatten()]
