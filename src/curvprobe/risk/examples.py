"""Examples in a fixed order, read in batches; whatever the user's data looks like."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate
from torch.utils.data import Subset as TorchSubset

from curvprobe.errors import CannotProbeError, CannotProbeTypeError
from curvprobe.runtime.digest import HASHED_TOGETHER, digest, row_digests

Batch = Any
"""What the model and the loss are given: a tensor, a tuple or list, or a mapping."""


class Examples:
    """A fixed, ordered collection of examples.

    Reads from tensors that share their first dimension (one tensor, a tuple, or a dict), or from a map-style
    dataset; one of Hugging Face that gives Python lists is asked for tensors, as its format "torch" makes them.
    Every example of a dataset is hashed when it is read; a later read that brings something else is an error,
    because every formula in this package assumes that the data stands still between passes.
    """

    def __init__(self, data: Any, collate_fn: Callable[[list[Any]], Batch] | None = None) -> None:
        self._data, self._length, self._in_memory = _recognise(data if collate_fn else _formatted(data))
        if self._in_memory and collate_fn is not None:
            raise CannotProbeError(
                "collate_fn came with tensors, which need no collating; expected it with a dataset only"
            )
        self.given_collate_fn = collate_fn
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
            item, found = self._read(row)
            if self._seen.setdefault(row, found) != found:
                raise CannotProbeError(
                    f"example {row} is not what it was when it was read before; expected data that stands still "
                    "between passes. Turn random augmentation, random cropping and shuffling off, or materialise "
                    "the examples once and pass the list."
                )
            items.append(item)
        return _collated(items, rows, self.given_collate_fn)

    def _read(self, row: int) -> tuple[Any, str]:
        """An item of the dataset, and its content hash."""
        try:
            item = self._data[row]
        except Exception as error:  # of the user's code
            raise CannotProbeError(
                f"reading example {row} of the {type(self._data).__name__} failed with {_told(error)}; expected an "
                f"item for every position below {self._length}: try dataset[{row}], and mend the dataset or leave "
                "the example out"
            ) from error
        try:
            return item, digest(item, exact=False)
        except Exception as error:
            raise CannotProbeError(
                f"the content of example {row}, a {type(item).__name__}, could not be read to recognise it by "
                f"({_told(error)}); expected tensors, numbers, strings, or objects that hold such in their attributes"
            ) from error

    def digests(self) -> tuple[str, ...]:
        """Content hash of every example, in order."""
        if self._in_memory:
            starts = range(0, len(self), HASHED_TOGETHER)
            chunks = (self._indices[start : start + HASHED_TOGETHER] for start in starts)
            return tuple(found for rows in chunks for found in row_digests(_take(self._data, rows), len(rows)))
        for row in self._indices:
            if row not in self._seen:
                self._seen[row] = self._read(row)[1]
        return tuple(self._seen[row] for row in self._indices)


def _recognise(data: Any) -> tuple[Any, int, bool]:
    """The data, its length, and whether it consists of tensors in memory."""
    if isinstance(data, DataLoader):
        raise CannotProbeTypeError(
            "data is a DataLoader, whose order and batches may change between passes; "
            "expected its dataset: pass loader.dataset and, if it has one, collate_fn=loader.collate_fn"
        )
    if isinstance(data, IterableDataset):
        raise CannotProbeTypeError(
            "data is an IterableDataset, which has no fixed order; expected a map-style dataset or a list"
        )
    data = _tensors(data)
    if isinstance(data, Tensor):
        return data, _common_length([data]), True
    if isinstance(data, Mapping) and data and all(isinstance(v, Tensor) for v in data.values()):
        return dict(data), _common_length(list(data.values())), True
    if isinstance(data, tuple) and data and all(isinstance(v, Tensor) for v in data):
        return data, _common_length(list(data)), True
    if isinstance(data, list | TorchSubset | Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return data, _dataset_length(data), False
    raise CannotProbeTypeError(
        f"data is a {type(data).__name__}; expected tensors (inputs, targets), one tensor, a dict of tensors, "
        "or a map-style dataset"
    )


def _formatted(data: Any) -> Any:
    """A Hugging Face dataset without a format of its own gives lists, which nothing collates: the same with tensors."""
    form = getattr(data, "format", None)
    if isinstance(form, Mapping) and form.get("type", "") is None and hasattr(data, "with_format"):
        return data.with_format("torch")
    return data


def _tensors(data: Any) -> Any:
    """NumPy arrays of numbers as tensors: one, or those of a tuple or a mapping that holds nothing but arrays."""
    if isinstance(data, numpy.ndarray):
        return _from_array(data)
    if isinstance(data, tuple) and data and all(isinstance(v, Tensor | numpy.ndarray) for v in data):
        parts = [_from_array(v) if isinstance(v, numpy.ndarray) else v for v in data]
        return type(data)(*parts) if hasattr(data, "_fields") else tuple(parts)
    if isinstance(data, Mapping) and data and all(isinstance(v, Tensor | numpy.ndarray) for v in data.values()):
        return {k: _from_array(v) if isinstance(v, numpy.ndarray) else v for k, v in data.items()}
    return data


def _from_array(array: numpy.ndarray[Any, Any]) -> Tensor:
    """A copy: the data of a risk stands still, whatever becomes of the array."""
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    except (TypeError, ValueError) as error:
        raise CannotProbeTypeError(
            f"data holds a NumPy array of {array.dtype}; expected numbers, as tensors or arrays"
        ) from error


def _common_length(tensors: list[Tensor]) -> int:
    if any(t.layout != torch.strided for t in tensors):
        raise CannotProbeTypeError(
            "data holds a sparse tensor; expected dense ones (to_dense()), or a list of its rows"
        )
    if any(t.dim() == 0 for t in tensors):
        raise CannotProbeError("data holds a tensor without dimensions; expected examples along the first dimension")
    lengths = sorted({len(t) for t in tensors})
    if len(lengths) > 1:
        raise CannotProbeError(f"the data's tensors have lengths {lengths}; expected the same first dimension in all")
    if lengths[0] == 0:
        raise CannotProbeError("data has no examples; expected at least one")
    return lengths[0]


def _dataset_length(data: Any) -> int:
    if isinstance(data, Mapping | str | bytes) or hasattr(data, "__array__"):
        raise CannotProbeTypeError(
            f"data is a {type(data).__name__}; expected tensors: convert arrays with torch.as_tensor"
        )
    if not hasattr(data, "__len__"):
        raise CannotProbeTypeError(f"data is a {type(data).__name__} without a length; expected a map-style dataset")
    if len(data) == 0:
        raise CannotProbeError("data has no examples; expected at least one")
    return len(data)


def _collated(items: list[Any], rows: Sequence[int], given: Callable[[list[Any]], Batch] | None) -> Batch:
    """The items that stand at these rows of a dataset as a batch."""
    named = f"example {rows[0]}" if len(rows) == 1 else f"examples {rows[0]} to {rows[-1]}"
    if given is not None:
        try:
            return given(items)
        except Exception as error:  # of the user's code
            raise CannotProbeError(
                f"{named} could not be collated into a batch: collate_fn failed with {_told(error)}; expected a "
                f"collate_fn that takes a list of any number of items, here {len(items)}, as the dataset gives them"
            ) from error
    where = _list_of_numbers(items[0])
    if where is not None:
        raise CannotProbeError(
            f"{named} could not be collated into a batch: item{where} is a Python list of numbers, and PyTorch's "
            "default would make one tensor for each position of it, not one for the list; expected tensors: call "
            'dataset.set_format("torch") on a Hugging Face dataset, or pass a collate_fn that makes them'
        )
    try:
        with torch.device("cpu"):  # numbers become tensors
            return default_collate(items)
    except Exception as error:
        raise CannotProbeError(
            f"{named} could not be collated into a batch by PyTorch's default ({_told(error)}); pass collate_fn, or "
            "examples of equal shape, or microbatch_size=1"
        ) from error


def _list_of_numbers(item: Any, where: str = "") -> str | None:
    """Where in an item a list of numbers is; a list that is the item itself may hold its parts."""
    if isinstance(item, Mapping):
        parts = [(f"[{key!r}]", part) for key, part in item.items()]
    elif isinstance(item, tuple | list):
        if where and isinstance(item, list) and item and isinstance(item[0], numbers.Number):
            return where
        parts = [(f"[{i}]", part) for i, part in enumerate(item)]
    else:
        return None
    found = (_list_of_numbers(part, where + at) for at, part in parts)
    return next((place for place in found if place is not None), None)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


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
    index = torch.as_tensor(list(rows), device="cpu")
    return _map_tensors(data, lambda t: t[index.to(t.device)])


def to_model(batch: Batch, dtype: torch.dtype, device: torch.device) -> Batch:
    """The batch on the model's device, its floating-point tensors in the model's dtype."""
    return _map_tensors(batch, lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else t.dtype))


def fresh(batch: Batch) -> Batch:
    """A copy, in containers of its own."""
    return _map_tensors(batch, lambda t: t.clone())
