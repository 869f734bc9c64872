"""What is written comes back, what does not fit is not used, and an interrupted computation goes on."""

import os
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import curvprobe as cp
from curvprobe.eigensolver.checkpoint import Checkpoint, Saver
from tests.cases import symmetric
from tests.eigensolver.spectra import BULK, LONG, SIGNED, basis_of, grown, noisy, quietly, true_residuals

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
        (Checkpoint(str(tmp_path / "state"), "key"), basis_of(MATRIX, capacity=11)),
        (Checkpoint(tmp_path / "state", "other"), basis_of(MATRIX)),
        (Checkpoint(tmp_path / "absent", "key"), basis_of(MATRIX)),
    ]
    for file, basis in misfits:
        assert not file.load(basis)
        assert basis.count == basis.num_matvecs == 0
    assert state(misfits[3][1]) == fresh


def test_a_folder_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="is a folder; expected the name of a file"):
        Checkpoint(tmp_path, "key")


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\x10" + bytes(40), "cut", "missing", "list"])
def test_a_damaged_file_is_not_used(tmp_path, content):
    checkpoint, basis = Checkpoint(tmp_path / "state", "key"), basis_of(MATRIX)
    checkpoint.save(grown(MATRIX, 5))
    whole = checkpoint.path.read_bytes()
    if content == "cut":
        # The list of the file's parts stands at its end, and is all of what is missing: with only some bytes of it cut
        # off, torch's reader may find them in the memory behind, and then the state, which is whole.
        content = whole[:-200]
    if isinstance(content, bytes):
        checkpoint.path.write_bytes(content)
    else:
        kept = torch.load(checkpoint.path)
        del kept["carried"]
        torch.save(kept if content == "missing" else list(kept), checkpoint.path)
    with pytest.warns(UserWarning, match=r"state in .*state is damaged \(.*\); the computation begins anew"):
        assert not checkpoint.load(basis)
    assert basis.count == basis.num_matvecs == 0


def test_a_flipped_bit_and_a_newer_version_are_noticed(tmp_path):
    checkpoint, basis = Checkpoint(tmp_path / "state", "key"), basis_of(MATRIX)
    checkpoint.save(grown(MATRIX, 5))
    state = torch.load(checkpoint.path)
    for name, change in (("rows", 1e-9), ("largest", 1e-9), ("num_matvecs", 1), ("version", 1)):
        torch.save({**state, name: state[name] + change}, checkpoint.path)
        with pytest.warns(UserWarning, match="its checksum is another, or it is of a newer version"):
            assert not checkpoint.load(basis)
    assert basis.count == 0
    torch.save({**state, "version": 1}, checkpoint.path)
    assert not checkpoint.load(basis)  # of an earlier version, which is no damage
    torch.save(state, checkpoint.path)
    assert checkpoint.load(basis)


def test_one_number_too_few_or_too_many_does_not_fit(tmp_path):
    """Rows that are too short but not too many, and too many but not too short: neither is read, not even a part."""
    for size, capacity in ((len(SIGNED) - 1, 30), (len(SIGNED), 11)):
        checkpoint, basis = Checkpoint(tmp_path / "state", "key"), basis_of(MATRIX, capacity=capacity)
        checkpoint.save(grown(symmetric(SIGNED[:size]), 12))
        basis.rows.zero_()
        assert not checkpoint.load(basis)
        assert not bool(basis.rows.any())


def test_a_write_that_fails_is_said_and_ends_nothing(tmp_path, monkeypatch):
    saver = Saver(Checkpoint(tmp_path / "state", "key"))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.warns(UserWarning, match=r"state could not be saved in .*state: the disk is full"):
        saver.now(grown(MATRIX, 4))
    assert not saver.ours


FULL = """
import resource, sys
from pathlib import Path
from curvprobe.eigensolver.checkpoint import Checkpoint, Saver
from tests.cases import symmetric
from tests.eigensolver.spectra import grown
import torch
basis = grown(symmetric(torch.arange(1.0, 2001.0).tolist()), 5)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
Saver(Checkpoint(Path(sys.argv[1]) / "state", "key")).now(basis)
print("goes on")
"""


