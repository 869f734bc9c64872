"""What is asked of a user's training, and what is refused."""

import random

import numpy
import pytest
import torch
from torch import nn

import curvprobe as cp
from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.forecasting.training import Training
from tests.forecasting import HELD_OUT, X, Y, first, least_squares


def test_the_losses_are_those_of_the_risks():
    pieces = [[3, 1, 4, 15, 9, 2, 6] * 5, list(range(40, 75))]
    found = Training(least_squares, HELD_OUT).refits(pieces, 0)
    for place, (rows, others) in enumerate((pieces, pieces[::-1])):
        risk = least_squares(rows)
        assert torch.allclose(found.own[place], risk.losses())
        assert torch.allclose(found.held_out[place], risk.on(HELD_OUT).losses())
        assert torch.allclose(found.others[place], risk.on((X[others], Y[others])).losses())
    assert found.size == 35
    assert len(found) == 2


def test_a_minimiser_does_not_move_and_another_point_does():
    def beside(rows):
        return cp.EmpiricalRisk(nn.Linear(20, 1, bias=False).double(), cp.losses.mse, (X[rows], Y[rows]))

    assert float(Training(least_squares, HELD_OUT).refits([range(100)], 0).moving) < 1e-10
    assert float(Training(beside, HELD_OUT).refits([list(range(100))], 0).moving) > 4


def test_draws_are_seeded_and_put_back():
    drawn = []

    def train(rows):
        drawn.append((float(torch.rand(())), random.random(), float(numpy.random.rand())))  # noqa: NPY002
        return least_squares(rows)

    torch.manual_seed(5)
    expected = float(torch.rand(()))
    torch.manual_seed(5)
    Training(train, HELD_OUT).refits([range(100), range(100, 200)], 7)
    assert float(torch.rand(())) == expected
    Training(train, HELD_OUT).refits([range(100), range(100, 200)], 7)
    assert drawn[:2] == drawn[2:]
    assert drawn[0] != drawn[1]


def test_a_function_of_k_is_asked_for_k():
    assert Training(first).by_size
    assert not Training(least_squares).by_size
    assert not Training(print).by_size
    found = Training(first, HELD_OUT).refits([range(80)], 0)
    assert torch.allclose(found.own[0], first(80).losses())


def test_held_out_examples_may_come_with_the_risk():
    found = Training(lambda rows: (least_squares(rows), HELD_OUT)).refits([range(60)], 0)
    assert found.held_out.shape == (1, 600)


@pytest.mark.parametrize(
    ("train", "held_out", "error", "said"),
    [
        (lambda rows: nn.Linear(1, 1), HELD_OUT, ArgumentTypeError, "train returned a Linear; expected a curvprobe"),
        (lambda rows: first(50), HELD_OUT, ArgumentError, "asked for 100 examples and returned a risk on 50"),
        (least_squares, None, ArgumentError, "held_out is None"),
        (least_squares, (X[90:140], Y[90:140]), ArgumentError, "10 of the 50 held-out examples are among those"),
    ],
)
def test_what_a_training_may_not_do(train, held_out, error, said):
    with pytest.raises(error, match=said):
        Training(train, held_out).refits([list(range(100))], 0)


def test_equal_examples_are_taken_where_they_are_others():
    held_out = (X[90:140], Y[90:140])
    found = Training(least_squares, held_out, allow_overlap=True).refits([list(range(100))], 0)
    assert found.held_out.shape == (1, 50)


def test_another_model_or_other_held_out_examples_are_refused():
    def other_model(rows):
        width = 2 + rows[0] // 50
        model = nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, 1)).double()
        return cp.EmpiricalRisk(model, cp.losses.mse, (X[rows], Y[rows]))

    def other_data(rows):
        return least_squares(rows), (X[200 + rows[0] :], Y[200 + rows[0] :])

    pieces = [list(range(50)), list(range(50, 100))]
    with pytest.raises(ArgumentError, match="the same examples for other rows"):
        Training(lambda rows: least_squares(range(len(rows))), HELD_OUT).refits(pieces, 0)
    with pytest.raises(ArgumentError, match="models of 45 and of 67 parameters"):
        Training(other_model, HELD_OUT).refits(pieces, 0)
    with pytest.raises(ArgumentError, match="other held-out examples"):
        Training(other_data).refits(pieces, 0)


def test_what_a_training_names_tells_it_from_another():
    def made(scale):
        def train(rows):
            return scale, least_squares(rows)

        return train

    assert Training(made(1.0)).content() == Training(made(1.0)).content()
    assert Training(made(1.0)).content() != Training(made(2.0)).content()
    assert Training(least_squares).content() != Training(least_squares, HELD_OUT).content()
    unknown = eval("lambda rows: None")
    assert Training(unknown).content() != Training(unknown).content()
