"""Hashes of content: equal for equal content, whatever holds it, and different for different content."""

import os
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy
import pytest
import torch

from curvprobe.runtime.digest import digest, overlap, row_digests

X = torch.arange(15, dtype=torch.float64).view(5, 3)
TWO = torch.tensor([1.0, 2.0])
EQUAL = {
    "a copy": (TWO, TWO.clone()),
    "a view": (X[:, 1], X[:, 1].contiguous()),
    "with gradient": (TWO, TWO.clone().requires_grad_()),
    "an array": (TWO, TWO.numpy()),
    "list and tuple": ([TWO, 1], (TWO, 1)),
    "order of keys": ({"a": 1, "b": TWO}, {"b": TWO, "a": 1}),
    "half precision": (TWO.bfloat16(), TWO.bfloat16()),
    "strings": ({"text": "ab"}, {"text": "".join(["a", "b"])}),
}
DIFFERENT = {
    "content": (TWO, torch.tensor([1.0, 2.0 + 1e-6])),
    "dtype": (TWO, TWO.double()),
    "same bytes": (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
    "shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "nesting": ((TWO, (1, 2)), (TWO, 1, 2)),
    "order": ((TWO, TWO + 1), (TWO + 1, TWO)),
    "key": ({"a": TWO}, {"b": TWO}),
    "values of keys": ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
    "string": ("ab", "ba"),
    "number": (1, 2),
}


@pytest.mark.parametrize(("first", "second"), EQUAL.values(), ids=EQUAL)
def test_equal_content_has_an_equal_digest(first, second):
    assert digest(first) == digest(second)


@pytest.mark.parametrize(("first", "second"), DIFFERENT.values(), ids=DIFFERENT)
def test_different_content_has_a_different_digest(first, second):
    assert digest(first) != digest(second)


@dataclass
class Graph:
    nodes: torch.Tensor
    label: int


@pytest.mark.parametrize("item", [numpy.str_("a.png"), ("name", numpy.str_("a.png"))], ids=["string", "nested"])
def test_numpy_strings_have_a_digest(item):
    assert digest(item) == digest(item)


def test_objects_that_hold_equal_tensors_have_an_equal_digest():
    kept = [Graph(TWO.clone(), 1) for _ in range(8)]  # alive together: no two share their memory
    assert len({digest(graph) for graph in kept}) == 1
    assert digest(Graph(TWO + 1, 1)) != digest(kept[0])


def test_a_single_number_may_have_any_stride():
    one = torch.tensor([1.5])
    odd = torch.arange(16.0).as_strided((1, 1), (1, 8)).fill_(1.5)
    assert odd.is_contiguous()
    assert odd.reshape(-1).stride() != (1,)
    assert digest(odd) == digest(one.reshape(1, 1))


ALIKE = {
    "floats": (TWO, TWO.double()),
    "half precision": (TWO, TWO.half()),
    "integers": (torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.uint8)),
    "a number and its tensor": (3, torch.tensor(3)),
    "a float and its tensor": (0.1, torch.tensor(0.1, dtype=torch.float64)),
    "flags": (True, torch.tensor(1)),
    "an array": (TWO.numpy(), TWO.double()),
}


@pytest.mark.parametrize(("first", "second"), ALIKE.values(), ids=ALIKE)
def test_the_type_of_a_number_counts_only_where_that_is_asked_for(first, second):
    assert overlap([digest(first, exact=False)], [digest(second, exact=False)]) == [0]
    assert overlap([digest(second, exact=False)], [digest(first, exact=False)]) == [0]
    assert digest(first) != digest(second)


def test_content_counts_whether_types_do_or_not():
    assert digest(TWO, exact=False) != digest(TWO + 1, exact=False)
    assert digest(TWO, exact=False) != digest(TWO.long(), exact=False)
    assert digest(2**63, exact=False) != digest(2**63 + 1, exact=False)  # beyond what a tensor holds


def test_digests_that_were_saved_before_are_found_again():
    item = {"x": TWO.double(), "y": [3, 0.1, True], "name": "a"}
    assert digest(item) == "c659733b0781ccaad441e07183cdc7c4"
    assert overlap(["0e85297a19bb7654708d969d28762644"], [digest(item, exact=False)]) == [0]


# ---- numbers in float64 --------------------------------------------------------------------------------------------

