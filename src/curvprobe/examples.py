"""Examples in a fixed order, read in batches; whatever the user's data looks like."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate
from torch.utils.data import Subset as TorchSubset

Batch = Any
"""What the model and the loss are given: a tensor, a tuple or list, or a mapping."""


def _update(state: Any, item: Any, exact: bool, inside: tuple[int, ...] = ()) -> None:
    """Feed an item's content to a hash; ``inside`` holds the objects around it, against endless recursion."""
    if isinstance(item, numpy.ndarray | numpy.generic):
        item = torch.as_tensor(item) if item.dtype.kind in "biufc" else item.tolist()
    if isinstance(item, bool | int | float) and not exact and abs(item) < 2**63:
        item = torch.tensor(item)
    if isinstance(item, Tensor):
        kind, content = _content(item.detach().reshape(1, -1), exact)
        state.update(f"{kind}{tuple(item.shape)}".encode())
        state.update(content)
    elif isinstance(item, Mapping):
        for key in sorted(item, key=str):
            state.update(str(key).encode())
            _update(state, item[key], exact, inside)
    elif isinstance(item, tuple | list):
        state.update(f"{len(item)}".encode())
        for part in item:
            _update(state, part, exact, inside)
    elif isinstance(item, str | bytes | int | float | complex | None):
        state.update(repr(item).encode())
    elif hasattr(item, "__dict__") and id(item) not in inside:
        # By its attributes: a pickle of an object that holds tensors differs from one time to the next.
        state.update(type(item).__qualname__.encode())
        _update(state, vars(item), exact, (*inside, id(item)))
    elif id(item) not in inside:
        state.update(pickle.dumps(item))


def _content(rows: Tensor, exact: bool) -> tuple[torch.dtype, numpy.ndarray]:
    """The bytes (n, ...) of rows (n, m) of numbers, and the type of the numbers."""
    flat = rows.detach().cpu()
    if not exact and not flat.is_complex():
        flat = flat.float() if flat.is_floating_point() else flat.long()
    flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.dtype, flat.view(torch.uint8).numpy()


def digest(item: Any, *, exact: bool = True) -> str:
    """Hexadecimal hash of the content of a nest of tensors, arrays, numbers and strings.

    With ``exact=False`` the type of a number does not count: floats are compared as float32, integers as int64.

    Example:
        >>> digest((torch.zeros(2), 1)) == digest((torch.zeros(2), 1))
        True
        >>> digest(torch.zeros(2), exact=False) == digest(torch.zeros(2).double(), exact=False)
        True
    """
    state = hashlib.blake2b(digest_size=16)
    _update(state, item, exact)
    return state.hexdigest()


class Examples:
    """A fixed, ordered collection of examples.

    Reads from tensors that share their first dimension (one tensor, a tuple, or a dict), or from a map-style
    dataset. Every example of a dataset is hashed when it is read; a later read that brings something else is an
    error, because every formula in this package assumes that the data stands still between passes.
    """

    def __init__(self, data: Any, collate_fn: Callable[[list[Any]], Batch] | None = None) -> None:
        self._data, self._length, self._in_memory = _recognise(data)
        if self._in_memory and collate_fn is not None:
            raise ValueError("collate_fn came with tensors, which need no collating; expected it with a dataset only")
        self._collate = collate_fn or default_collate
        self._indices: Sequence[int] = range(self._length)
        self._seen: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._indices)

    def select(self, indices: Sequence[int]) -> Examples:
        """The examples at these positions, in this order; shares the data."""
        chosen = Examples.__new__(Examples)
        chosen.__dict__.update(self.__dict__)
        chosen._indices = [self._indices[i] for i in indices]
        return chosen

    def batch(self, start: int, stop: int) -> Batch:
        """Examples ``start`` to ``stop`` of this collection, collated."""
        rows = self._indices[start:stop]
        if self._in_memory:
            return _take(self._data, rows)
        items = []
        for row in rows:
            item = self._data[row]
            found = digest(item, exact=False)
            if self._seen.setdefault(row, found) != found:
                raise ValueError(
                    f"example {row} is not what it was when it was read before; expected data that stands still "
                    "between passes. Turn random augmentation, random cropping and shuffling off, or materialise "
                    "the examples once and pass the list."
                )
            items.append(item)
        try:
            return self._collate(items)
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"the examples could not be collated into a batch ({error}); pass collate_fn, or examples of equal "
                "shape, or microbatch_size=1"
            ) from error

    def digests(self) -> tuple[str, ...]:
        """Content hash of every example, in order."""
        if self._in_memory:
            starts = range(0, len(self), _HASHED_TOGETHER)
            chunks = (self._indices[start : start + _HASHED_TOGETHER] for start in starts)
            return tuple(found for rows in chunks for found in _row_digests(_take(self._data, rows), len(rows)))
        for row in self._indices:
            if row not in self._seen:
                self._seen[row] = digest(self._data[row], exact=False)
        return tuple(self._seen[row] for row in self._indices)


