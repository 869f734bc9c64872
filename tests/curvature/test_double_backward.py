import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import curvprobe as cp
from curvprobe.curvature.double_backward import double_backward_errors


class Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(checkpoint(self.inner, x, use_reentrant=False))


def test_activation_checkpointing_is_refused_by_name():
    data = (torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]))
    with pytest.raises(cp.CannotProbeError, match=r"runs a part of itself again.*switch activation checkpointing off"):
        cp.EmpiricalRisk(Recomputed(), cp.losses.cross_entropy, data)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("derivative for aten::_ctc_loss_backward is not implemented", "write the CTC recursion"),
        ("derivative for 'aten::_cudnn_rnn_backward' is not implemented", "cudnn.flags"),
        ("torch.compile with aot_autograd does not currently support double backward", "was not compiled"),
        ("torch.utils.checkpoint: Recomputed values have different metadata", "switch activation checkpointing off"),
        ("derivative for 'aten::of_somebody' is not implemented", "replace it by operations that have one"),
    ],
)
def test_the_operation_and_the_remedy_are_named(text, remedy):
    with pytest.raises(cp.CannotProbeError, match=remedy), double_backward_errors():
        raise RuntimeError(text)


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match=r"^out of luck$"), double_backward_errors():
        raise RuntimeError("out of luck")


def test_a_long_message_of_pytorch_is_shortened():
    with (
        pytest.raises(cp.CannotProbeError, match=r"PyTorch said: double backward x*") as raised,
        double_backward_errors(),
    ):
        raise RuntimeError("double backward " + 5000 * "x")
    assert len(str(raised.value)) < 1000
