"""What the command tells of an analysis before it is made."""

import json

import pytest

from tests.cli.test_cli import invoke


def test_a_line_for_every_stage_and_their_sum(task_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = set(tmp_path.iterdir())
    result = invoke("plan", f"{task_file}:task", "--dim", 2, "--k", 10)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["stage", "products", "examples", "displaced", "losses", "time", "memory"]
    assert [line.split()[0] for line in lines[2:5]] == ["eigenspace", "sample", "candidates"]
    assert lines[15].startswith("in all")
    assert max(map(len, lines)) <= 80
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == files


def test_json_alone_and_the_same_by_a_dry_run_which_leaves_nothing(task_file, tmp_path):
    options = [f"{task_file}:task", "--dim", 2, "--stages", "quick", "--json"]
    planned = json.loads(invoke("plan", *options).stdout)
    dry = json.loads(invoke("run", *options, "--out", tmp_path / "out", "--dry-run").stdout)
    for record in (planned, dry):
        for row in (*record["stages"], record["total"]):
            del row["seconds"]
    assert planned == dry
    assert [row["name"] for row in dry["stages"]][-1] == "stationarity"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--dim", 0], 2),
        (["--surface", 2], 2),
        (["--sigma", "wide"], 2),
        (["--device", "nowhere"], 2),
        (["--memory-budget", -1], 2),
        (["--out", "runs/mine"], 2),
        (["--k", 99], 1),
        (["--dim", 99], 1),
    ],
)
def test_wrong_usage_and_what_is_refused(task_file, options, code):
    assert invoke("plan", f"{task_file}:task", *options).exit_code == code


def test_what_run_refuses_is_said(task_file):
    result = invoke("plan", f"{task_file}:noisy")
    assert result.exit_code == 1
    assert "call model.eval()" in result.output
