"""What is free on the machine, and freed memory that is kept for the next product."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from curvprobe.runtime import memory

CPU = torch.device("cpu")


GROUPS = {
    "version 2": ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    "version 1": ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
}
"""Where Linux's control groups tell a container's limit and what it holds already."""


@pytest.fixture
def machine(monkeypatch):
    """Sets what is free on the machine, and what its files say of a container."""

    def set_to(available: int, files: dict[str, str]) -> None:
        read_text = Path.read_text

        def read(path: Path, *arguments, **options) -> str:
            if not str(path).startswith("/sys/fs/cgroup/"):
                return read_text(path, *arguments, **options)
            if str(path) not in files:
                raise FileNotFoundError(path)
            return files[str(path)]

        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
        monkeypatch.setattr(Path, "read_text", read)

    return set_to


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
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
def test_free_bytes_are_those_of_the_machine_within_the_containers_limit(machine, group, available, limit, used, free):
    machine(available, {} if limit is None else dict(zip(group, (limit, used), strict=True)))
    assert memory.free_bytes(CPU) == free


def test_free_bytes_here():
    assert 0 < memory.free_bytes(CPU) <= psutil.virtual_memory().total


@pytest.fixture
def settings(monkeypatch):
    """What the C library is told, in order."""
    told = []

    class Library:
        def mallopt(self, parameter, value):
            told.append((parameter, value))

        def malloc_trim(self, pad):
            told.append(("trim", pad))

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    return told


def test_freed_memory_is_kept_in_a_block_and_given_back_at_its_end(settings):
    with memory.freed_memory_kept():
        assert settings == [(-4, 0), (-1, -1)]
    assert settings[2:] == [(-4, 65536), (-3, 2**25), (-1, 2**26), ("trim", 0)]


def test_blocks_within_blocks_change_nothing(settings):
    with memory.freed_memory_kept():
        before = list(settings)
        with memory.freed_memory_kept():
            pass
        assert settings == before
    assert settings[-1] == ("trim", 0)


def test_an_error_in_the_block_ends_it(settings):
    with pytest.raises(RuntimeError), memory.freed_memory_kept():
        raise RuntimeError
    assert settings[-1] == ("trim", 0)


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=3")]
)
def test_a_wish_in_the_environment_comes_first(settings, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with memory.freed_memory_kept():
        pass
    assert settings == []


def no_library(name):
    raise TypeError(f"argument of type {type(name).__name__!r} is not iterable")  # what None gets on Windows


@pytest.mark.parametrize("library", [lambda _: object(), no_library])
def test_a_c_library_without_mallopt_is_left_alone(monkeypatch, library):
    monkeypatch.setattr(ctypes, "CDLL", library)
    with memory.freed_memory_kept():
        assert float(torch.ones(10**6).sum()) == 10**6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of the GNU C library")
def test_large_tensors_come_and_go_in_a_block_and_the_memory_is_back_after_it():
    code = """
import psutil, torch
from curvprobe.runtime.memory import freed_memory_kept
held = lambda: psutil.Process().memory_info().rss / 2**20
torch.ones(10).sum()
before = held()
with freed_memory_kept():
    big = [torch.ones(2**22) for _ in range(20)]
    del big
    within = held()
print(within - before, held() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain())
    within, after = map(float, done.stdout.split())
    assert within > 250
    assert after < 100


def plain() -> dict[str, str]:
    """The environment without wishes for the C library's allocator."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
