"""The loss over a plane against the loss evaluated point by point, and its model against dense derivatives."""

import math

import pytest
import torch
from torch import nn

import curvprobe as cp
from tests import cases, reference
from tests.subspace.projected import orthonormal


def test_the_loss_is_that_of_every_point():
    case = cases.make("mlp")
    risk = case.risk()
    directions = torch.stack([2.0 * orthonormal(31, 3)[:, 0], orthonormal(31, 3)[:, 2]], dim=1)
    found = cp.plane(risk, directions, reach=(-0.4, 0.8), points=5, names=("one", "other"))
    assert found.x.tolist() == pytest.approx([-0.4, -0.1, 0.2, 0.5, 0.8])
    assert torch.equal(found.x, found.y)
    assert found.lengths == pytest.approx((2.0, 1.0))
    assert found.at_solution == pytest.approx(risk.value())
    value = reference.risk_value(case.model, case.loss, case.batches())
    params = reference.trainable(case.model)
    g, H = reference.gradient(value, params).detach(), reference.dense_hessian(value, params)
    for i, b in enumerate(found.y.tolist()):
        for j, a in enumerate(found.x.tolist()):
            d = a * directions[:, 0] + b * directions[:, 1]
            assert float(found.loss[i, j]) == pytest.approx(risk.value(d), rel=1e-10)
            assert float(found.model[i, j]) == pytest.approx(risk.value() + float(g @ d + d @ H @ d / 2), rel=1e-9)
    assert torch.equal(found.departure, found.loss - found.model)


def test_two_axes_of_a_subspace_span_it():
    risk = cases.make("mlp").risk()
    space = cp.top_eigenspace(risk, 3, tol=1e-8)
    found = cp.plane(risk, space, axes=(2, 0), reach=0.1, points=3)
    same = cp.plane(risk, space.basis[:, [2, 0]], reach=0.1, points=3)
    assert torch.equal(found.loss, same.loss)
    bend = (found.model[1, 2] + found.model[1, 0] - 2 * found.at_solution) / 0.1**2
    assert float(bend) == pytest.approx(float(space.eigenvalues[2]), rel=1e-4)  # x runs along the third
    assert float(found.loss[1, 1]) == pytest.approx(risk.value(), rel=1e-12)


def test_weights_of_the_examples_count():
    risk = cases.make("weighted").risk()
    space = cp.random_subspace(risk, 2)
    found = cp.plane(risk, space, reach=0.05, points=3)
    displaced = risk.value(0.05 * space.basis[:, 0])
    assert float(found.loss[1, 2]) == pytest.approx(displaced, rel=1e-9)


def test_without_a_reach_the_model_doubles_the_loss_along_the_steepest_direction():
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0]]))
    data = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64), torch.tensor([[1.0], [0.0]]).double()
    risk = cp.EmpiricalRisk(model, cp.losses.mse, data)  # L = (9 (w - 1/3)^2 + v^2) / 2, so 2 at w = 1; H = diag(9, 1)
    found = cp.plane(risk, torch.eye(2, dtype=torch.float64), points=3)
    assert float(found.x[-1]) == pytest.approx(math.sqrt(2 * 2 / 9))
    zero = cp.EmpiricalRisk(model, cp.losses.mse, (torch.zeros(1, 2).double(), torch.zeros(1, 1).double()))
    with pytest.raises(cp.ArgumentError, match="give reach="):
        cp.plane(zero, torch.eye(2, dtype=torch.float64))


def test_the_trusted_radius_is_where_the_model_departs():
    """f(x) = x^2 / 2 + x^4: off by a tenth of the model's rise at x^2 = 0.05."""
    x = torch.arange(-100, 101, dtype=torch.float64) / 100
    square = x[None, :].square() + x[:, None].square()
    found = cp.Plane(x, x, 5 + square / 2 + square.square(), 5 + square / 2, 5.0, (1.0, 1.0))
    assert found.trusted_radius() == pytest.approx(math.sqrt(0.05), abs=0.01)
    assert found.trusted_radius(share=0.4) == pytest.approx(math.sqrt(0.2), abs=0.01)
    right = cp.Plane(x, x, 5 + square / 2, 5 + square / 2, 5.0, (1.0, 1.0))
    assert right.trusted_radius() == pytest.approx(1.0)  # as far as it was looked in every direction
    told = str(found)
    assert "loss 5 at the solution; over 201 x 201 points along first direction and second direction" in told
    assert "least 5 at (0, 0), largest 10" in told
    assert "within 10 % of the change up to 0.224 steps away" in told