def test_a_disk_that_is_full_is_said_and_ends_nothing(tmp_path):
    """The writer of torch raises an error of its own where a write in the middle of the file has failed."""
    found = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True)
    assert found.stdout == "goes on\n", found.stderr
    assert "the solver's state could not be saved in " in found.stderr
    assert "File too large" in found.stderr
    assert list(tmp_path.iterdir()) == []


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
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
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
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Slow(Checkpoint):
        def save(self, basis):
            clock[0] += 30.0

    saver = Saver(Slow(tmp_path / "state", "key", interval=60))
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


# ---- interruptions -------------------------------------------------------------------------------------------------


def interrupting(matrix: Tensor, at: int):
    """Products of which the at-th is interrupted; and the number of those that were finished."""
    done = []

    def matmul(block: Tensor) -> Tensor:
        if len(done) + 1 == at:
            raise KeyboardInterrupt
        done.append(block.shape[1])
        return matrix @ block

    return matmul, done


@pytest.mark.parametrize("at", [2, 3, 9, 19, 20, 26, 40, 47])
def test_an_interrupted_computation_goes_on_bit_by_bit(tmp_path, at):
    matrix, options = symmetric(LONG), {"dim": 5, "tol": 1e-8, "dtype": torch.float64}
    whole = cp.lanczos(lambda block: matrix @ block, 150, **options)
    assert whole.num_matvecs - whole.num_search_matvecs > 47
    file = Checkpoint(tmp_path / "state", "key")
    matmul, done = interrupting(matrix, at)
    with pytest.raises(KeyboardInterrupt):
        cp.lanczos(matmul, 150, **options, checkpoint=file)
    assert file.path.exists()
    rest, more = interrupting(matrix, -1)
    pairs = cp.lanczos(rest, 150, **options, checkpoint=file)
    assert sum(done) + sum(more) == pairs.num_matvecs == whole.num_matvecs
    assert torch.equal(pairs.vectors, whole.vectors)
    assert torch.equal(pairs.eigenvalues, whole.eigenvalues)
    assert torch.equal(pairs.residuals, whole.residuals)
    assert pairs.num_search_matvecs == whole.num_search_matvecs
    assert not file.path.exists()


def test_an_interruption_at_any_product_is_harmless(tmp_path):
    """Also between the phases and within certificate and search, which are done again."""
    matrix, options = symmetric([10.0] * 3 + [9.0, 8.0, 7.0, *BULK[::2]]), {"dim": 4, "tol": 1e-6}
    whole = quietly(lambda block: matrix @ block, len(matrix), **options)
    file = Checkpoint(tmp_path / "state", "key")
    for at in range(1, whole.num_matvecs + 1):
        matmul, done = interrupting(matrix, at)
        with pytest.raises(KeyboardInterrupt):
            quietly(matmul, len(matrix), **options, checkpoint=file)
        pairs = quietly(lambda block: matrix @ block, len(matrix), **options, checkpoint=file)
        assert not file.path.exists()
        assert bool(pairs.converged.all())
        assert torch.allclose(pairs.eigenvalues, whole.eigenvalues, atol=1e-5)
        assert bool((true_residuals(matrix, pairs) <= 1e-6).all())
        assert len(done) < pairs.num_matvecs <= whole.num_matvecs + 60


def test_an_interruption_at_any_product_and_then_a_smaller_tolerance(tmp_path):
    """What is set aside has residuals without directions: they are no way to a smaller tolerance."""
    matrix = symmetric([10.0] * 3 + [9.0, 8.0, 7.0, *BULK[::2]])
    coarse, fine = (
        quietly(lambda block: matrix @ block, len(matrix), dim=4, tol=tol).num_matvecs for tol in (1e-2, 1e-9)
    )
    for at in range(1, coarse + 1):
        file = Checkpoint(tmp_path / f"state{at}", "key")
        matmul, _ = interrupting(matrix, at)
        with pytest.raises(KeyboardInterrupt):
            quietly(matmul, len(matrix), dim=4, tol=1e-2, checkpoint=file)
        pairs = quietly(lambda block: matrix @ block, len(matrix), dim=4, tol=1e-9, checkpoint=file)
        assert bool(pairs.converged.all())
        assert bool((true_residuals(matrix, pairs) <= 1e-9).all())
        assert pairs.num_matvecs <= coarse + fine


