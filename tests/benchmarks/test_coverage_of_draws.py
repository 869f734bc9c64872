"""Intervals from some of the examples, in small, and what the committed result says of them."""

import json

from tests.benchmarks.test_benchmarks import rows_of, run


def test_coverage_of_draws_in_small(tmp_path):
    import coverage_of_draws as coverage

    result = run(coverage, tmp_path, "--repetitions 10 --populations logistic --sizes 100")
    (row,) = result["rows"]
    assert (row["examples"], row["of"]) == (100, coverage.K)
    assert all(0.6 <= share <= 1 for share in row["covered"].values())
    assert len(rows_of(coverage.table(result))) == 1


def test_the_committed_intervals_hold_what_they_say():
    import coverage_of_draws as coverage

    for row in json.loads(coverage.BENCHMARK.result.read_text())["rows"]:
        for what in ("curvatures", "first candidate"):  # those of the draw alone
            assert 0.92 <= row["covered"][what] <= 0.98, (row["population"], row["examples"], what)
        assert row["covered"]["expectation"] > row["covered"]["without a draw"] - 0.03