def _recognise(data: Any) -> tuple[Any, int, bool]:
    """The data, its length, and whether it consists of tensors in memory."""
    if isinstance(data, DataLoader):
        raise TypeError(
            "data is a DataLoader, whose order and batches may change between passes; "
            "expected its dataset: pass loader.dataset and, if it has one, collate_fn=loader.collate_fn"
        )
    if isinstance(data, IterableDataset):
        raise TypeError("data is an IterableDataset, which has no fixed order; expected a map-style dataset or a list")
    if isinstance(data, Tensor):
        tensors = [data]
    elif isinstance(data, Mapping) and data and all(isinstance(v, Tensor) for v in data.values()):
        data, tensors = dict(data), list(data.values())
    elif isinstance(data, tuple) and data and all(isinstance(v, Tensor) for v in data):
        tensors = list(data)
    elif isinstance(data, tuple) and data and all(isinstance(v, Tensor | numpy.ndarray) for v in data):
        raise TypeError("data is a tuple with NumPy arrays; expected tensors: convert arrays with torch.as_tensor")
    elif isinstance(data, list | TorchSubset | Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        if isinstance(data, Mapping | str | bytes) or hasattr(data, "__array__"):
            raise TypeError(f"data is a {type(data).__name__}; expected tensors: convert arrays with torch.as_tensor")
        if not hasattr(data, "__len__"):
            raise TypeError(f"data is a {type(data).__name__} without a length; expected a map-style dataset")
        if len(data) == 0:
            raise ValueError("data has no examples; expected at least one")
        return data, len(data), False
    else:
        raise TypeError(
            f"data is a {type(data).__name__}; expected tensors (inputs, targets), one tensor, a dict of tensors, "
            "or a map-style dataset"
        )
    if any(t.dim() == 0 for t in tensors):
        raise ValueError("data holds a tensor without dimensions; expected examples along the first dimension")
    lengths = sorted({len(t) for t in tensors})
    if len(lengths) > 1:
        raise ValueError(f"the data's tensors have lengths {lengths}; expected the same first dimension in all")
    if lengths[0] == 0:
        raise ValueError("data has no examples; expected at least one")
    return data, lengths[0], True


def _map_tensors(data: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, Mapping):
        return {key: _map_tensors(value, function) for key, value in data.items()}
    if isinstance(data, tuple | list):
        mapped = [_map_tensors(value, function) for value in data]
        return type(data)(*mapped) if hasattr(data, "_fields") else type(data)(mapped)
    return data


def _take(data: Any, rows: Sequence[int]) -> Batch:
    if isinstance(rows, range) and rows.step == 1:
        return _map_tensors(data, lambda t: t[rows.start : rows.stop])
    index = torch.as_tensor(list(rows))
    return _map_tensors(data, lambda t: t[index.to(t.device)])


_HASHED_TOGETHER = 1024
"""Rows of tensors in memory that are copied at a time, to be hashed."""


def _row_digests(data: Any, count: int) -> list[str]:
    """``digest(row, exact=False)`` of every row of a tensor, or of a tuple or dict of tensors; 20 times as fast."""
    if isinstance(data, Mapping):
        parts = [(str(key).encode(), data[key]) for key in sorted(data, key=str)]
    elif isinstance(data, Tensor):
        parts = [(b"", data)]
    else:
        parts = [(b"" if i else f"{len(data)}".encode(), part) for i, part in enumerate(data)]
    columns = []
    for before, tensor in parts:
        kind, content = _content(tensor.reshape(count, -1), exact=False)
        columns.append((before + f"{kind}{tuple(tensor.shape[1:])}".encode(), content))
    found = []
    for row in range(count):
        state = hashlib.blake2b(digest_size=16)
        for before, content in columns:
            state.update(before)
            state.update(content[row])
        found.append(state.hexdigest())
    return found


def to_model(batch: Batch, dtype: torch.dtype, device: torch.device) -> Batch:
    """A copy of the batch on the model's device, its floating-point tensors in the model's dtype.

    Always a copy: a model may change its input in place, and the user's data must not change with it.
    """

    def moved(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device=device, dtype=kind, copy=True)

    return _map_tensors(batch, moved)


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
            raise IndexError(f"example {row} was asked for; there are {length}")
    if not rows:
        raise ValueError(f"the selection {selection!r} holds none of the {length} examples; expected at least one")
    return [row % length for row in rows]


def _listed_rows(selection: Any, length: int) -> list[int]:
    listed = isinstance(selection, Sequence | Tensor | numpy.ndarray) and not isinstance(selection, str)
    items = torch.as_tensor(selection).flatten() if listed and len(selection) else torch.empty(0, dtype=torch.long)
    if not listed or items.is_floating_point() or items.is_complex():
        kind = f"{items.dtype} values" if listed else type(selection).__name__
        raise TypeError(f"cannot select examples by {kind}; expected an index, a slice, a list of indices or a mask")
    if items.dtype != torch.bool:
        return [int(i) for i in items]
    if len(items) != length:
        raise ValueError(f"the mask has {len(items)} entries for {length} examples; expected one each")
    return [int(i) for i in items.nonzero().flatten()]


def overlap(first: Iterable[str], second: Iterable[str]) -> list[int]:
    """Positions in ``second`` of examples that ``first`` holds too, by content hash.

    Example:
        >>> overlap(["a", "b"], ["c", "b"])
        [1]
    """
    known = set(first)
    return [i for i, name in enumerate(second) if name in known]
