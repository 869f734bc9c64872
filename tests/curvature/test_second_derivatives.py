"""Second derivatives that do not exist, or are wrong, are refused; those that are right are not."""

import pytest
import torch
from torch import nn

import curvprobe as cp
from tests import cases
from tests.cases import EXACT, block_of


class _Squared(nn.Linear):
    def forward(self, x):
        return cases.SquareOnce.apply(super().forward(x))


def test_an_operation_without_a_second_derivative_is_refused():
    """Not passed over: ``autograd.grad`` does not visit the node that would raise, and gives zero."""
    risk = cp.EmpiricalRisk(_Squared(2, 1).double(), cp.losses.mse, (block_of(3, 2), block_of(3, 1)))
    with pytest.raises(ValueError, match="missing or wrong second derivative"):
        _ = cp.hessian(risk) @ block_of(3, 1)


def test_an_operation_without_a_second_derivative_is_refused_by_the_ggn():
    risk = cp.EmpiricalRisk(_Squared(2, 1).double(), cp.losses.mse, (block_of(3, 2), block_of(3, 1)))
    with pytest.raises(ValueError, match="missing or wrong second derivative"):
        _ = cp.ggn(risk) @ block_of(3, 1)


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_a_first_example_that_does_not_touch_the_parameters(matrix):
    """Second derivatives are checked on the first example: there they are zero, and right."""
    x, y = cases.make("mlp").data
    order = (x[:, 0] > 0).to(torch.int8).argsort()
    torch.manual_seed(0)
    risk = cp.EmpiricalRisk(cases.Gate().double(), cp.losses.cross_entropy, (x[order], y[order]), params=["first.*"])
    product = matrix(risk) @ block_of(12, 1)
    assert torch.allclose(product, matrix(risk[::-1]) @ block_of(12, 1), **EXACT)
    assert float(product.norm()) > 0


def test_a_float32_constant_in_the_loss_does_not_stop_the_check():
    """Class weights: the float64 evaluation fails, and the check goes on in the model's own precision."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    weight = torch.tensor([1.0, 3.0])
    data = (block_of(5, 3).float(), torch.tensor([0, 1, 1, 0, 1]))

    def loss(outputs, batch):
        return nn.functional.cross_entropy(outputs, batch[1], weight=weight, reduction="none")

    risk = cp.EmpiricalRisk(model, loss, data)
    vector = block_of(risk.num_params, 1)[:, 0]
    product = cp.hessian(risk) @ vector
    model.double()
    weight = weight.double()
    exact = cp.hessian(cp.EmpiricalRisk(model, loss, data)) @ vector
    assert torch.allclose(product.double(), exact, rtol=1e-4, atol=1e-6)
