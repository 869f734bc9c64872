"""Work that goes through several rooms leaves all as it was, also when it is interrupted."""

import pytest
import torch
from torch import nn

import curvprobe as cp
from curvprobe import concentration_curve, deformation_subspace, full_space_parts  # loaded before the job begins
from tests import cases

JOBS = {
    "deformation": lambda risk, new: deformation_subspace(risk, 2),
    "full space": lambda risk, new: full_space_parts(risk, new, sigma=0.1),
    "concentration": lambda risk, new: concentration_curve(risk, new, sigma=0.1, dim=2),
}


class Interrupted:
    """A loss that is interrupted at its ninth call from when it is armed."""

    def __init__(self, loss):
        self.loss, self.left = loss, -1

    def __call__(self, outputs, batch):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.loss(outputs, batch)


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
@pytest.mark.parametrize("interrupted", [False, True])
def test_nothing_is_left_changed(job, interrupted):
    case = cases.make("batch_norm")
    for p in case.model.parameters():
        p.grad = torch.ones_like(p)
    loss = Interrupted(case.loss)
    risk = cp.EmpiricalRisk(case.model, loss, case.data)
    new = risk.on(case.candidates)
    before = cases.state_of(case.model)
    if interrupted:
        loss.left = 9
        with pytest.raises(KeyboardInterrupt):
            job(risk, new)
    else:
        job(risk, new)
    assert cases.state_of(case.model) == before


# ---- batches that are changed in place ----------------------------------------------------------------------------


class Normalising(nn.Module):
    """Brings its input to another scale, in place or not."""

    def __init__(self, in_place: bool, activation) -> None:
        super().__init__()
        self.into, self.out, self.in_place, self.activation = nn.Linear(3, 4), nn.Linear(4, 3), in_place, activation

    def forward(self, x):
        x = x.sub_(0.3).div_(2.0) if self.in_place else (x - 0.3) / 2
        return self.out(self.activation(self.into(x)))


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * gradient


def normalised(in_place: bool, activation=torch.tanh, loss=cp.losses.cross_entropy) -> cp.EmpiricalRisk:
    draw = torch.Generator().manual_seed(0)
    data = torch.randn(6, 3, generator=draw, dtype=torch.float64), torch.randint(3, (6,), generator=draw)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cp.EmpiricalRisk(Normalising(in_place, activation).double(), loss, data)


def test_a_model_that_changes_its_input_in_place_is_that_which_does_not():
    plain, changing = normalised(False), normalised(True)
    vector = torch.ones(plain.num_params, dtype=torch.float64)
    for matrix in (cp.hessian, cp.ggn):
        assert torch.allclose(matrix(changing) @ vector, matrix(plain) @ vector, rtol=1e-12)
    assert not changing.probed.doubts
    with pytest.raises(ValueError, match="wrong second derivative"):
        cp.hessian(normalised(True, Opaque.apply)) @ vector


def test_a_loss_may_change_batch_and_outputs_in_place():
    def popping(outputs, batch):
        return nn.functional.cross_entropy(outputs.div_(0.5), batch.pop("labels"), reduction="none")

    plain = normalised(False, loss=lambda o, b: nn.functional.cross_entropy(o / 0.5, b[1], reduction="none"))
    data = {"x": plain.sample.read(0, 6).batch[0], "labels": plain.sample.read(0, 6).batch[1]}
    changing = cp.EmpiricalRisk(plain.probed.module, popping, data)
    vector = torch.ones(plain.num_params, dtype=torch.float64)
    for matrix in (cp.hessian, cp.ggn):
        assert torch.allclose(matrix(changing) @ vector, matrix(plain) @ vector, rtol=1e-12)
    space = cp.random_subspace(plain, 2)
    assert torch.allclose(cp.project(changing, space).hessian, cp.project(plain, space).hessian)
    assert sorted(data) == ["labels", "x"]
