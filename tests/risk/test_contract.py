"""What a loss may return, and when two passes over a sample agree."""

import numpy
import pytest
import torch

from curvprobe.risk.contract import refuse_change, split_loss, unlike_losses

LOSSES = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
F32, F64 = torch.float32, torch.float64


def test_weights_in_a_list_are_as_exact_as_the_losses():
    assert split_loss((LOSSES, [0.1, 2**30 + 1, 1]), 3)[1].tolist() == [0.1, 2**30 + 1, 1]


@pytest.mark.parametrize(
    "weight",
    [[1, 2, 3], (1.0, 2.0, 3.0), numpy.array([1, 2, 3]), torch.tensor([1, 2, 3])],
    ids=lambda w: type(w).__name__,
)
def test_weights_are_any_numbers(weight):
    loss_sum, found = split_loss((LOSSES, weight), 3)
    assert torch.equal(loss_sum, LOSSES)
    assert torch.equal(found, LOSSES)


def test_losses_alone_weigh_the_same():
    assert torch.equal(split_loss(LOSSES, 3)[1], torch.ones(3, dtype=F64))


REFUSED = {
    "logs": ((LOSSES, {"mae": 1.0}), TypeError, r"a dict, which is no weight; return the losses alone, or \(loss_sum"),
    "nothing": ((LOSSES, None), TypeError, "a NoneType, which is no weight; return the losses alone"),
    "words": ((LOSSES, ["a", "b", "c"]), TypeError, "a list, which is no weight; return the losses alone"),
    "three things": ((LOSSES, LOSSES, {}), TypeError, "returned 3 things; return the losses alone, or"),
    "one thing": ((LOSSES,), TypeError, "returned 1 things; return the losses alone, or"),
    "by name": ({"loss": LOSSES}, TypeError, "returned a dict; return the losses alone, or"),
    "too few weights": ((LOSSES, [1, 2]), ValueError, r"weights have shape \(2,\) for 3 examples"),
    "weights of the model": ((LOSSES, LOSSES.clone().requires_grad_()), ValueError, r"weights.*depend on the model"),
}


@pytest.mark.parametrize(("result", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_other_returns_are_refused_with_the_remedy(result, error, message):
    with pytest.raises(error, match=message):
        split_loss(result, 3)


def test_a_detached_weight_is_a_constant():
    weight = LOSSES.clone().requires_grad_()
    assert torch.equal(split_loss((LOSSES, weight.detach()), 3)[1], LOSSES)


# ---- two passes ----------------------------------------------------------------------------------------------------


def moved(size: float, by: float) -> tuple[torch.Tensor, torch.Tensor]:
    first = size * LOSSES
    return first, first + torch.tensor([0.0, 0.0, by * 3 * size], dtype=F64)


@pytest.mark.parametrize(("dtype", "by"), [(F32, 1e-2), (F64, 1e-6)])
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e12])
def test_a_later_pass_with_other_losses_is_seen(dtype, by, size):
    assert unlike_losses(*moved(size, by), dtype).tolist() == [2]


@pytest.mark.parametrize(("dtype", "by"), [(F32, 1e-4), (F64, 1e-10)])
@pytest.mark.parametrize("size", [0.0, 1e-2, 1.0, 1e12])
def test_rounding_is_no_difference(dtype, by, size):
    assert unlike_losses(*moved(size, by), dtype).tolist() == []


@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_loss_of_zero_may_be_rounded(dtype):
    eps = torch.finfo(dtype).eps
    assert unlike_losses(torch.zeros(2, dtype=F64), torch.tensor([0.0, 2 * eps], dtype=F64), dtype).tolist() == []


def test_small_losses_are_compared_in_double():
    assert unlike_losses(*moved(1e-6, 0.1), F64).tolist() == [2]


def test_losses_that_are_not_finite_are_left_to_others():
    first = torch.tensor([torch.inf, torch.nan], dtype=F64)
    assert unlike_losses(first, first, F64).tolist() == []


def test_a_change_is_refused_with_both_losses():
    with pytest.raises(
        ValueError, match=r"example 12 was 3 in the first pass and is 4.*rest of their batch or are ran"
    ):
        refuse_change(12, 3.0, 4.0)
