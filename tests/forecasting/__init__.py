"""Tests of the room of forecasts."""

import torch
from torch import nn

import curvprobe as cp
from curvprobe.forecasting.refits import Refits

WIDTH = 20


def sample(k: int = 200, held_out: int = 600):
    """Noisy numbers that a line gives, and others of the same kind."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(k + held_out, WIDTH, generator=draw, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + torch.randn(len(x), 1, generator=draw, dtype=torch.float64)
    return x, y


X, Y = sample()
HELD_OUT = (X[200:], Y[200:])


def least_squares(rows) -> cp.EmpiricalRisk:
    """The risk at the solution on these rows."""
    rows = list(rows)
    model = nn.Linear(WIDTH, 1, bias=False).double()
    model.weight.data = torch.linalg.lstsq(X[rows], Y[rows]).solution.T.contiguous()
    return cp.EmpiricalRisk(model, cp.losses.mse, (X[rows], Y[rows]))


def first(k: int) -> cp.EmpiricalRisk:
    """The same for the first k."""
    return least_squares(range(k))


def refits(size: int, test, own, *, count: int = 1, others=None, moving: float = 0.0, weights=None) -> Refits:
    """Models with these losses of held-out examples (m,), and a constant on their own."""
    test = torch.as_tensor(test, dtype=torch.float64).expand(count, -1)
    alone = torch.zeros(count, 0, dtype=torch.float64)
    others = alone if others is None else torch.as_tensor(others, dtype=torch.float64)
    return Refits(
        held_out=test,
        weights=torch.ones(test.shape[1], dtype=torch.float64) if weights is None else weights,
        own=torch.full((count, size), own, dtype=torch.float64),
        own_weights=torch.ones(count, size, dtype=torch.float64),
        others=others,
        other_weights=torch.ones_like(others),
        moving=torch.full((count,), moving, dtype=torch.float64),
        seconds=torch.zeros(count, dtype=torch.float64),
    )
