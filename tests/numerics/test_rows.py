"""Which examples an index, a slice, a list or a mask means, and what means none."""

import numpy
import pytest
import torch

from curvprobe.errors import PositionError
from curvprobe.numerics.rows import resolve_rows

FIVE = {
    "first": (0, [0]),
    "last": (-1, [4]),
    "NumPy's integer": (numpy.int64(3), [3]),
    "slice": (slice(1, 4), [1, 2, 3]),
    "slice beyond the end": (slice(3, 100), [3, 4]),
    "backwards": (slice(None, None, -2), [4, 2, 0]),
    "list": ([3, 0, 3], [3, 0, 3]),
    "tuple": ((1, -5), [1, 0]),
    "range": (range(2, 4), [2, 3]),
    "tensor": (torch.tensor([4, 0]), [4, 0]),
    "small integers": (torch.tensor([2, -1], dtype=torch.int8), [2, 4]),
    "array": (numpy.array([2, 1]), [2, 1]),
    "mask": (torch.tensor([True, False, False, True, False]), [0, 3]),
    "array as mask": (numpy.array([False, False, True, False, False]), [2]),
    "list of flags": ([False, True, False, False, True], [1, 4]),
}


@pytest.mark.parametrize(("selection", "rows"), FIVE.values(), ids=FIVE)
def test_positions_of_five(selection, rows):
    found = resolve_rows(selection, 5)
    assert found == rows
    assert all(type(row) is int for row in found)


REFUSED = {
    "beyond the end": (5, IndexError, "example 5 was asked for; there are 5"),
    "before the beginning": (-6, IndexError, "example -6 was asked for"),
    "one of several": ([0, 7], IndexError, "example 7 was asked for"),
    "nothing": ([], ValueError, "none of the 5 examples"),
    "an empty slice": (slice(2, 2), ValueError, "none of the 5 examples"),
    "an empty mask": (torch.zeros(5, dtype=torch.bool), ValueError, "none of the 5 examples"),
    "a short mask": (torch.ones(4, dtype=torch.bool), ValueError, "4 entries for 5 examples"),
    "a number with a fraction": (1.5, TypeError, "by float; expected an index"),
    "numbers with fractions": (torch.tensor([1.0]), TypeError, r"by torch\.float32 values"),
    "text": ("1", TypeError, "by str; expected an index"),
    "a flag": (True, TypeError, "by bool; expected an index"),
    "None": (None, TypeError, "by NoneType; expected an index"),
}


@pytest.mark.parametrize(("selection", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_selections_that_make_no_sense(selection, error, message):
    with pytest.raises(error, match=message) as refused:
        resolve_rows(selection, 5)
    assert isinstance(refused.value, ValueError)
    assert isinstance(refused.value, PositionError) == (error is IndexError)
