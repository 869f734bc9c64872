"""Hashes of content: equal for equal content, whatever holds it, and different for different content."""

from dataclasses import dataclass

import numpy
import pytest
import torch

from curvprobe.runtime.digest import digest, overlap

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
    assert digest(first, exact=False) == digest(second, exact=False)
    assert digest(first) != digest(second)


def test_content_counts_whether_types_do_or_not():
    assert digest(TWO, exact=False) != digest(TWO + 1, exact=False)
    assert digest(TWO, exact=False) != digest(TWO.long(), exact=False)
    assert digest(2**63, exact=False) != digest(2**63 + 1, exact=False)  # beyond what a tensor holds


def test_an_object_that_holds_itself_has_a_digest():
    graph = Graph(TWO, 1)
    graph.owner = graph
    assert digest(graph) == digest(graph) != digest(Graph(TWO, 1))


def test_overlap_gives_positions_in_the_second():
    assert overlap(["a", "b"], ["c", "b", "d", "a"]) == [1, 3]
    assert overlap(iter("ab"), iter("cc")) == []
