"""Projected samples in files, and the seam: what is computed from them needs no model."""

import subprocess
import sys

import pytest
import torch

import curvprobe as cp
from tests.criteria.samples import sample_of

BEFORE_THE_SEAM = {"risk", "curvature", "subspace", "eigensolver", "probing", "losses", "analysis", "tasks"}


def loaded_after(code: str) -> set[str]:
    """Rooms of the package that a fresh interpreter has loaded after this code."""
    shown = "import sys; print(*{m.split('.')[1] for m in sys.modules if m.startswith('curvprobe.')})"
    command = [sys.executable, "-W", "error", "-c", f"{code}; {shown}"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split())


def test_criteria_load_no_model_no_solver_and_no_data():
    code = (
        "import importlib, pkgutil, curvprobe.criteria as room; "
        "names = [m.name for m in pkgutil.iter_modules(room.__path__)]; "
        "[importlib.import_module(f'curvprobe.criteria.{name}') for name in names]; assert len(names) > 8"
    )
    rooms = loaded_after(code)
    assert "criteria" in rooms
    assert not rooms & BEFORE_THE_SEAM


def test_a_saved_sample_is_analysed_without_the_model(tmp_path):
    sample, fresh = sample_of(9, weighted=True), sample_of(6, seed=1)
    sample.save(tmp_path / "sample.safetensors")
    fresh.save(tmp_path / "fresh.safetensors")
    code = (
        "import curvprobe as cp; "
        f"sample, fresh = (cp.ProjectedSample.load(r'{tmp_path}/' + n + '.safetensors') for n in ('sample', 'fresh')); "
        "expected = cp.expected_criterion(sample, fresh, sigma=0.3); cp.decay_curve(sample, sigma=0.3, fresh=fresh); "
        "cp.required_sample_size(sample, fresh, 0.3, 0.5); cp.rank_candidates(sample, fresh, 0.3); "
        "cp.theory_checks(sample, fresh[0], 0.3); "
        f"assert expected.value == {cp.expected_criterion(sample, fresh, sigma=0.3).value!r}"
    )
    assert not loaded_after(code) & BEFORE_THE_SEAM


def test_a_sample_comes_back_from_its_file_as_it_was(tmp_path):
    plain = sample_of(4, weighted=True)
    named = cp.ProjectedSample(plain.loss, plain.weight, plain.gradient, plain.hessian, ("a", "b", "c", "d"))
    for sample in (plain, named):
        sample.save(tmp_path / "s.safetensors")
        again = cp.ProjectedSample.load(tmp_path / "s.safetensors")
        for name in ("loss", "weight", "gradient", "hessian"):
            assert torch.equal(getattr(again, name), getattr(sample, name))
        assert again.digests == sample.digests


@pytest.mark.parametrize("content", [None, b"", b"{}" * 40])
def test_what_is_no_saved_sample_is_refused(tmp_path, content):
    path = tmp_path / "s.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(cp.ArgumentError, match="no projected sample could be read"):
        cp.ProjectedSample.load(path)


# ---- selections, means, shapes


def synthetic(n: int = 5, dim: int = 3) -> cp.ProjectedSample:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(n, 1 + dim + dim * dim, generator=generator, dtype=torch.float64)
    square = draws[:, 1 + dim :].view(n, dim, dim)
    weight = torch.arange(1.0, n + 1, dtype=torch.float64)
    digests = tuple(map(str, range(n)))
    return cp.ProjectedSample(draws[:, 0], weight, draws[:, 1 : 1 + dim], square + square.mT, digests)


@pytest.mark.parametrize(
    ("selection", "rows"),
    [
        (2, [2]),
        (-1, [4]),
        (slice(1, 4), [1, 2, 3]),
        ([3, 0], [3, 0]),
        (torch.tensor([True, False, False, True, False]), [0, 3]),
    ],
    ids=["one", "last", "slice", "list", "mask"],
)
def test_selection(selection, rows):
    sample = synthetic()
    chosen = sample[selection]
    assert len(chosen) == len(rows)
    for name in ("loss", "weight", "gradient", "hessian"):
        assert torch.equal(getattr(chosen, name), getattr(sample, name)[rows])
    assert chosen.digests == tuple(sample.digests[i] for i in rows)


def test_mean_is_weighted():
    sample = synthetic()
    share = [1 / 15, 2 / 15, 3 / 15, 4 / 15, 5 / 15]
    mean = sample.mean()
    assert abs(float(mean.loss) - sum(s * float(x) for s, x in zip(share, sample.loss, strict=True))) < 1e-14
    curvature = sum(s * h for s, h in zip(share, sample.hessian, strict=True))
    assert torch.allclose(mean.hessian[0], curvature, rtol=1e-12, atol=1e-14)
    assert float(mean.weight) == 15.0
    assert torch.equal(mean.mean().hessian, mean.hessian)


def test_shapes_that_do_not_fit():
    one, zero = torch.ones(2), torch.zeros(2, 3)
    for arguments in [(one, one, zero, zero), (one, torch.ones(3), zero, torch.zeros(2, 3, 3)), (one, one, one, one)]:
        with pytest.raises(ValueError, match="expected \\(n,\\), \\(n,\\), \\(n, D\\), \\(n, D, D\\)"):
            cp.ProjectedSample(*arguments)
    with pytest.raises(ValueError, match="1 digests came for 2"):
        cp.ProjectedSample(one, one, zero, torch.zeros(2, 3, 3), ("a",))


def test_the_first_directions_alone():
    whole = sample_of(4, dim=3)
    for dim in (1, 3):
        few = whole.truncate(dim)
        assert torch.equal(few.gradient, whole.gradient[:, :dim])
        assert torch.equal(few.hessian, whole.hessian[:, :dim, :dim])
    known = cp.ProjectedSample(whole.loss, whole.weight, whole.gradient, whole.hessian, tuple("abcd"))
    assert known.truncate(2).digests == tuple("abcd")
    for dim in (0, 4):
        with pytest.raises(cp.ArgumentError, match=f"dim is {dim}"):
            whole.truncate(dim)