def test_a_smaller_tolerance_without_products_to_reach_it_keeps_what_there_is(tmp_path):
    matrix, file = symmetric(SIGNED), Checkpoint(tmp_path / "state", "key")
    coarse = quietly(lambda block: matrix @ block, 67, dim=5, tol=1e-2).num_matvecs
    quietly(lambda block: matrix @ block, 67, dim=5, tol=1e-2, max_matvecs=coarse - 1, checkpoint=file)
    before = file.path.stat().st_size
    pairs = quietly(lambda block: matrix @ block, 67, dim=5, tol=1e-9, max_matvecs=coarse, checkpoint=file)
    assert pairs.vectors.shape == (67, 5)
    assert float(true_residuals(matrix, pairs).max()) < 1e-2
    assert not bool(pairs.converged.any())
    assert pairs.num_matvecs <= coarse
    assert file.path.stat().st_size >= before
    assert bool(quietly(lambda block: matrix @ block, 67, dim=5, tol=1e-9, checkpoint=file).converged.all())


def test_a_larger_budget_goes_on_from_a_smaller_one(tmp_path):
    matrix, options = symmetric(LONG), {"dim": 5, "tol": 1e-8}
    whole = quietly(lambda block: matrix @ block, 150, **options)
    file, counts = Checkpoint(tmp_path / "state", "key"), []
    for budget in (20, 40, 60, None):
        matmul, done = interrupting(matrix, -1)
        pairs = quietly(matmul, 150, **options, max_matvecs=budget, checkpoint=file)
        counts.append(sum(done))
        assert file.path.exists() == (budget is not None)
    assert 18 <= counts[0] <= 20
    assert all(count <= 24 for count in counts[:3])
    assert pairs.num_matvecs == sum(counts) <= whole.num_matvecs + 16
    assert bool(pairs.converged.all())
    assert torch.allclose(pairs.eigenvalues, whole.eigenvalues, rtol=1e-10)


def test_a_budget_that_ends_in_the_search_goes_on(tmp_path):
    matrix, options = symmetric(SIGNED), {"dim": 4, "tol": 1e-6}
    whole = quietly(lambda block: matrix @ block, 67, **options)
    file = Checkpoint(tmp_path / "state", "key")
    first = quietly(lambda block: matrix @ block, 67, **options, max_matvecs=whole.num_matvecs - 2, checkpoint=file)
    assert first.converged.tolist() == [True, True, True, False]
    matmul, done = interrupting(matrix, -1)
    pairs = quietly(matmul, 67, **options, checkpoint=file)
    assert bool(pairs.converged.all())
    assert sum(done) <= 16


def test_a_file_of_another_computation_is_ignored(tmp_path):
    matrix, options = symmetric(LONG), {"dim": 5, "tol": 1e-8}
    whole = quietly(lambda block: matrix @ block, 150, **options)
    for content in (b"no state", None):
        file = Checkpoint(tmp_path / "state", "key")
        if content is None:
            file.path.unlink()
            other = Checkpoint(tmp_path / "state", "other")
            quietly(lambda block: -matrix @ block, 150, **options, max_matvecs=30, checkpoint=other)
        else:
            file.path.write_bytes(content)
        with nullcontext() if content is None else pytest.warns(UserWarning, match="is damaged"):
            pairs = quietly(lambda block: matrix @ block, 150, **options, checkpoint=file)
        assert torch.equal(pairs.vectors, whole.vectors)


def test_nothing_is_certified_when_the_budget_is_spent_before(tmp_path):
    """A state that seems converged, continued with a budget below what it has cost."""
    matrix, silent = symmetric(SIGNED), []
    for at in range(8, 20):
        file = Checkpoint(tmp_path / f"state{at}", "key")
        noise = noisy(matrix, 1e-2)
        matmul, _ = interrupting(matrix, at)
        with pytest.raises(KeyboardInterrupt):
            quietly(lambda block, m=matmul, n=noise: m(block) * 0 + n(block), 67, dim=5, checkpoint=file)
        pairs = quietly(noise, 67, dim=5, tol=1e-3, max_matvecs=8, checkpoint=file)
        wrong = true_residuals(matrix, pairs) > 2e-3
        silent += [at] * bool((pairs.converged & wrong).any())
    assert silent == []
