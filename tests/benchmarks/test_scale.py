"""Shared work in small, and what is reckoned from sizes against what it is held to."""

import json

import pytest

from tests.benchmarks.test_benchmarks import rows_of, run


def test_two_processes_find_what_one_finds(tmp_path):
    import processes

    result = run(processes, tmp_path, "--model mlp --k 8 --dim 1 --repeats 1 --worlds 1 2")
    one, two, divided = result["rows"]
    assert [(row["processes"], row["divided"]) for row in result["rows"]] == [(1, False), (2, False), (2, True)]
    assert divided["eigenvalues_apart"] < 1e-5
    assert two["products"] == one["products"]
    assert two["eigenvalues_apart"] < 1e-5
    assert two["model_seconds"] == pytest.approx(one["seconds"]["product"] / 2 + two["seconds"]["exchanges"])
    assert len(rows_of(processes.table(result))) == 3


def test_the_committed_case_is_within_a_fifth_of_the_memory_and_twice_the_time():
    import processes

    for row in json.loads(processes.BENCHMARK.result.read_text())["rows"]:
        assert row["peak_bytes"] == pytest.approx(row["model_bytes"], rel=0.2)
        assert 0.5 < row["seconds"]["product"] / row["model_seconds"] < 2


@pytest.mark.parametrize("shape", [(64, 2, 32, 300), (128, 3, 96, 1000)])
def test_an_example_takes_what_autograd_saves_for_it(shape):
    import scale

    case = scale.graph(shape)
    assert case["reckoned"] == pytest.approx(case["measured"], rel=0.2)


def test_what_is_reckoned_is_within_a_fifth_of_what_was_measured(tmp_path):
    import scale

    result = run(scale, tmp_path, "--params 1e8 7e9 --gpus 1 8")
    assert len(result["rows"]) == 4
    for case in result["held_to"]:
        assert case["reckoned"] == pytest.approx(case["measured"], rel=0.2)
    committed = json.loads(scale.BENCHMARK.result.read_text())
    for now, then in zip(result["held_to"], committed["held_to"], strict=True):
        assert now["reckoned"] == pytest.approx(then["reckoned"])
    assert "too much" in scale.table(result)