NOW = 1.7e9  # seconds since 1970: float32 knows them to 128
CLOSE = {
    "tensors": (torch.tensor([NOW], dtype=torch.float64), torch.tensor([NOW + 1], dtype=torch.float64)),
    "numbers": (NOW, NOW + 1),
    "arrays": (numpy.array([NOW]), numpy.array([NOW + 1])),
    "numbers of NumPy": (numpy.float64(NOW), numpy.float64(NOW + 1)),
    "members of a set": ({NOW}, {NOW + 1}),
    "the last of many": ([0.0] * 50 + [NOW], [0.0] * 50 + [NOW + 1]),
}


@pytest.mark.parametrize(("first", "second"), CLOSE.values(), ids=CLOSE)
@pytest.mark.parametrize("held", [lambda x: x, lambda x: (TWO, {"t": x}), lambda x: Graph(x, 1)])
def test_float64_numbers_are_told_apart_as_float64(first, second, held):
    first, second = digest(held(first), exact=False), digest(held(second), exact=False)
    assert first != second
    assert overlap([first, first], [second]) == []
    assert overlap([second, first], [first]) == [0]


def test_where_other_numbers_are_in_float64_the_coarse_parts_decide():
    wide, narrow = TWO.double() + 1e-9, TWO + 1e-9
    rows = [digest(item, exact=False) for item in [(wide, narrow), (narrow, wide), (narrow, narrow), (wide, wide)]]
    assert all(overlap([first], [second]) == [0] for first in rows for second in rows)
    assert overlap(rows, [digest((wide, narrow + 1), exact=False)]) == []


def test_many_time_stamps_are_compared_fast():
    stamps = row_digests(NOW + torch.arange(20000, dtype=torch.float64), 20000)
    start = time.perf_counter()
    assert overlap(stamps[::2], stamps[1::2]) == []
    assert overlap(stamps, stamps[7:8]) == [0]
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("kinds", [("float64", "float32"), ("float32", "float64"), ("float64", "int64", "float64")])
def test_rows_are_hashed_to_what_they_are_hashed_to_alone(kinds):
    data = tuple((NOW + torch.arange(12.0).view(4, 3) / 7).to(getattr(torch, kind)) for kind in kinds)
    assert row_digests(data, 4) == [digest(tuple(t[i] for t in data), exact=False) for i in range(4)]


# ---- objects -------------------------------------------------------------------------------------------------------


class Slotted:
    __slots__ = ("__hidden", "__weakref__", "absent")

    def __init__(self, x):
        self.__hidden = x


class Stored:
    """Knows the graph that it is part of, weakly."""

    def __init__(self, parent, x):
        self.parent, self.values = weakref.ref(parent), MappingProxyType({"x": x})


class Linked:
    def __init__(self, x):
        self.kind, self.fields = type(self), vars(type(self))
        self.lock, self.made_by, self.lines = threading.Lock(), digest, (line for line in "ab")
        self.store, self.owner = Stored(self, x), weakref.proxy(self)


class Named(dict):
    pass


class Listed(list):
    __slots__ = ("x",)


class View(Mapping):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return 1

    def __iter__(self):
        return iter("x")

    def __getitem__(self, key):
        return {"x": self.x}[key]


class Pickled:
    """Says itself what it consists of; the rest changes when it is looked at."""

    def __init__(self, x):
        self.x, self.looked_at = x, 0

    def __getstate__(self):
        self.looked_at += 1
        return [self.x]


class Unpicklable(Linked):
    def __reduce_ex__(self, protocol):
        raise TypeError("this cannot be pickled")


def with_attribute(item, x):
    item.x = x
    return item


