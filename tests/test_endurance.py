"""What make endurance does, with few examples: files of a run that are damaged or hostile."""

import copy
import importlib
import json
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import curvprobe as cp

FOLDER = Path(__file__).parents[1] / "endurance"
sys.path.insert(0, str(FOLDER))
fuzz = importlib.import_module("fuzz")
sys.path.remove(str(FOLDER))

FEW = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=timedelta(seconds=20),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder and its record."""
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 24, dtype=torch.float64)[:, None]
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[::2], x[::2].sin()))
    folder = tmp_path_factory.mktemp("run")
    cp.analyze(risk, (x[1::2], x[1::2].sin()), dim=2, num_probes=4, tolerance=0.1, stages="quick", out=folder)
    return folder, json.loads((folder / "result.json").read_text())


def test_a_result_of_anything_is_read_or_refused(run, tmp_path):
    path, record = tmp_path / "result.json", run[1]

    @FEW
    @given(fuzz.mutated_json(record) | fuzz.mutated_bytes(json.dumps(record).encode()))
    def check(content):
        path.write_bytes(content)
        fuzz.loads(path)

    check()


def test_a_stage_of_anything_is_found_as_it_was_or_computed_again(tmp_path):
    fuzz.goes_on(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in ("kept.json", "kept.safetensors")}

    @FEW
    @given(st.data())
    def check(data):
        for name, content in whole.items():
            (tmp_path / name).write_bytes(content)
        name = data.draw(st.sampled_from(list(whole)))
        changed = fuzz.mutated_bytes(whole[name])
        if name == "kept.json":
            changed |= fuzz.mutated_json(json.loads(whole[name]))
        (tmp_path / name).write_bytes(data.draw(changed))
        fuzz.goes_on(tmp_path)

    check()


def test_a_state_of_anything_is_continued_as_it_was_or_not_at_all(tmp_path):
    path = tmp_path / "state"
    whole = fuzz.unfinished(path)

    @FEW
    @given(fuzz.mutated_bytes(whole))
    def check(content):
        path.write_bytes(content)
        fuzz.continues(path)

    check()
    path.write_bytes(whole)
    assert fuzz.continues(path) == "continued"


def test_markup_in_a_result_is_shown_as_text(run, tmp_path):
    folder, record = run[0], copy.deepcopy(run[1])
    record["notes"] = [fuzz.MARKUP]
    record["sample"]["dtype"] = record["sigma"]["source"] = fuzz.MARKUP
    record["versions"] = dict.fromkeys(record["versions"], fuzz.MARKUP)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "result.json").write_text(json.dumps(record))
    names = [fuzz.MARKUP] * record["sample"]["num_candidates"]
    html = cp.load(tmp_path).to_html(tmp_path / "page.html", title=fuzz.MARKUP, names=names).read_text()
    assert "<script>alert(1)" not in html
    assert cp.compare([tmp_path, folder]).to_html(tmp_path / "both.html").read_text().count("<script>alert") == 0
