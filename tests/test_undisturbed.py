"""Work that goes through several rooms leaves all as it was, also when it is interrupted."""

import pytest
import torch

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
