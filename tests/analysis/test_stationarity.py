"""How far the solution is from a minimiser, on functions whose minima are known."""

import pytest
import torch
from torch import nn

import curvprobe as cp


class Point(nn.Module):
    """A point (u, v) whose loss is a function of it alone; every example sees the same."""

    def __init__(self, *at: float) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.at.expand(len(x), -1)


def at(function, *point: float) -> cp.Stationarity:
    model = Point(*point)
    data = (torch.ones(4, 1, dtype=torch.float64),)
    risk = cp.EmpiricalRisk(model, lambda out, batch: function(*out.T), data)
    space = cp.top_eigenspace(risk, dim=1)
    return cp.stationarity(risk, space, cp.project(risk, space))


def bowl(u, v):
    return 50 * u**2 + 0.5 * v**2 + 1


def test_conjugate_gradients_find_the_minimum_of_a_bowl():
    """A gradient step hardly moves along the flat direction, in which most of the loss is."""
    found = at(bowl, 0.01, 2.0)
    assert found.step_decrease < 0.05
    assert found.descent == pytest.approx(50 * 0.01**2 + 0.5 * 4, rel=1e-6)  # all of it
    assert found.falls == found.descent
    assert 1.0 <= found.least_curvature <= 100.0
    assert "a few conjugate gradient steps took 2.00e+00 off the loss" in str(found)


def test_at_a_minimum_nothing_is_left():
    found = at(bowl, 0.0, 0.0)
    assert (found.descent, found.step_decrease, found.falls) == (0.0, 0.0, 0.0)
    assert 1.0 <= found.least_curvature <= 100.0


def test_a_saddle_without_a_gradient_is_seen():
    """Nothing leads away from it but its curvature, which no leading eigenvalue shows."""
    found = at(lambda u, v: 50 * u**2 - 0.5 * v**2 + v**4 + 1, 0.0, 0.0)
    assert (found.gradient_norm, found.step_decrease) == (0.0, 0.0)
    assert found.least_curvature == pytest.approx(-1.0, rel=0.2)
    assert 0 < found.descent <= 1 / 16 + 1e-12
    assert "met a curvature of -" in str(found)


def test_a_zero_network_is_a_saddle_and_no_minimum():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False)).double()
    for p in model.parameters():
        nn.init.zeros_(p)
    x = torch.randn(400, 3, dtype=torch.float64)
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[:100], x[:100, :1]))
    found = cp.analyze(risk, (x[100:], x[100:, :1]), dim=3, sigma=0.01, stages="quick")
    assert bool((found.spectrum.eigenvalues > 0).all())
    assert found.gradient_norm == 0
    assert found.answer.trust[0].word == "doubt"
    assert "a saddle" in str(found.answer)


def test_a_flat_direction_is_no_saddle():
    """In float32, where its curvature is rounding."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(64, 4)
    x[:, 3] = x[:, 2]  # along their difference nothing changes
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, x.sum(1, keepdim=True)))
    space = cp.top_eigenspace(risk, dim=2)
    assert cp.stationarity(risk, space, cp.project(risk, space)).least_curvature >= 0


def test_a_saddle_is_left_along_the_direction_that_bends_down():
    """u^2 - v^2 + v^4 near its saddle: the gradient is small, and a quarter is there to be taken off."""
    found = at(lambda u, v: u**2 - v**2 + v**4 + 1, 0.001, 0.001)
    assert found.least_curvature < 0
    assert found.step_decrease < 1e-5
    assert found.descent > 10 * found.step_decrease
    assert "met a curvature of -" in str(found)


def test_a_loss_that_only_rises_or_breaks_off_falls_by_nothing():
    found = at(lambda u, v: (u + 1e-9).log() * 0 + u**2 + v**2, 0.5, 0.0)  # not a number where u is negative
    assert found.descent == pytest.approx(0.25, rel=0.2)


def test_rounding_is_no_fall():
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    model = nn.Linear(3, 1)
    with torch.no_grad():
        solved = torch.linalg.lstsq(torch.cat([x, torch.ones(64, 1)], dim=1), x.sin().sum(1, keepdim=True)).solution
        model.weight.copy_(solved[:3].T)
        model.bias.copy_(solved[3])
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, x.sin().sum(1, keepdim=True)))
    space = cp.top_eigenspace(risk, dim=2)
    assert cp.stationarity(risk, space, cp.project(risk, space)).descent == 0.0


def test_products_are_those_it_says(monkeypatch):
    product, calls = cp.CurvatureMatrix.__matmul__, []
    model = Point(1.0, 1.0)
    data = (torch.ones(4, 1, dtype=torch.float64),)
    risk = cp.EmpiricalRisk(model, lambda out, batch: bowl(*out.T), data)
    space = cp.top_eigenspace(risk, dim=1)
    sample = cp.project(risk, space)
    monkeypatch.setattr(cp.CurvatureMatrix, "__matmul__", lambda H, v: calls.append(1) or product(H, v))
    cp.stationarity(risk, space, sample)
    assert 2 <= len(calls) <= 5
