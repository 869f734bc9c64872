"""What make endurance does, with few examples: files of a run that are damaged or hostile, and a kill in each stage."""

import copy
import importlib
import json
import random
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import curvprobe as cp

FOLDER = Path(__file__).parents[1] / "endurance"
sys.path.insert(0, str(FOLDER))
fuzz, kills = importlib.import_module("fuzz"), importlib.import_module("kills")
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


def test_a_value_that_is_put_twice_does_not_lie_within_itself():
    record, value = {"a": 0}, {"x": 1}
    fuzz.put(record, ("a",), value)
    fuzz.put(record, ("a", "x"), value)
    assert json.loads(json.dumps(record)) == {"a": {"x": {"x": 1}}}
    assert value == {"x": 1}


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


STAGES = ["first", "second", "figures"]

STAGED = """
import pathlib, time
out = pathlib.Path({out!r})
out.mkdir()
(out / ".lock").touch()
for name in ("first.json", "second.json", "figure.png"):
    time.sleep(0.3)
    (out / name).touch()
"""
"""A run in name only: three stages, one after the other."""


def test_every_stage_is_aimed_at_until_a_kill_fell_in_it():
    rng, fell, aimed = random.Random(0), Counter(), Counter()
    for _ in range(12):
        stage = kills.next_aim(fell, aimed, STAGES, rng)
        aimed[stage] += 1
        fell[STAGES[1] if stage == STAGES[0] else stage] += 1  # the first one is always missed
    assert fell.total() == 12
    assert aimed[STAGES[0]] > aimed[STAGES[1]]
    assert 2 <= fell[STAGES[2]] <= aimed[STAGES[2]]


def test_a_kill_falls_in_the_stage_it_is_meant_for_and_its_stage_is_told(tmp_path):
    def staged(name):
        process = kills.SERVER.Process(target=exec, args=(STAGED.format(out=str(tmp_path / name)),))
        process.start()
        return [process]

    assert kills.ended(staged("whole")) == [0]
    seconds = kills.stages_of(tmp_path / "whole")
    assert list(seconds) == STAGES
    assert all(0.25 < took < 3 for took in seconds.values())
    for stage, begun in zip(STAGES, (".lock", "first.json", "second.json"), strict=True):
        out = tmp_path / stage
        assert kills.killed(staged(stage), out / begun, 0.1)
        assert kills.fell_in(out, STAGES) == stage
        assert not (out / "figure.png").exists()
    assert not kills.killed(staged("ended"), tmp_path / "ended" / "figure.png", 1.0)


def test_results_that_differ_in_more_than_their_times_are_told():
    one = {"seconds": 1.0, "rows": [{"value": 1.0, "seconds": 2.0}, {"value": 2.0}]}
    assert not list(kills.differences(one, one | {"seconds": 3.0}))
    assert list(kills.differences(one, {"rows": [{"value": 1.0}, {"value": 3.0}]})) == ["rows[1].value: 2.0 and 3.0"]
    assert len(list(kills.differences(one, one | {"rows": [], "new": 0}))) == 2
