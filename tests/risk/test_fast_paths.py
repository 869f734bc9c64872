"""A fast way is used where it has been seen to agree with the slow one, once for every kind of examples."""

import math

import pytest
import torch
from torch import Tensor

from curvprobe.risk.fast_paths import FastPaths, difference

SLOW = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64)
KIND, OTHER = (torch.float64, ((1, 4),)), (torch.float64, ((1, 6),))


def off_by(size: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return SLOW.to(dtype) + torch.tensor([0.0, 0.0, size], dtype=dtype), SLOW.to(dtype)


def test_a_fast_way_that_agrees_is_used_and_compared_once():
    paths, calls = FastPaths(), []

    def compare():
        calls.append(1)
        return SLOW.clone(), SLOW

    assert [paths.hold("fast", KIND, compare) for _ in range(3)] == [True, True, True]
    assert calls == [1]
    assert paths.verdicts == {"fast": True}


def test_another_kind_of_examples_is_compared_anew_and_once():
    paths, calls = FastPaths(), []

    def compare():
        calls.append(1)
        return SLOW.clone(), SLOW

    kinds = [KIND, OTHER, KIND, OTHER, (torch.float32, KIND[1])]
    assert all(paths.hold("fast", kind, compare) for kind in kinds)
    assert len(calls) == 3
    assert paths.compared == {("fast", kind) for kind in kinds}


def test_a_fast_way_that_is_right_for_one_shape_and_wrong_for_another_is_given_up_at_the_other():
    paths, calls = FastPaths(), []

    def compare():
        calls.append(1)
        return WRONG["disagrees"]()

    assert paths.hold("fast", KIND, lambda: (SLOW, SLOW))
    assert not paths.hold("fast", OTHER, compare)
    for kind in (KIND, OTHER, (torch.float32, KIND[1])):  # a no is for good
        assert not paths.hold("fast", kind, compare)
    assert calls == [1]
    assert paths.verdicts == {"fast": False}


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

    assert [paths.hold("fast", KIND, counted) for _ in range(3)] == [False, False, False]
    assert calls == [1]


def test_both_ways_may_be_infinite_at_the_same_places():
    """What is not finite at the solution is refused elsewhere, with the example's name."""
    both = torch.tensor([1.0, math.inf, math.nan])
    assert FastPaths().hold("fast", KIND, lambda: (both.clone(), both))


@pytest.mark.parametrize(
    ("dtype", "options", "allowed"),
    [
        (torch.float64, {}, 4e-8),  # by the largest number, 4
        (torch.float32, {}, 4e-3),
        (torch.float64, {"rtol": 1e-5}, 4e-5),
        (torch.float64, {"atol": 1e-5}, 1e-5),
        (torch.float64, {"rtol": 1e-2, "atol": 1e-5}, 1e-5),
    ],
)
def test_a_difference_within_rounding_is_none(dtype, options, allowed):
    """By the largest number unless said otherwise, so that a small entry may be off by more than itself."""
    assert FastPaths().hold("fast", KIND, lambda: off_by(0.98 * allowed, dtype), **options)
    assert not FastPaths().hold("fast", KIND, lambda: off_by(1.02 * allowed, dtype), **options)


def test_every_number_is_looked_at_by_itself():
    """A large one hides nothing: one that is off by its own size is a difference."""
    fast, slow = torch.tensor([1e4, 2.0]), torch.tensor([1e4, 1.0])
    assert difference(lambda: (fast, slow), atol=1e-3) == "it disagrees with the slow way"
    assert difference(lambda: (fast, slow)) is None  # within 1e-3 of the largest
    assert difference(lambda: (fast * 1.0005, slow * torch.tensor([1.0, 2.0])), atol=1e-3) is None  # each by its own
    assert not FastPaths().hold("fast", KIND, lambda: (fast, slow), atol=1e-3)


def test_what_is_infinite_is_no_measure_of_the_rest():
    fast, slow = (torch.tensor([math.inf, x], dtype=torch.float64) for x in (2.0, 1.0))
    assert difference(lambda: (fast, slow)) == "it disagrees with the slow way"


def test_nothing_is_close_to_zero_but_zero():
    zero = torch.zeros(3, dtype=torch.float64)
    assert FastPaths().hold("fast", KIND, lambda: (zero.clone(), zero))
    assert not FastPaths().hold("fast", KIND, lambda: (zero + 1e-12, zero))


def test_fast_ways_are_told_apart_by_their_names():
    paths = FastPaths()
    assert paths.hold("one", KIND, lambda: (SLOW, SLOW))
    assert not paths.hold("other", KIND, WRONG["raises"])
    assert paths.hold("one", KIND, WRONG["raises"])


def test_what_is_given_up_is_not_used_again():
    paths = FastPaths()
    assert paths.hold("fast", KIND, lambda: (SLOW, SLOW))
    paths.give_up("fast")
    for kind in (KIND, OTHER):
        assert not paths.hold("fast", kind, lambda: pytest.fail("compared again"))


def test_an_interruption_is_not_taken_for_a_failure():
    def interrupted():
        raise KeyboardInterrupt

    paths = FastPaths()
    with pytest.raises(KeyboardInterrupt):
        paths.hold("fast", KIND, interrupted)
    assert paths.verdicts == {}
    assert not paths.hold("fast", KIND, WRONG["disagrees"])  # nor for a comparison


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
