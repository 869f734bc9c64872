"""What the check of second derivatives takes: passes, examples, memory."""

import pytest
import torch
from torch import nn

import curvprobe as cp
from curvprobe.curvature.second_derivatives import SHRUNK, STEPS, check_second_derivatives
from tests.cases import block_of
from tests.curvature.test_second_derivatives import blank_first


class _Counted(nn.Sequential):
    passes, rows = 0, 0

    def forward(self, x):
        self.__class__.passes += 1
        self.__class__.rows += len(x)
        return super().forward(x)


def counted(n: int, function: nn.Module, kind: str, side: int = 3, dtype=torch.float64, **options) -> tuple[int, int]:
    """Forward passes of the check, and examples in them."""
    torch.manual_seed(0)
    model = _Counted(nn.Linear(side, 4), function, nn.Linear(4, 2)).to(dtype)
    x = block_of(n, 3) if side == 3 else torch.zeros(n, side).index_fill(1, torch.arange(3), 1.0)
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x.to(dtype), torch.arange(n) % 2), **options)
    risk.check_dependence()
    _Counted.passes = _Counted.rows = 0
    check_second_derivatives(risk, kind)
    counts = (_Counted.passes, _Counted.rows)
    check_second_derivatives(risk, kind)
    assert (_Counted.passes, _Counted.rows) == counts  # once
    return counts


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_smooth_model_takes_three_passes_over_few_examples(kind):
    """Of a product and two first derivatives; the solve of an eigenspace takes tens of passes over all of them."""
    assert counted(1000, nn.Tanh(), kind) == (3, 3 * 32)
    assert counted(5, nn.Tanh(), kind) == (3, 3 * 5)
    for size, dtype, groups in ((1, torch.float64, 32), (8, torch.float64, 4), (2, torch.float32, 16)):
        assert counted(1000, nn.Tanh(), kind, microbatch_size=size, dtype=dtype) == (3 * groups, 3 * 32)
    as_much_memory = counted(1000, nn.Tanh(), kind, microbatch_size=8, dtype=torch.float32)  # as 4 take in float64
    assert as_much_memory == (3 * 8, 3 * 32)


def test_large_examples_are_checked_in_proportion_to_the_sample():
    """Whose activations are more than a mebibyte."""
    assert counted(40, nn.Tanh(), "hessian", side=200_000) == (3, 3 * 2)
    assert counted(64, nn.Tanh(), "hessian", side=200_000) == (3, 3 * 4)
    assert counted(3, nn.Tanh(), "hessian", side=200_000) == (3, 3 * 2)


def test_steps_that_do_not_settle_end():
    x, y = blank_first()[1]
    risk = cp.EmpiricalRisk(blank_first()[0], cp.losses.cross_entropy, (x[:1], y[:1]))
    risk.check_dependence()
    passes: list[int] = []
    risk.probed.module.register_forward_hook(lambda *_: passes.append(1))
    check_second_derivatives(risk, "hessian")
    assert len(passes) == 1 + 2 * len(STEPS[torch.float64]) + len(SHRUNK) + 1  # and whether it rounds to float32
