"""Parameters that are not probed and cannot train: read where they lie, and raised to the probed ones' type in use.

A base of billions of weights under a small adapter is neither copied nor converted as a whole. What is raised lives for
one operation; autograd is given the way back to the low tensor instead of the raised one. So it is with weights that
are divided among processes, probed or not: what is made in use is the whole parameter, of the rows that each holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from curvprobe.errors import CannotProbeError
from curvprobe.risk.divided import Divided

SAMPLED = 16
"""Numbers of a frozen tensor by which a change shows that left its version as it was (one through ``.data``)."""

LEAN = "graphs without raised weights"
"""The fast path by which autograd keeps the way back to a low tensor instead of the raised one. Where a model has
transforms of torch.func of its own, which do not go with it, graphs hold what is raised."""

_TENSORS = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})
"""Attributes of a tensor that hold its numbers."""

_SIZES = frozenset({Tensor.size, Tensor.numel, Tensor.dim, Tensor.nelement, Tensor.ndimension, Tensor.__len__})
_OF_SHAPE = frozenset({"shape", "ndim", *(asked.__name__ for asked in _SIZES)})
"""What is asked of a tensor's shape."""


def is_lower(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor's floating-point precision is lower than that of a type."""
    return tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < torch.finfo(dtype).bits


@dataclass(frozen=True, eq=False)
class Frozen:
    """Frozen tensors by name, and what they were like when they were first seen."""

    tensors: Mapping[str, Tensor]
    versions: tuple[int, ...]
    sampled: tuple[Tensor, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Frozen:
        """As they are now."""
        return cls(tensors, tuple(t._version for t in tensors.values()), tuple(map(_sample, tensors.values())))

    def check(self) -> None:
        """Refuse to go on where one has changed: it is not the model any more that was probed."""
        for (name, tensor), version, sampled in zip(self.tensors.items(), self.versions, self.sampled, strict=True):
            if tensor._version != version or not torch.equal(_sample(tensor), sampled):
                raise CannotProbeError(
                    f"the frozen parameter {name} has changed since the risk was made, and frozen parameters are not "
                    "copied; make the risk again, or make it of copy.deepcopy(model)"
                )


def _sample(tensor: Tensor) -> Tensor:
    """A few of a tensor's numbers as bytes, by which NaN equals itself."""
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.flatten()[:SAMPLED]
    return flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].clone().view(torch.uint8)


class Raised:
    """Low tensors as those of a higher type, and rows as whole parameters, made where they are used.

    While :meth:`pack` and :meth:`unpack` are autograd's hooks, it keeps nothing that was made: it makes it again.
    """

    def __init__(self, dtype: torch.dtype, divided: Divided | None = None) -> None:
        self.dtype, self.divided = dtype, divided
        self._alive: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._low: dict[int, tuple[Tensor, str]] = {}

    def divides(self, name: str) -> bool:
        """Whether a parameter is divided."""
        return self.divided is not None and name in self.divided.shapes

    def of(self, low: Tensor, name: str = "") -> Tensor:
        """The tensor in the higher type; where a parameter of this name is divided, the whole of it."""
        if self.divided is None or not (low.requires_grad or self.divided.moves(name)):
            return self._again(low, name)
        return self._kept(self.divided.used(low, name), low.detach(), name)

    def _again(self, low: Tensor, name: str) -> Tensor:
        """Its numbers, without a derivative."""
        whole = self.divided.whole(low, name) if self.divided is not None and self.divides(name) else low
        return self._kept(whole.to(self.dtype) if whole.is_floating_point() else whole, low, name)

    def _kept(self, made: Tensor, low: Tensor, name: str) -> Tensor:
        """What was made, of which one knows from now on where it comes from."""
        with suppress(NotImplementedError):  # within a transform of torch.func it has no storage of its own
            storage = made.untyped_storage()
            self._alive[storage.data_ptr()], self._low[storage.data_ptr()] = storage, (low, name)
        return made

    def pack(self, tensor: Tensor) -> Any:
        """What autograd keeps of a tensor: where a raised one comes from, or the tensor."""
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if self._alive.get(place) is not storage:  # an address is used again once what lay there is gone
            return tensor
        return self._low[place], tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(self, kept: Any) -> Tensor:
        """The tensor again."""
        if isinstance(kept, Tensor):
            return kept
        source, *view = kept
        return self._again(*source).as_strided(*view)


class RaisedInUse(TorchFunctionMode):
    """While it lasts, every operation that is given one of some low tensors, or of those divided, is given what is made
    of it."""

    def __init__(self, tensors: Mapping[str, Tensor], raised: Raised) -> None:
        super().__init__()
        self.raised = raised
        self.low = {
            id(tensor): (tensor, name)
            for name, tensor in tensors.items()
            if is_lower(tensor, raised.dtype) or raised.divides(name)
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation itself; a tensor says that it is of the higher type."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "__get__" and func.__self__.__name__ not in _TENSORS:
            is_type = func.__self__.__name__ == "dtype" and id(args[0]) in self.low
            return self.raised.dtype if is_type else func(*self._shaped(func.__self__, args), **kwargs)
        if func in _SIZES:
            return func(*self._shaped(func, args), **kwargs)
        if func is torch.autograd.grad:  # of what was given, not of what is made of it
            return func(*args, **kwargs)
        if func is functional.embedding and self.raised.divided is None:  # rows first: a table is large, few are used
            rows = func(*args, **kwargs)
            return rows.to(self.raised.dtype) if is_lower(rows, self.raised.dtype) else rows
        return func(*self._lifted(args), **{name: self._lifted(value) for name, value in kwargs.items()})

    def _shaped(self, asked: Any, args: Any) -> Any:
        """The arguments; where the shape of a divided parameter is asked for, one that has it."""
        _, name = self.low.get(id(args[0]), (None, ""))
        divided = self.raised.divided
        if divided is None or name not in divided.shapes or getattr(asked, "__name__", "") not in _OF_SHAPE:
            return args
        return (divided.meta[name], *args[1:])

    def _lifted(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.raised.of(*self.low[id(value)]) if id(value) in self.low else value
        if type(value) in (list, tuple):
            return type(value)(self._lifted(part) for part in value)
        return value
