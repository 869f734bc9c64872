"""One run at a time in a folder, whoever asks, and nobody is kept out by one that has ended or died."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from curvprobe.errors import ArgumentError
from curvprobe.runtime.ranks import Ranks
from curvprobe.runtime.store import Store
from tests import several

HOLDS = """
import sys, time
from curvprobe.runtime.store import Store
with Store.at(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A process that runs in the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_run_is_refused_at_once_and_told_of_the_first(tmp_path, other):
    start = time.monotonic()
    with (
        pytest.raises(
            ArgumentError, match=rf"another run is at work in .*: process {other.pid} on {os.uname().nodename}"
        ),
        Store.at(tmp_path).held(),
    ):
        pass
    assert time.monotonic() - start < 2
    with Store.at(tmp_path / "another").held():
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with Store.at(tmp_path).held():
        assert (tmp_path / ".running").read_text().startswith(f"process {os.getpid()} on ")
    assert {path.name for path in tmp_path.iterdir()} <= {".lock", "another"}


def test_blocks_within_one_another_are_one_run_and_another_thread_is_another(tmp_path):
    found = []

    def enter():
        try:
            with Store.at(tmp_path).held():
                found.append("entered")
        except ArgumentError as error:
            found.append(str(error))

    with Store.at(tmp_path).held(), Store.at(tmp_path).held():
        other = threading.Thread(target=enter)
        other.start()
        other.join()
    assert "another run is at work" in found.pop()
    enter()
    assert found == ["entered"]


def test_a_block_that_fails_lets_go(tmp_path):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), Store.at(tmp_path).held():
            raise error
    with Store.at(tmp_path).held():
        pass


def test_what_a_process_that_was_killed_was_writing_goes(tmp_path):
    old, new = tmp_path / ".s.json.abc.unfinished", tmp_path / ".t.json.abc.unfinished"
    kept = tmp_path / "eigenspace.unfinished"
    for path in (old, new, kept):
        path.write_text("")
        os.utime(path, None if path is new else (0, 0))
    with Store.at(tmp_path).held():
        pass
    assert not old.exists()
    assert new.exists()
    assert kept.exists()


def test_where_nothing_can_be_written_or_kept_nothing_is_locked(tmp_path):
    for store in (Store(None), Store(tmp_path, writable=False)):
        with store.held():
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch, caplog):
    def unknown(self):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("curvprobe.runtime.lock.FileLock.acquire", unknown)
    with caplog.at_level("INFO", "curvprobe"), Store.at(tmp_path).held():
        pass
    assert "is not locked, which its file system does not know" in caplog.text


def hold(group, folder):
    try:
        with Store.at(folder, Ranks(group)).held():
            return "held"
    except ArgumentError as error:
        return str(error)


def test_of_several_processes_the_first_one_locks_and_all_are_refused(tmp_path, other):
    assert several.values(2, hold, tmp_path / "free") == ["held", "held"]
    first, second = several.values(2, hold, tmp_path)
    assert f"process {other.pid} on" in first
    assert second == f"rank 0: {first}"
