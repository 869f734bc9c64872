"""The command that forecasts: what it prints, leaves and refuses."""

import json

import pytest

import curvprobe as cp
from tests.cli.test_cli import invoke

TRAINING = """
import torch
import curvprobe as cp

x = torch.randn(800, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
y = x.sum(1, keepdim=True) + torch.randn(800, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

def fit(rows):
    model = torch.nn.Linear(20, 1, bias=False).double()
    model.weight.data = torch.linalg.lstsq(x[rows], y[rows]).solution.T.contiguous()
    return cp.Task(model, cp.losses.mse, (x[rows], y[rows]), (x[200:], y[200:]))

def train(k):
    return fit(list(range(k)))

def bare(rows):
    made = fit(rows)
    return cp.Task(made.model, made.loss, made.data)

def equal(rows):
    made = fit(rows)
    return cp.Task(made.model, made.loss, made.data, (x[150:], y[150:]))

def wrong(rows):
    return 3
"""


@pytest.fixture
def training(tmp_path):
    path = tmp_path / "my_training.py"
    path.write_text(TRAINING)
    return path


def test_it_says_what_it_costs_and_leaves_a_result(training, tmp_path):
    ended = invoke("forecast", f"{training}:fit", "--k", 200, "--out", tmp_path / "out")
    assert ended.exit_code == 0
    assert "13 models are trained: as much work as 6 trainings on 200 examples." in ended.stderr
    found = cp.load(tmp_path / "out")
    assert str(found) in ended.stdout
    assert sorted(path.name for path in (tmp_path / "out").glob("*.*") if path.suffix in {".html", ".png", ".pdf"}) == [
        "forecast.pdf",
        "forecast.png",
        "report.html",
    ]
    again = invoke("forecast", f"{training}:fit", "--k", 200, "--out", tmp_path / "out", "--json")
    assert json.loads(again.stdout)["losses"] == found.losses.tolist()
    assert invoke("report", tmp_path / "out", "--title", "mine").exit_code == 0
    assert "<title>mine</title>" in (tmp_path / "out" / "report.html").read_text()


def test_a_function_of_k_and_several_processes(training):
    ended = invoke("forecast", f"{training}:train", "--k", 200, "--processes", 2)
    assert "3 models are trained, 2 at a time" in ended.stderr
    assert "when trained on 200" in ended.stdout


def test_equal_examples_are_taken_on_request(training):
    assert invoke("forecast", f"{training}:equal", "--k", 200, "--allow-overlap").exit_code == 0


@pytest.mark.parametrize(
    ("function", "k", "said"),
    [
        ("bare", 200, "returned a Task without candidates; expected examples that no training sees"),
        ("equal", 200, "50 of the 650 held-out examples are among those that were trained on"),
        ("wrong", 200, "returned a int; expected a curvprobe.Task"),
        ("fit", 12, "--k is 12; expected at least 16"),
        ("none", 200, "has no function 'none'"),
    ],
)
def test_what_cannot_be_forecast_is_said(training, function, k, said):
    ended = invoke("forecast", f"{training}:{function}", "--k", k)
    assert ended.exit_code == 1
    assert said in ended.output


def test_a_report_has_it_in_a_panel_apart(training, task_file, tmp_path):
    assert invoke("run", f"{task_file}:task", "--out", tmp_path / "run", "--dim", 2).exit_code == 0
    assert invoke("forecast", f"{training}:fit", "--k", 200, "--out", tmp_path / "ahead").exit_code == 0
    assert "does more data help" not in (tmp_path / "run" / "report.html").read_text()
    assert invoke("report", tmp_path / "run", "--forecast", tmp_path / "ahead").exit_code == 0
    html = (tmp_path / "run" / "report.html").read_text()
    assert "Another question: does more data help?" in html
    assert cp.load(tmp_path / "ahead").grounds()[0] in html
    refused = invoke("report", tmp_path / "run", "--forecast", tmp_path / "run")
    assert "which is the folder of no forecast" in refused.output
    assert "a forecast; it goes with an analysis" in invoke("report", tmp_path / "ahead", "--names", training).output
