"""The benchmark of the projection, on a small model."""

from tests.benchmarks.test_benchmarks import run


def test_the_ways_are_compared(tmp_path, capsys):
    import projection

    result = run(projection, tmp_path, "--models wide --dim 3 --repeats 1")
    (row,) = result["rows"]
    assert set(row["seconds"]) == {"operations", "together", "alone"}
    assert max(row["errors"].values()) < 1e-5
    assert "| wide | " in capsys.readouterr().out
