"""Hashes of the content of data, by which it is recognised.

With ``exact=False`` a digest has two parts: a coarse one, in which the type of a number does not count, and, where the
data holds float64 numbers, a fine one, by which these are told apart beyond float32: ``coarse-which-fine``, where
``which`` says what numbers are in float64.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import types
import weakref
from collections.abc import Iterable, Mapping, Set
from enum import Enum
from typing import Any

import numpy
import torch
from torch import Tensor

INLINE = 6
"""Depth from which lists and mappings are hashed by themselves, so that what refers to itself is walked only once."""

DEEPEST = 40
"""Depth below which nothing is followed at once, but later from the top: a chain of objects may be long."""

_NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, weakref.ReferenceType)
_OWN_WAYS = ("__reduce_ex__", "__reduce__", "__getstate__")


class _Walk:
    """A walk through an item's content, which feeds it to a hash."""

    def __init__(self, exact: bool, inside: dict[int, int] | None = None) -> None:
        self.exact = exact
        self.inside = {} if inside is None else inside  # depth of the objects around
        self.by_itself = inside is not None  # for a member of a set or a key, whose order among others is not known
        self.known: dict[int, tuple[Any, bytes]] = {}  # holds the objects: an id is theirs as long as they are there
        self.later: list[Any] = []
        self.numbered: dict[int, int] = {}
        self.which: Any = hashlib.blake2b(digest_size=4)
        self.fine: Any = hashlib.blake2b(digest_size=16)
        self.has_doubles = False

    def name(self, item: Any) -> str:
        """The digest of an item."""
        state = hashlib.blake2b(digest_size=16)
        self.feed(state, item, 0)
        for deep in self.later:  # grows meanwhile
            if id(deep) not in self.known:
                self._keep(deep, 0)
            state.update(self.known[id(deep)][1])
        doubles = f"-{self.which.hexdigest()}-{self.fine.hexdigest()}" if self.has_doubles else ""
        return state.hexdigest() + doubles

    def feed(self, state: Any, item: Any, depth: int) -> None:
        if type(item) in weakref.ProxyTypes:
            state.update(b"weakproxy")
            return
        if isinstance(item, numpy.ndarray | numpy.generic):
            item = _as_tensor(item) if item.dtype.kind in "biufc" else item.tolist()
        if isinstance(item, Tensor):
            self._tensor(state, item, depth)
        elif isinstance(item, bool | int | float) and not self.exact and abs(item) < 2**63:
            self._number(state, item)
        elif isinstance(item, str | bytes | int | float | complex | None):
            state.update(repr(item).encode())
        else:
            self._compound(state, item, depth)

    def _tensor(self, state: Any, item: Tensor, depth: int) -> None:
        parts = _parts_of_tensor(item)
        if parts is not None:
            self.feed(state, parts, depth + 1)
            return
        flat = item.detach().reshape(1, -1)
        kind, content = _content(flat, self.exact)
        state.update(f"{kind}{tuple(item.shape)}".encode())
        state.update(content)
        if not self.exact and item.is_floating_point():
            doubles = item.dtype == torch.float64
            self.which.update(b"d" if doubles else b"f")
            if doubles:
                self.has_doubles = True
                self.fine.update(_content(flat, exact=True)[1])

    def _number(self, state: Any, item: bool | int | float) -> None:
        """What :meth:`_tensor` feeds for a tensor without dimensions."""
        if isinstance(item, float):
            state.update(b"torch.float32()" + struct.pack("=f", item))
            self.which.update(b"d")
            self.fine.update(struct.pack("=d", item))
            self.has_doubles = True
        else:
            state.update(b"torch.int64()" + int(item).to_bytes(8, sys.byteorder, signed=True))

    def _compound(self, state: Any, item: Any, depth: int) -> None:
        """Feed something that holds other things."""
        at = id(item)
        if at in self.inside:
            state.update(b"^%d" % (depth - self.inside[at]))
        elif at in self.known:
            state.update(self.known[at][1])
        elif depth > DEEPEST or at in self.numbered:
            if at not in self.numbered:
                self.numbered[at] = len(self.later)
                self.later.append(item)
            state.update(b"#%d" % self.numbered[at])
        elif depth < INLINE and isinstance(item, Mapping | tuple | list):
            self.inside[at] = depth
            self._parts(state, item, depth + 1)
            del self.inside[at]
        else:
            state.update(self._keep(item, depth))

    def _keep(self, item: Any, depth: int) -> bytes:
        """The hash of something that holds other things, by itself; kept for when it is met again."""
        own = hashlib.blake2b(digest_size=16)
        self.inside[id(item)] = depth
        self._parts(own, item, depth + 1)
        del self.inside[id(item)]
        self.known[id(item)] = (item, own.digest())
        return own.digest()

    def _parts(self, state: Any, item: Any, depth: int) -> None:
        if isinstance(item, Mapping):
            for name, key in sorted(((self._key(key), key) for key in item), key=lambda pair: pair[0]):
                state.update(name.encode())
                self.feed(state, item[key], depth)
        elif isinstance(item, tuple | list):
            state.update(f"{len(item)}".encode())
            for part in item:
                self.feed(state, part, depth)
        elif isinstance(item, Set):
            state.update(f"{type(item).__qualname__}{len(item)}".encode())
            if not self.by_itself or all(_is_plain(member) for member in item):
                state.update("".join(sorted(self._alone(member) for member in item)).encode())
        else:
            self._object(state, item, depth)
            return
        held = _attributes(item) if isinstance(item, dict | tuple | list | set) else {}
        if held:
            self.feed(state, held, depth)

    def _key(self, key: Any) -> str:
        if _is_plain(key):
            return str(key)
        return type(key).__qualname__ if self.by_itself else self._alone(key)

    def _alone(self, item: Any) -> str:
        return _Walk(self.exact, self.inside).name(item)

    def _object(self, state: Any, item: Any, depth: int) -> None:
        """By what it is pickled from where its type says so, else by its attributes; a leaf by its name.

        Never by a pickle: that of an object which holds tensors differs from one time to the next.
        """
        state.update(type(item).__qualname__.encode())
        content: Any = None
        if isinstance(item, _NAMED):
            content = [str(getattr(item, name, "")) for name in ("__module__", "__qualname__", "__name__")]
        elif isinstance(item, bytearray | memoryview):
            content = bytes(item)
        elif any(getattr(type(item), way, None) is not getattr(object, way, None) for way in _OWN_WAYS):
            content = _reduced(item)
        content = content or _attributes(item)
        if content:
            self.feed(state, content, depth)


