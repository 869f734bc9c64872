"""The benchmark of the plan in small, and how far from a range a number is."""

import pytest

from tests.benchmarks.test_benchmarks import run, small_task


def test_a_plan_and_its_analysis_are_compared(tmp_path, monkeypatch):
    import plan

    monkeypatch.setitem(plan.KINDS, "repeated", lambda: small_task("mlp"))
    monkeypatch.setattr(plan, "run_isolated", lambda function, *arguments: function(*arguments))
    result = run(plan, tmp_path, "--models repeated --stages quick --dim 2 --least 0.0")
    (found,) = result["compared"]
    assert found["products"]["planned"] == [found["products"]["found"]] * 2
    assert [row["stage"] for row in found["rows"]] == [
        "eigenspace",
        "sample",
        "candidates",
        "examination",
        "validity",
        "monte_carlo",
        "stationarity",
    ]
    assert all(row["off"] > 0 for row in found["rows"])
    assert plan.table(result).splitlines()[2].startswith("| repeated, quick | 31 | ")


@pytest.mark.parametrize(("found", "ratio"), [(1.0, 2.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0), (8.0, 0.5)])
def test_how_far_a_number_is_from_a_range(found, ratio):
    import plan

    assert plan.off(2.0, 4.0, found) == ratio
