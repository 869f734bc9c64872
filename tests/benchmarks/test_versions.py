"""The benchmark of versions of torch, threads and processes, with the one that is here."""

import json

import pytest

from tests.benchmarks.test_benchmarks import run


def test_two_processes_are_compared_with_one(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    import versions

    monkeypatch.setattr(versions, "WAYS", ((1, 1), (1, 2)))
    one, two = run(versions, tmp_path, "--environments pinned --k 40 --dim 2")["rows"]
    assert all(one[name] == 0 for name in versions.NUMBERS)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert 0 < two["eigenvalues"] < 1e-5


def test_the_largest_difference_is_told():
    import versions

    one, other = ({"eigenspace": {"eigenvalues": values}} for values in ([2.0, 0.5], [2.0, 0.6]))
    assert versions.apart("eigenvalues", one, other) == pytest.approx(0.05)
    one, other = ({"sample": {"loss": 1.0, "held_out_loss": value}} for value in (4.0, 5.0))
    assert versions.apart("losses", one, other) == pytest.approx(0.25)
    assert versions.apart("losses", one, json.loads(json.dumps(one))) == 0