def _parts_of_tensor(item: Tensor) -> list[Any] | None:
    """What a tensor that is no plain array consists of; None for one that is."""
    if item.layout == torch.strided and not item.is_nested and not item.is_quantized:
        return None
    held = item.detach()
    if held.is_nested:
        return ["nested", *held.unbind()]
    if held.is_quantized:
        return ["quantized", held.dequantize()]
    name, shape = str(held.layout), tuple(held.shape)
    if held.layout == torch.sparse_coo:
        held = held.coalesce()
        return [name, shape, held.indices(), held.values()]
    if held.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [name, shape, held.crow_indices(), held.col_indices(), held.values()]
    if held.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [name, shape, held.ccol_indices(), held.row_indices(), held.values()]
    return [name, held.to_dense()]


def _as_tensor(item: Any) -> Tensor:
    """A tensor of a NumPy array or number, of any byte order and any strides."""
    item = numpy.asarray(item)
    native = item.dtype.newbyteorder("=")
    if native.kind in "fc" and native.itemsize > (8 if native.kind == "f" else 16):  # long double
        native = numpy.dtype("float64" if native.kind == "f" else "complex128")
    if native != item.dtype or not item.flags.writeable or min(item.strides, default=0) < 0:
        item = numpy.array(item, dtype=native, order="C", copy=True)
    return torch.as_tensor(item, device="cpu")


def _attributes(item: Any) -> dict[str, Any]:
    """What an object holds in its attributes and slots."""
    held = {}
    for kind in type(item).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            private = name.startswith("__") and not name.endswith("__")
            real = f"_{kind.__name__.lstrip('_')}{name}" if private else name
            if real not in ("__dict__", "__weakref__") and hasattr(item, real):
                held[real] = getattr(item, real)
    return held | dict(getattr(item, "__dict__", {}))


