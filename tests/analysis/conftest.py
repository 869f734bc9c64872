import pytest
import torch

import curvprobe as cp
from tests import cases
from tests.analysis.sound import without_doubts


@pytest.fixture(scope="module")
def case() -> cases.Case:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
        x, y = torch.randn(40, 3, dtype=torch.float64), torch.randint(3, (40,))
    return cases.Case(model, cp.losses.cross_entropy, (x[:30], y[:30]), (x[30:], y[30:]))


@pytest.fixture(scope="module")
def analysis(case) -> cp.Analysis:
    return cp.analyze(case.risk(), case.candidates, dim=4, tol=1e-8, seed=1)


@pytest.fixture(scope="module")
def sound(analysis) -> cp.Analysis:
    return without_doubts(analysis)