Point = namedtuple("Point", ["x"])
HOLDERS = {
    "attributes": lambda x: Graph(x, 1),
    "slots": Slotted,
    "a graph": Linked,
    "what cannot be pickled": Unpicklable,
    "its own way": Pickled,
    "a named tuple": Point,
    "a view of a mapping": lambda x: MappingProxyType({"x": x}),
    "a mapping of its own": View,
    "a dict's attribute": lambda x: with_attribute(Named(a=1), x),
    "a list's slot": lambda x: with_attribute(Listed([1]), x),
    "an ordered dict": lambda x: OrderedDict(x=x),
    "a queue": lambda x: deque([x]),
    "arguments": lambda x: partial(print, x),
    "keys of any kind": lambda x: {Graph: x, (1, "a"): 2, Slotted(TWO): 3},
    "a set of objects": lambda x: {Slotted(x), Slotted(x + 1)},
    "objects in an array": lambda x: numpy.array([Graph(x, 1), None], dtype=object),
    "a read-only array": lambda x: numpy.broadcast_to(x.numpy(), (3, 2)),
    "a reversed array": lambda x: x.numpy()[::-1],
    "another byte order": lambda x: x.numpy().astype(">f4"),
    "a long double": lambda x: x.numpy().astype(numpy.longdouble),
    "a sparse matrix": lambda x: torch.diag(x).to_sparse(),
    "compressed rows": lambda x: torch.diag(x).to_sparse_csr(),
    "compressed columns": lambda x: torch.diag(x).to_sparse_csc(),
    "a key that has keys": lambda x: {Slotted({Slotted(TWO): x}): 1},
    "deep inside": lambda x: [[[[[[[[[[x]]]]]]]]]],
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("make", HOLDERS.values(), ids=HOLDERS)
def test_tensors_are_found_wherever_an_object_holds_them(make, exact):
    kept = [make(TWO.clone()) for _ in range(3)]  # alive together: no two share their memory
    assert len({digest(item, exact=exact) for item in [*kept, *kept]}) == 1
    assert digest(make(TWO + 1), exact=exact) != digest(kept[0], exact=exact)
    assert digest(make(TWO.flip(0)), exact=exact) != digest(kept[0], exact=exact)


@pytest.mark.parametrize(
    ("first", "second"), [(Graph, Slotted), (digest, overlap), (os, sys)], ids=["classes", "functions", "modules"]
)
def test_what_has_no_content_counts_by_its_name(first, second):
    assert digest([first]) == digest([first]) != digest([second])
    assert digest(threading.Lock()) == digest(threading.Lock()) != digest(threading.Event())


def test_what_is_gone_has_a_name_too():
    lost = weakref.proxy(Slotted(TWO))  # nothing else holds it
    assert digest([lost]) == digest([lost]) != digest([None])


def test_an_object_that_says_what_it_consists_of_is_believed():
    first, second = Pickled(TWO), Pickled(TWO.clone())
    second.looked_at = 7
    assert digest(first) == digest(second)


def test_views_of_complex_numbers_are_hashed_by_their_values():
    pair = torch.complex(TWO, TWO + 1)
    assert digest(pair.conj()) == digest(torch.complex(TWO, -1 - TWO)) != digest(pair)
    assert digest(pair.conj().imag) == digest(-1 - TWO)


def test_a_set_has_no_order():
    assert digest({"a", "b", "c"}) == digest({"c", "b", "a"}) != digest({"a", "b", "d"})
    assert digest({frozenset("a")}) != digest({frozenset("b")})


PRINTED = """
import torch
from curvprobe.runtime.digest import digest
from tests.runtime.test_digest import HOLDERS, TWO
print({name: digest(make(TWO), exact=False) for name, make in HOLDERS.items()})
print(digest([{"a", "b", "c"}, frozenset("xyz"), digest, torch.nn.Linear, {"k": lambda: 0}]))
"""


def test_digests_are_the_same_in_every_process():
    texts = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PRINTED],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1]
    assert texts[0].count(": ") == len(HOLDERS)


def chained(last, length=1000):
    item = Graph(TWO, last)
    for row in range(length):
        before = Graph(TWO, row)
        before.after, item.before = item, before
        item = before
    return item


def meshed(last, size=30, as_dicts=False):
    """Each knows all others: paths without end."""
    nodes = [{"row": row} if as_dicts else Graph(TWO, row) for row in range(size)]
    for node in nodes:
        held = node if as_dicts else vars(node)
        held["others"] = [other for other in nodes if other is not node]
    held["row"] = last
    return nodes[0]


@pytest.mark.parametrize("make", [chained, meshed, partial(meshed, as_dicts=True)], ids=["chain", "mesh", "of dicts"])
def test_what_refers_to_itself_is_walked_once(make):
    start = time.perf_counter()
    assert digest(make(7)) == digest(make(7)) != digest(make(8))
    assert time.perf_counter() - start < 10


def test_a_list_that_holds_itself_has_a_digest():
    first, second = [TWO], [TWO + 1]
    first.append(first)
    second.append(second)
    assert digest(first) == digest(first) != digest(second)


def test_an_object_that_holds_itself_has_a_digest():
    graph = Graph(TWO, 1)
    graph.owner = graph
    assert digest(graph) == digest(graph) != digest(Graph(TWO, 1))


def test_overlap_gives_positions_in_the_second():
    assert overlap(["a", "b"], ["c", "b", "d", "a"]) == [1, 3]
    assert overlap(iter("ab"), iter("cc")) == []
