"""A fast way is used where it has been seen to agree with the slow one; the two are compared once."""

import math

import pytest
import torch
from torch import Tensor

from curvprobe.risk.fast_paths import FastPaths, difference

SLOW = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64)  # of length 5


def off_by(size: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return SLOW.to(dtype) + torch.tensor([0.0, 0.0, size], dtype=dtype), SLOW.to(dtype)


def test_a_fast_way_that_agrees_is_used_and_compared_once():
    paths, calls = FastPaths(), []

    def compare():
        calls.append(1)
        return SLOW.clone(), SLOW

    assert [paths.hold("fast", compare) for _ in range(3)] == [True, True, True]
    assert calls == [1]
    assert paths.verdicts == {"fast": True}


WRONG = {
    "disagrees": lambda: off_by(1e-3),
    "is nan": lambda: (SLOW * math.nan, SLOW),
    "is infinite at one place": lambda: (torch.tensor([3.0, -4.0, math.inf], dtype=torch.float64), SLOW),
    "is finite where the slow way is not": lambda: (SLOW, torch.tensor([3.0, -4.0, math.nan], dtype=torch.float64)),
    "raises": lambda: 1 / 0,
    "is not implemented": lambda: torch.vmap(lambda x: x if x.sum() > 0 else -x)(SLOW),
    "gives another shape": lambda: (SLOW[:2], SLOW),
}


@pytest.mark.parametrize("compare", WRONG.values(), ids=WRONG)
def test_a_fast_way_that_is_wrong_is_never_used_nor_tried_again(compare):
    paths, calls = FastPaths(), []

    def counted():
        calls.append(1)
        return compare()

    assert [paths.hold("fast", counted) for _ in range(3)] == [False, False, False]
    assert calls == [1]


def test_both_ways_may_be_infinite_at_the_same_places():
    """What is not finite at the solution is refused elsewhere, with the example's name."""
    both = torch.tensor([1.0, math.inf, math.nan])
    assert FastPaths().hold("fast", lambda: (both.clone(), both))


@pytest.mark.parametrize(
    ("dtype", "tolerance", "rounding"),
    [(torch.float64, None, 1e-8), (torch.float32, None, 1e-3), (torch.float64, 1e-5, 1e-5)],
)
def test_a_difference_within_rounding_is_none(dtype, tolerance, rounding):
    """Relative to the length of the whole, so that a small entry may be off by more than itself."""
    assert FastPaths().hold("fast", lambda: off_by(4.9 * rounding, dtype), tolerance=tolerance)
    assert not FastPaths().hold("fast", lambda: off_by(5.1 * rounding, dtype), tolerance=tolerance)


def test_nothing_is_close_to_zero_but_zero():
    zero = torch.zeros(3, dtype=torch.float64)
    assert FastPaths().hold("fast", lambda: (zero.clone(), zero))
    assert not FastPaths().hold("fast", lambda: (zero + 1e-12, zero))


def test_fast_ways_are_told_apart_by_their_names():
    paths = FastPaths()
    assert paths.hold("one", lambda: (SLOW, SLOW))
    assert not paths.hold("other", WRONG["raises"])
    assert paths.hold("one", WRONG["raises"])


def test_what_is_given_up_is_not_used_again():
    paths = FastPaths()
    assert paths.hold("fast", lambda: (SLOW, SLOW))
    paths.give_up("fast")
    assert not paths.hold("fast", lambda: pytest.fail("compared again"))


def test_an_interruption_is_not_taken_for_a_failure():
    def interrupted():
        raise KeyboardInterrupt

    paths = FastPaths()
    with pytest.raises(KeyboardInterrupt):
        paths.hold("fast", interrupted)
    assert paths.verdicts == {}


def failing():
    raise OSError("no compiler\nand more lines")


REASONS = {
    "nothing": (lambda: (SLOW, SLOW), None),
    "an error": (failing, "OSError: no compiler"),
    "a disagreement": (WRONG["disagrees"], "it disagrees with the slow way"),
    "not finite": (WRONG["is nan"], "it is not finite where the slow way is, or the other way round"),
}


@pytest.mark.parametrize(("compare", "reason"), REASONS.values(), ids=REASONS)
def test_what_speaks_against_a_fast_way_is_said_in_one_line(compare, reason):
    assert difference(compare) == reason
