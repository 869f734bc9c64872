"""How the command ends where a signal comes, the disk is full or another run is at work, and what it leaves."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from curvprobe.runtime.store import Store
from tests.cli.test_cli import invoke

SLOW = """
import os, time, torch
import curvprobe as cp

def task():
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 24, dtype=torch.float64)[:, None]
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    before = [p.detach().clone() for p in model.parameters()]

    def loss(output, batch):
        try:
            if os.path.exists(os.environ["OUT"] + "/sample.json"):
                print("at work", flush=True)
                while True:
                    time.sleep(0.05)
            return cp.losses.mse(output, batch)
        except KeyboardInterrupt:
            import atexit
            atexit.register(lambda: print("as it was:", all(map(torch.equal, before, model.parameters()))))
            if "STUBBORN" in os.environ:
                print("cleaning", flush=True)
                time.sleep(60)
            raise
    return cp.Task(model, loss, (x[::2], x[::2].sin()), (x[1::2], x[1::2].sin()))
"""

COMMAND = (sys.executable, "-m", "curvprobe", "run")
OPTIONS = ("--dim", "2", "--num-probes", "4", "--stages", "quick", "--no-report")


def heard():
    """Take signals as a program in the foreground does: tests in the background are started deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def at_work(tmp_path):
    """The command, when it has finished its first stages, and its folder."""

    def start(**environment):
        (tmp_path / "slow.py").write_text(SLOW)
        out = tmp_path / "out"
        process = subprocess.Popen(
            [*COMMAND, f"{tmp_path}/slow.py:task", "--out", out, *OPTIONS],
            env={**os.environ, "OUT": str(out), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heard,
        )
        started.append(process)
        assert process.stdout.readline() == "at work\n"
        return process, out

    started = []
    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGTERM, 143, "Ended by SIGTERM"), (signal.SIGINT, 130, "Interrupted")]
)
def test_a_signal_ends_the_run_in_order(at_work, number, code, said):
    process, out = at_work()
    process.send_signal(number)
    printed, told = process.communicate(timeout=30)
    assert process.returncode == code
    assert f"{said}; the finished stages are kept. Repeat the command to go on." in told
    assert "as it was: True" in printed
    names = {path.name for path in out.iterdir()}
    assert {"eigenspace.json", "sample.json"} <= names
    assert {name for name in names if name.startswith(".")} <= {".lock"}


def test_the_second_signal_ends_at_once(at_work):
    process, _ = at_work(STUBBORN="1")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "cleaning\n"
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM
    assert time.monotonic() - start < 5


def test_a_second_run_is_refused_and_names_the_first(at_work):
    process, out = at_work()
    task = out.parent / "slow.py"
    second = subprocess.run(
        [*COMMAND, f"{task}:task", "--out", out, *OPTIONS],
        env={**os.environ, "OUT": str(out / "nowhere")},
        capture_output=True,
        text=True,
    )
    assert second.returncode == 1
    assert f"Error: another run is at work in the folder '{out}': process {process.pid} on " in second.stderr


def limited(size):
    """Files of at most so many bytes, as where a disk is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(("size", "name"), [(800, "sample.json"), (60000, "decay.png")])
def test_a_full_disk_is_said_and_earlier_stages_are_kept(task_file, tmp_path, size, name):
    out, command = tmp_path / "out", [*COMMAND, f"{task_file}:task", "--out", tmp_path / "out", *OPTIONS]
    found = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited(size))
    assert found.returncode == 1
    assert f"could not be written to the folder '{out}': File too large; what lay there before is kept" in found.stderr
    assert "make room for it, and repeat the run" in found.stderr
    assert "Traceback" not in found.stderr
    left = {path.name: path.stat() for path in out.iterdir()}
    assert {entry for entry in left if entry.startswith(".")} == {".lock"}
    assert name not in left, found.stderr
    stages = {entry for entry in left if entry.endswith(".json") and entry != "result.json"}
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "Warning" not in again.stderr
    assert all((out / stage).stat().st_mtime_ns == left[stage].st_mtime_ns for stage in stages)


def test_a_report_that_cannot_be_written_is_said(task_file, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        replace = os.replace
        patch.setattr("os.replace", lambda a, b: full_disk() if str(b).endswith(".html") else replace(a, b))
        found = invoke("run", f"{task_file}:task", "--out", tmp_path / "out", *OPTIONS[:-1])
    assert found.exit_code == 1
    assert "report.html could not be written to the folder" in found.stderr
    assert "No space left on device" in found.stderr
    assert (tmp_path / "out" / "result.json").exists()
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")] == [".lock"]
    assert Store.at(tmp_path / "out").writable


def full_disk():
    raise OSError(28, "No space left on device")
