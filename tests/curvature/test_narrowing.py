"""The check of second derivatives runs in float64; a model may round to float32 within."""

import pytest
import torch
from torch import nn

import curvprobe as cp
from tests import cases


class Mixed(nn.Module):
    """As a model prepared for mixed precision: autocast within, float32 at the end."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).float()


class SquareOnce(nn.Module):
    def forward(self, x):
        return cases.SquareOnce.apply(x)


def network(activation: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 2)).to(dtype)
    x = torch.randn(40, 6, dtype=dtype)
    return net, (x, (x[:, 0] * x[:, 1] > 0).long())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_rounds_on_its_way_is_checked_as_finely_as_it_computes(dtype):
    net, data = network(nn.Tanh(), dtype)
    mixed, plain = (cp.EmpiricalRisk(model, cp.losses.cross_entropy, data) for model in (Mixed(net), net))
    found, expected = (cp.top_eigenspace(risk, 3, tol=1e-4) for risk in (mixed, plain))
    assert torch.allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-3)
    assert not mixed.probed.doubts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_missing_second_derivative_is_found_there_all_the_same(dtype):
    net, data = network(SquareOnce(), dtype)
    risk = cp.EmpiricalRisk(Mixed(net), cp.losses.cross_entropy, data)
    with pytest.raises(cp.CannotProbeError, match="missing or wrong second derivative"):
        cp.top_eigenspace(risk, 3)
