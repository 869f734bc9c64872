"""The benchmark of parts of the work on an accelerator, small and on a processor."""

from tests.benchmarks.test_benchmarks import run


def test_the_parts_are_measured(tmp_path, capsys):
    import gpu_parts

    result = run(gpu_parts, tmp_path, "--device cpu --length 40000 --vectors 3 --dim 3 --repeats 1")
    assert [row["name"] for row in result["rows"]] == ["inner products", "a random vector", "projection of 1000 digits"]
    assert max(row.get("off", 0.0) for row in result["rows"]) < 1e-5
    assert "| inner products | " in capsys.readouterr().out
