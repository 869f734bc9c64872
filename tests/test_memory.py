import subprocess
import sys

import psutil
import pytest
import torch

from curvprobe import memory

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets what is free on the machine, and a container's limit and usage."""

    def set_to(available: int, limit: str | None = None, used: str = "0") -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": available}))
        files = (tmp_path / "absent", tmp_path / "absent"), (tmp_path / "limit", tmp_path / "used")
        monkeypatch.setattr(memory, "_LIMITS", files)
        if limit is not None:
            files[1][0].write_text(limit)
            files[1][1].write_text(used)

    return set_to


@pytest.mark.parametrize(
    ("available", "limit", "used", "free"),
    [
        (5000, None, "0", 5000),
        (5000, "max\n", "100\n", 5000),
        (5000, "3000\n", "1000\n", 2000),
        (1500, "3000", "1000", 1500),
        (5000, "1000", "1200", 0),
    ],
)
def test_free_bytes_are_those_of_the_machine_within_the_containers_limit(machine, available, limit, used, free):
    machine(available, limit, used)
    assert memory.free_bytes(CPU) == free


def test_free_bytes_here():
    assert 0 < memory.free_bytes(CPU) <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("free", "budget"),
    [(0, 2**28), (2**29, 2**28), (2**34, 2**33), (2**35 - 1, 2**33), (2**35, 2**34), (3 * 2**34, 2**34)],
)
def test_the_default_budget_is_half_of_what_is_free_as_a_power_of_two(machine, free, budget):
    machine(free)
    assert memory.default_budget(CPU) == budget


def test_saved_bytes_count_every_tensor_once_and_no_parameter():
    x, weight = torch.ones(100, dtype=torch.float64), torch.ones(100, dtype=torch.float64, requires_grad=True)
    kept = memory.SavedBytes([weight])
    with kept:
        y = x * weight  # saves x and the parameter
        z = y.sin() + y.cos()  # both save y
    assert kept.total == 1600
    z.sum().backward()
    assert torch.allclose(weight.grad, torch.cos(x) - torch.sin(x))


def test_saved_bytes_of_nothing():
    kept = memory.SavedBytes([])
    with kept:
        torch.ones(3, requires_grad=True).sum()
    assert kept.total == 0


def test_freed_memory_can_be_kept_by_a_process_of_ones_own():
    code = "from curvprobe.memory import keep_freed; keep_freed(); import torch; print(torch.ones(10**7).sum().item())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "10000000.0"


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    memory.keep_freed()
