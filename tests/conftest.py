import pytest
import torch

from tests import cases

torch.set_num_threads(1)  # the tensors are tiny: a second thread only waits, and slows down everything beside it


@pytest.fixture(params=list(cases.CASES))
def case(request: pytest.FixtureRequest) -> cases.Case:
    """Every kind of layer in turn."""
    return cases.make(request.param)
