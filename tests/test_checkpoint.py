"""What is written comes back, and what does not fit is not used."""

import os

import pytest
import torch

from curvprobe.eigensolver.checkpoint import Checkpoint, Saver
from tests.test_eigensolver import SIGNED, symmetric
from tests.test_krylov import basis_of, grown

MATRIX = symmetric(SIGNED)


def state(basis) -> list:
    count = basis.count
    tensors = [
        basis.rows[:count],
        basis.projected[:count, :count],
        basis.carried[:count],
        basis.coupling[:count],
        basis.generator.get_state(),
    ]
    pending = None if basis.pending is None else basis.pending.tolist()
    return [t.tolist() for t in tensors] + [pending, count, basis.largest, basis.num_matvecs]


@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize("block", [False, True])
def test_the_state_comes_back_bit_by_bit(tmp_path, steps, block):
    basis = grown(MATRIX, steps)
    if block:
        values, coefficients = basis.ritz()
        basis.keep(values[:1], coefficients[:, :1])
        basis.restrict(1, torch.tensor([0.125], dtype=torch.float64))
    checkpoint = Checkpoint(tmp_path / "folder" / "state", "key")
    checkpoint.save(basis)
    other = basis_of(MATRIX, seed=5)
    assert checkpoint.load(other)
    assert state(other) == state(basis)
    if not basis.full:
        basis.expand()
        other.expand()
        assert state(other) == state(basis)


def test_what_does_not_fit_is_not_used(tmp_path):
    checkpoint, fresh = Checkpoint(tmp_path / "state", "key"), state(basis_of(MATRIX))
    checkpoint.save(grown(MATRIX, 12))
    misfits = [
        (checkpoint, basis_of(MATRIX, capacity=11)),
        (checkpoint, basis_of(symmetric(SIGNED[:-1]))),
        (Checkpoint(tmp_path / "state", "other"), basis_of(MATRIX)),
        (Checkpoint(tmp_path / "absent", "key"), basis_of(MATRIX)),
    ]
    for file, basis in misfits:
        assert not file.load(basis)
        assert basis.count == basis.num_matvecs == 0
    assert state(misfits[2][1]) == fresh


def test_a_folder_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="is a folder; expected the name of a file"):
        Checkpoint(tmp_path, "key")


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\x10" + bytes(40), "cut", "missing", "list"])
def test_a_damaged_file_is_not_used(tmp_path, content):
    checkpoint, basis = Checkpoint(tmp_path / "state", "key"), basis_of(MATRIX)
    checkpoint.save(grown(MATRIX, 5))
    whole = checkpoint.path.read_bytes()
    if content == "cut":
        content = whole[:-9]
    if isinstance(content, bytes):
        checkpoint.path.write_bytes(content)
    else:
        kept = torch.load(checkpoint.path)
        del kept["carried"]
        torch.save(kept if content == "missing" else list(kept), checkpoint.path)
    assert not checkpoint.load(basis)
    assert basis.count == basis.num_matvecs == 0


def test_a_write_that_fails_leaves_the_last_state(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "state", "key")
    checkpoint.save(grown(MATRIX, 3))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            checkpoint.save(grown(MATRIX, 4))
    basis = basis_of(MATRIX)
    assert checkpoint.load(basis)
    assert basis.count == 3
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_it_is_written_from_time_to_time(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("curvprobe.checkpoint.time.monotonic", lambda: clock[0])
    saver, basis = Saver(Checkpoint(tmp_path / "state", "key", interval=60)), basis_of(MATRIX)
    clock[0] = 61.0
    saver.maybe(basis)
    assert not any(tmp_path.iterdir())  # nothing to keep yet
    basis.expand()
    saver.maybe(basis)
    first = (tmp_path / "state").read_bytes()
    basis.expand()
    clock[0] = 100.0
    saver.maybe(basis)
    assert (tmp_path / "state").read_bytes() == first
    clock[0] = 122.0
    saver.maybe(basis)
    assert (tmp_path / "state").read_bytes() != first
    saver.discard()
    saver.discard()
    assert not any(tmp_path.iterdir())


def test_writing_takes_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("curvprobe.checkpoint.time.monotonic", lambda: clock[0])

    def slow(self, basis):
        clock[0] += 30.0

    monkeypatch.setattr(Checkpoint, "save", slow)
    saver = Saver(Checkpoint(tmp_path / "state", "key", interval=60))
    saver.now(grown(MATRIX, 1))
    assert saver.due == 30.0 + 20 * 30.0


def test_without_a_checkpoint_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saver, basis = Saver(None), grown(MATRIX, 1)
    saver.maybe(basis)
    saver.now(basis)
    saver.discard()
    assert not saver.load(basis)
    assert not any(tmp_path.iterdir())
