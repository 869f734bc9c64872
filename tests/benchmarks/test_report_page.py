"""The benchmark of the report, on a small run."""

from tests.benchmarks.test_benchmarks import run


def test_the_report_of_a_small_run_is_measured(tmp_path, capsys):
    import report_page

    result = run(report_page, tmp_path, "--k 60 --candidates 20 --dim 3 --repeats 1")
    assert (result["k"], result["dim"], result["candidates"]) == (60, 3, 20)
    assert 500_000 < result["bytes"] < 2_000_000
    assert "| size | " in capsys.readouterr().out
    assert "not measured" in report_page.table({**result, "open_seconds": None})