def _reduced(item: Any) -> list[Any] | None:
    """What an object is pickled from; None where it cannot be."""
    try:
        found = item.__reduce_ex__(4)
        if isinstance(found, str):
            return [found]
        made, arguments, *more = found
        state, items, pairs = (*more, None, None, None)[:3]
        return [made, arguments, state, list(items or ()), dict(pairs or ())]
    except Exception:  # whatever a user's type raises
        return None


def _is_plain(key: Any) -> bool:
    """Whether the text of a key is the same in every process."""
    if isinstance(key, tuple):
        return all(_is_plain(part) for part in key)
    return isinstance(key, str | bytes | int | float | complex | None | Enum | numpy.generic)


def _content(rows: Tensor, exact: bool) -> tuple[torch.dtype, numpy.ndarray]:
    """The bytes (n, ...) of rows (n, m) of numbers, and the type of the numbers."""
    flat = rows.detach().cpu()
    if not exact and not flat.is_complex():
        flat = flat.float() if flat.is_floating_point() else flat.long()
    flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.dtype, flat.view(torch.uint8).numpy()


def digest(item: Any, *, exact: bool = True) -> str:
    """Hash of the content of anything: a nest of tensors, arrays, numbers and strings, or objects that hold such.

    An object counts by what it is pickled from where its type says so itself, else by its attributes; what has no
    content that could be read (a class, a function, a lock, a weak reference) counts by its name. With ``exact=False``
    the type of a number does not count: integers are compared as int64, floats as float32 in the first part of the
    digest and, those in float64, as they are in another one; see :func:`overlap`.

    Example:
        >>> digest((torch.zeros(2), 1)) == digest((torch.zeros(2), 1))
        True
        >>> digest(torch.zeros(2).double(), exact=False).startswith(digest(torch.zeros(2), exact=False))
        True
    """
    return _Walk(exact).name(item)


HASHED_TOGETHER = 1024
"""Rows of tensors in memory that are copied at a time, to be hashed."""


def row_digests(data: Any, count: int) -> list[str]:
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
    return _with_fine_parts(found, [tensor for _, tensor in parts if tensor.is_floating_point()])


def _with_fine_parts(coarse: list[str], floats: list[Tensor]) -> list[str]:
    """The digests of rows, from their coarse parts and their tensors of real numbers."""
    doubles = [_content(t.reshape(len(coarse), -1), exact=True)[1] for t in floats if t.dtype == torch.float64]
    if not doubles:
        return coarse
    kinds = b"".join(b"d" if t.dtype == torch.float64 else b"f" for t in floats)
    which = hashlib.blake2b(kinds, digest_size=4).hexdigest()
    found = []
    for row, name in enumerate(coarse):
        fine = hashlib.blake2b(digest_size=16)
        for content in doubles:
            fine.update(content[row])
        found.append(f"{name}-{which}-{fine.hexdigest()}")
    return found


def overlap(first: Iterable[str], second: Iterable[str]) -> list[int]:
    """Positions in ``second`` of examples that ``first`` holds too, by content hash.

    Two are alike when the coarse parts of their digests agree and, where the same numbers are in float64 in both, the
    fine parts too: a float64 example is recognised in float32.

    Example:
        >>> overlap(["a", "b"], ["c", "b"]), overlap(["a-d-1", "b-d-1"], ["a", "b-d-2"])
        ([1], [0])
    """
    known: dict[str, dict[str, set[str]]] = {}
    for coarse, which, fine in map(_split, first):
        known.setdefault(coarse, {}).setdefault(which, set()).add(fine)

    def is_known(coarse: str, which: str, fine: str) -> bool:
        alike = known.get(coarse, {})
        return any(kinds != which or fine in fines for kinds, fines in alike.items())

    return [i for i, name in enumerate(second) if is_known(*_split(name))]


def _split(name: str) -> tuple[str, str, str]:
    """Coarse part, which numbers are in float64, and fine part; the last two are empty where none is."""
    coarse, _, rest = name.partition("-")
    which, _, fine = rest.partition("-")
    return coarse, which, fine
