"""The benchmark of adapters, on a small model."""

from tests.benchmarks.test_benchmarks import run


def test_adapters_are_the_same_however_the_rest_is_held(tmp_path, capsys):
    import adapters

    size = "--vocabulary 300 --hidden-size 16 --layers 1 --context 8 --rank 2 --k 2 --dim 2"
    result = run(adapters, tmp_path, size)
    assert result["apart"] < 1e-4
    assert result["rows"]["frozen bfloat16"]["model_bytes"] < result["rows"]["frozen float32"]["model_bytes"]
    assert "first eigenvalues" in capsys.readouterr().out
