"""The benchmark of work beside other work, with little of it."""

from tests.benchmarks.test_benchmarks import run


def test_work_is_timed_idle_and_beside_other_work(tmp_path, capsys):
    import load

    result = run(load, tmp_path, "--dim 2 --repeats 1 --others 1 --turns 0")
    assert {name: len(row) for name, row in result["rows"].items()} == {"eigenspace": 4, "projections": 4}
    assert "| eigenspace | one | " in capsys.readouterr().out
    told = {**result, "waiting": {"active": [1.0, 2.0, 1.0], "passive": [1.1, 2.4, 1.1]}}
    assert "make a product of the NanoChat 10 % longer on an idle machine" in load.table(told)
