"""The benchmark of large vocabularies, on a small one."""

import pytest

from tests.benchmarks.test_benchmarks import run


def test_both_sides_are_measured(tmp_path, capsys):
    import vocabulary

    result = run(vocabulary, tmp_path, "--vocabulary 300 --context 12 --hidden-size 16 --layers 1 --k 2 --repeats 2")
    whole, chunked = result["rows"].values()
    assert whole["num_params"] == chunked["num_params"]
    assert chunked["curvature"] == pytest.approx(whole["curvature"], rel=1e-4)
    assert "| head in the loss | " in capsys.readouterr().out