def test_no_more_is_trusted_than_was_looked_at():
    side = torch.linspace(-0.25, 1, 126, dtype=torch.float64)
    square = side[None, :].square() + side[:, None].square()
    found = cp.Plane(side, side, 5 + square, 5 + square, 5.0, (1.0, 1.0))
    assert found.trusted_radius() == pytest.approx(0.25, abs=0.01)  # the other way it goes no farther
    beyond = cp.Plane(side + 0.5, side, 5 + square, 5 + square, 5.0, (1.0, 1.0))
    assert math.isnan(beyond.trusted_radius())
    assert "how far the quadratic model holds is not told" in str(beyond)
    still = cp.Plane(side, side, 5 + 1e-7 * square, 5 + 1e-7 * square, 5.0, (1.0, 1.0))
    assert math.isnan(still.trusted_radius())  # rounding of a loss of 5 would hide the change


class Log(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in range(2))

    def forward(self, x):
        return x * (self.a.log() + self.b)


def test_points_at_which_the_loss_is_not_finite_are_kept_and_counted():
    x = torch.ones(2, 1, dtype=torch.float64)
    risk = cp.EmpiricalRisk(Log(), cp.losses.mse, (x, x))
    found = cp.plane(risk, torch.eye(2, dtype=torch.float64), reach=2.0, points=5)
    assert not found.loss[:, 0].isfinite().any()  # a = -1, and at 0 the logarithm is infinite
    assert found.loss[:, 2:].isfinite().all()
    assert "not finite at 10 points" in str(found)
    assert found.trusted_radius() < 1.0
    with pytest.raises(cp.NotFiniteError, match="take a smaller reach="):
        cp.plane(risk, -torch.eye(2, dtype=torch.float64), reach=(1.5, 2.0), points=3)


def test_as_a_table():
    pytest.importorskip("pandas")
    risk = cases.make("mlp").risk()
    found = cp.plane(risk, cp.random_subspace(risk, 2), reach=0.1, points=3)
    frame = found.to_dataframe()
    assert len(frame) == 9
    row = frame.iloc[5]
    assert (row["x"], row["y"]) == (0.1, 0.0)
    assert row["loss"] == float(found.loss[1, 2])
    assert row["model"] == float(found.model[1, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": 2}, "2 points along a side of the plane; expected a whole number, 3 to 501"),
        ({"points": 4.5}, "4.5 points along a side"),
        ({"reach": 0.0}, "reach is 0.0; expected a positive number"),
        ({"reach": (1.0, -1.0)}, "expected a positive number, or two that ascend"),
        ({"reach": math.inf}, "reach is inf"),
        ({"reach": "far"}, "reach is 'far'; expected a number, or two"),
        ({"axes": (0, 0)}, "axes is \\(0, 0\\); expected two different numbers from 0 to 1"),
        ({"axes": (0, 2)}, "axes is \\(0, 2\\)"),
        ({"directions": torch.ones(31, 1)}, "shape \\(31, 1\\); expected two or more of 31 parameters"),
        ({"directions": torch.ones(30, 2)}, "shape \\(30, 2\\)"),
        ({"directions": torch.zeros(31, 2)}, "a direction is zero or not finite"),
        ({"directions": [1, 2]}, "directions is a list"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    risk = cases.make("mlp").risk()
    arguments = {"directions": torch.eye(31)[:, :2], "reach": 0.1, "points": 3} | change
    with pytest.raises((ValueError, TypeError), match=message):
        cp.plane(risk, **arguments)
