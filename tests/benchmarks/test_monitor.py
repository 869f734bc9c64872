"""The benchmark of the monitor, on little."""

from tests.benchmarks.test_benchmarks import run


def test_warm_and_cold_look_at_the_same_weights(tmp_path, capsys):
    import monitor

    result = run(monitor, tmp_path, "--models cnn --dim 1 --steps 6 --looks 3 --sample 16")
    (row,) = result["rows"]
    assert min(row["warm_products"], row["cold_products"]) >= 3
    assert row["ratio"] > 0
    assert row["apart"] < 0.05
    assert len(row["first"]) == 3
    assert "| cnn | " in capsys.readouterr().out
