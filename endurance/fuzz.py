"""Files of a run as an accident or an enemy leaves them, and what they may end in: what was written, or a refusal."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

import curvprobe as cp
from curvprobe.eigensolver.krylov import KrylovBasis
from curvprobe.numerics.space import Space
from curvprobe.runtime.store import Stage, Store

MARKUP = "</script><script>alert(1)</script>"

VALUES = st.one_of(
    st.sampled_from([None, True, -1, 0, 10**400, -(10**30), 2**63, 1e308, float("nan"), float("inf"), "", MARKUP]),
    st.sampled_from([[], {}, [[]], ["x"], {"x": 1}, [None], "DEEP"]),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
)
"""What may stand in the place of anything; a word for what is nested too deep to be written by Python's own JSON."""

DEEP = b"[" * 100_000 + b"]" * 100_000


def places(nest: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every entry of a nest of lists and dicts, from the top; three of a list."""
    entries = nest.items() if isinstance(nest, dict) else enumerate(nest[:3]) if isinstance(nest, list) else ()
    return [found for key, part in entries for found in ((*path, key), *places(part, (*path, key)))]


def put(nest: Any, path: tuple[Any, ...], value: Any) -> None:
    """Another value in a place, where the place is still there; ``...`` takes the entry away."""
    for key in path[:-1]:
        try:
            nest = nest[key]
        except (KeyError, IndexError, TypeError):
            return
    try:
        if value is ...:
            del nest[path[-1]]
        else:
            nest[path[-1]] = copy.deepcopy(value)  # drawn twice, it could come to lie within itself
    except (KeyError, IndexError, TypeError):
        return


@st.composite
def mutated_json(draw: st.DrawFn, record: Any) -> bytes:
    """The record as JSON with one to three of its entries changed or gone."""
    record, known = copy.deepcopy(record), places(record)
    for _ in range(draw(st.integers(1, 3))):
        put(record, draw(st.sampled_from(known)), draw(VALUES | st.just(...)))
    return json.dumps(record).encode().replace(b'"DEEP"', DEEP)


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with bits flipped, an end cut off, or something put in."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        how = draw(st.sampled_from(["flip", "flip", "cut", "put", "drop"]))
        if how == "flip" and content:
            content = content[:place] + bytes([content[place] ^ 1 << draw(st.integers(0, 7))]) + content[place + 1 :]
        elif how == "cut":
            content = content[:place]
        else:
            some = draw(st.binary(max_size=8))
            content = content[:place] + (some if how == "put" else b"") + content[place + len(some) :]
    return content


def loads(path: Path) -> str:
    """What a folder or file ends in: "read", and all of it can be told, or "refused"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = cp.load(path)
        except cp.CurvprobeError:
            return "refused"
        str(found)
        found.table() if isinstance(found, cp.Analysis) else None
        return "read"


@dataclass(frozen=True, eq=False)
class Kept:
    """A stage of every kind of value."""

    values: torch.Tensor
    missing: torch.Tensor | None
    words: tuple[str, ...]
    number: float


def stage() -> Stage[Kept]:
    """The same one every time."""
    values = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    return Stage("kept", ["key", 1], Kept, lambda: Kept(values, None, ("a", MARKUP), 0.1))


def goes_on(folder: Path) -> str:
    """What a stage ends in that lies there: "found" as it was, or "computed" again, with one warning at most."""
    store = Store(folder)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = store.result(stage())
    expected = stage().compute()
    assert torch.equal(found.values, expected.values)
    assert (found.missing, found.words, found.number) == (None, expected.words, expected.number)
    assert len(told) <= 1, [str(one.message) for one in told]
    return "found" if store.finished["kept"].found else "computed"


def basis() -> KrylovBasis:
    """Of a small matrix, empty."""
    diagonal = torch.arange(1.0, 13.0, dtype=torch.float64)
    return KrylovBasis(lambda block: diagonal[:, None] * block, Space(12), 8, 0, torch.float64, torch.device("cpu"))


def unfinished(path: Path) -> bytes:
    """The solver's state after some steps."""
    grown = basis()
    for _ in range(4):
        grown.expand()
    cp.Checkpoint(path, "key").save(grown)
    return path.read_bytes()


def continues(path: Path) -> str:
    """What the solver's state ends in: "continued" as it was, or "anew"."""
    found, expected = basis(), basis()
    for _ in range(4):
        expected.expand()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not cp.Checkpoint(path, "key").load(found):
            assert found.count == 0
            return "anew"
    assert torch.equal(found.rows[: found.count], expected.rows[: expected.count])
    assert found.num_matvecs == expected.num_matvecs
    return "continued"
