"""The command in several processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import curvprobe as cp
from curvprobe.cli import app
from curvprobe.cli.messages import plain_errors
from curvprobe.errors import LostError
from tests import several

TASK = """
import os

import torch

import curvprobe as cp


def task():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    x, y = torch.randn(30, 3, dtype=torch.float64), torch.randint(2, (30,))
    print("made by the task of", os.environ.get("RANK"))
    return cp.Task(model, cp.losses.cross_entropy, (x[:21], y[:21]), (x[21:], y[21:]))
"""


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "my_task.py"
    path.write_text(TASK)
    return path


OPTIONS = ["--dim", "2", "--num-probes", "8", "--stages", "quick", "--no-report"]


def alone(task, out):
    """What the command prints in one process."""
    ran = CliRunner().invoke(app, ["run", f"{task}:task", "--out", str(out), *OPTIONS])
    assert ran.exit_code == 0, ran.output
    return [line for line in ran.stdout.splitlines() if "written to" not in line]


def test_torchrun_shares_a_run_and_the_first_process_speaks(task, tmp_path):
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    ran = subprocess.run(
        [sys.executable, "-m", *launcher, "curvprobe", "run", f"{task}:task", "--out", str(tmp_path / "two"), *OPTIONS],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    said = [line for line in ran.stdout.splitlines() if "written to" not in line]
    assert said[0] == "made by the task of 0"
    assert said[1:] == alone(task, tmp_path / "one")[1:]
    two, one = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("two", "one"))
    assert two["expected"]["value"] == pytest.approx(one["expected"]["value"], rel=1e-9)
    assert not list(Path(tmp_path / "two").glob("*.unfinished*"))
    assert alone(task, tmp_path / "two")[1:] == said[1:]  # one process finds the stages of two


def test_the_program_of_the_page_on_scale_runs_as_printed(task, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    program = next(block for block in re.findall(r"```py\n(.*?)```", page, re.DOTALL) if "init_process_group" in block)
    (tmp_path / "my_program.py").write_text(program)
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "my_program.py"],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("loss here by") + ran.stdout.count("NO ANSWER") == 1
    assert cp.load(tmp_path / "runs" / "mine").k == 21


def test_other_commands_are_not_shared(monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("TORCHELASTIC_RUN_ID", "none")):
        monkeypatch.setenv(name, value)
    found = CliRunner().invoke(app, ["demo"])
    assert found.exit_code == 2
    said = " ".join(found.output.replace("│", " ").split())
    assert "torchrun started 2 processes, which share the work of run only: start `curvprobe demo` by itself" in said


def ends(group, error):
    """Exit code and standard error of a command that ends by an error in both processes, one of which says so."""
    import contextlib
    import io

    import typer

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), plain_errors():
            raise error
    except typer.Exit as ended:
        return ended.exit_code, said.getvalue().strip()


def test_an_error_is_said_once_and_that_others_are_lost_by_all():
    one = several.values(2, ends, cp.NotFiniteError("the loss is nan"))
    assert one == [(1, "Error: the loss is nan"), (1, "")]
    lost = several.values(2, ends, LostError("rank 1 of 2 lost another process"))
    assert lost == [(1, "Error: rank 1 of 2 lost another process")] * 2
