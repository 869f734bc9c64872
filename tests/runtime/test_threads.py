"""How many threads work takes."""

import pytest
import torch

import curvprobe as cp
from curvprobe.runtime.threads import LITTLE, threads_for
from tests import cases

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("operations", "device", "expected"),
    [(0.0, CPU, 1), (LITTLE, CPU, 1), (1.01 * LITTLE, CPU, 2), (0.0, torch.device("meta"), 2)],
)
def test_little_work_on_a_processor_is_done_by_one_thread(two_threads, operations, device, expected):
    with threads_for(operations, device):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 2


def test_the_number_is_put_back_when_work_fails(two_threads):
    with pytest.raises(KeyError), threads_for(0.0, CPU):
        raise KeyError
    assert torch.get_num_threads() == 2


def test_one_thread_stays_one():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threads_for(0.0, CPU):
        assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_a_small_model_runs_on_one_thread_and_a_large_one_on_all(two_threads):
    seen = []
    case = cases.make("mlp")

    def loss(outputs, batch):
        seen.append(torch.get_num_threads())
        return case.loss(outputs, batch)

    risk = cp.EmpiricalRisk(case.model, loss, case.data)
    seen.clear()
    cp.top_eigenspace(risk, dim=2)
    assert set(seen) == {1}
    assert risk.footprint.operations == 2 * (3 * 4 + 4 * 3)  # multiplications and additions of both layers
    seen.clear()
    wide = torch.nn.Sequential(torch.nn.Linear(3, 4000), torch.nn.Tanh(), torch.nn.Linear(4000, 3)).double()
    large = cp.EmpiricalRisk(wide, loss, tuple(part.repeat(700, *[1] * (part.dim() - 1)) for part in case.data))
    seen.clear()
    cp.hessian(large) @ torch.ones(large.num_params, dtype=torch.float64)
    assert large.footprint.of_product(large.microbatch_size) > LITTLE
    assert 2 in set(seen)
