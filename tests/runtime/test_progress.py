import pytest
import torch.distributed as dist
from rich.console import Console

from curvprobe.runtime.progress import bar


@pytest.mark.parametrize("rank", [None, 0, 1])
def test_of_several_processes_the_first_one_shows_bars(monkeypatch, capsys, rank):
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setattr(dist, "is_initialized", lambda: rank is not None)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    with bar("work (units)", 3) as advance:
        advance(1)
    assert ("work" in capsys.readouterr().err) == (rank != 1)
