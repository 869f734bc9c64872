"""The excerpt of the README, in small."""

from tests.benchmarks.test_benchmarks import run


def test_the_demo_in_small(tmp_path):
    import demo

    result = run(demo, tmp_path, "--k 60 --dim 2")
    assert result["answer"][0].startswith("17,226 parameters (float32), k = 60, ")
    assert len(result["answer"]) <= 10
    assert demo.table(result).startswith("```text\n17,226 parameters")
