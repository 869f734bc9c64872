"""The criterion in all parameters for many next examples: their products together are those of each by itself."""

import pytest
import torch
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.curvature.per_example import PRODUCTS_TOGETHER
from tests import cases
from tests.cases import block_of
from tests.subspace.test_together import is_batched

NAMES = ("level", "slope", "curvature", "value_terms", "shape_terms")


def parts(risk: cp.EmpiricalRisk, new: cp.EmpiricalRisk, *, together: bool) -> cp.FullSpaceParts:
    risk.probed.fast_paths.verdicts[PRODUCTS_TOGETHER] = together
    return cp.full_space_parts(risk, new, sigma=0.1, num_probes=6)


def agree(one: cp.FullSpaceParts, other: cp.FullSpaceParts) -> bool:
    return all(torch.allclose(getattr(one, n), getattr(other, n), rtol=1e-9, atol=1e-14) for n in NAMES)


@pytest.mark.parametrize("name", list(cases.CASES))
def test_both_ways_agree(name):
    case = cases.make(name)
    risk = case.risk()
    new = risk.on(case.candidates)
    found = parts(risk, new, together=True)
    assert risk.probed.fast_paths.verdicts[PRODUCTS_TOGETHER] is True
    assert agree(found, parts(risk, new, together=False))


class Wrong(nn.Module):
    """Does something else where it sees many examples batched by vmap, or refuses."""

    def __init__(self, refuses: bool) -> None:
        super().__init__()
        self.inner, self.refuses = nn.Linear(2, 3), refuses

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x).tanh()
        if is_batched(x) and self.refuses:
            raise NotImplementedError("no batching rule")
        return torch.where(x[:, :1] > 0, 1.001 * z, z) if is_batched(x) else z


@pytest.mark.parametrize("refuses", [True, False])
def test_batching_that_fails_or_is_wrong_for_one_example_is_found_out(refuses):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Wrong(refuses).double()
    x, y = -block_of(9, 2).abs(), torch.arange(9) % 3
    x[7] *= -1
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x[:5], y[:5]))
    new = risk.on((x[5:], y[5:]))
    found = parts(risk, new, together=True)
    assert risk.probed.fast_paths.verdicts[PRODUCTS_TOGETHER] is False
    assert agree(found, parts(risk, new, together=False))
