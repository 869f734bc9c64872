"""Analyses from some of a sample's examples."""

import json

import pytest
import torch
from typer.testing import CliRunner

import curvprobe as cp
from curvprobe.analysis.stages import Job, Settings
from curvprobe.cli import app

TASK = """
import torch, curvprobe as cp
def task():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(640, 3, generator=draw, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64) + torch.randn(640, generator=draw, dtype=torch.float64)
    model = torch.nn.Linear(3, 1).double()
    ones = torch.cat([x[:600], torch.ones(600, 1, dtype=torch.float64)], dim=1)
    found = torch.linalg.lstsq(ones, y[:600, None]).solution[:, 0]
    model.weight.data, model.bias.data = found[None, :3].clone(), found[3:].clone()
    return cp.Task(model, cp.losses.mse, (x[:600], y[:600, None]), (x[600:], y[600:, None]))
"""


def task() -> cp.Task:
    namespace = {}
    exec(TASK, namespace)
    return namespace["task"]()


@pytest.fixture(scope="module")
def given() -> cp.Task:
    return task()


@pytest.fixture(scope="module")
def whole(given) -> cp.Analysis:
    return cp.analyze(given.risk(), given.candidates, dim=2, sigma=0.1, tolerance=1e-3, stages="quick")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture(scope="module")
def drawn(given, folder) -> cp.Analysis:
    options = {"dim": 2, "sigma": 0.1, "tolerance": 1e-3, "max_examples": 150, "surface": 3, "seed": 4}
    return cp.analyze(given.risk(), given.candidates, **options, out=folder)


def test_what_is_told_is_of_all(whole, drawn):
    assert (drawn.k, drawn.drawn, whole.drawn) == (600, 150, None)
    assert drawn.loss == whole.loss
    assert drawn.delta1.value == pytest.approx(whole.delta1.value, rel=1e-9)
    assert drawn.delta1.stderr == 0
    assert drawn.closed_form.stderr > 0
    assert drawn.expected.rms == pytest.approx(whole.expected.rms, rel=0.1)
    assert drawn.required.observed == pytest.approx(whole.required.observed, rel=0.1)
    assert len(drawn.sample) == 150
    assert drawn.decay.ks[-1] == 600


def test_curvatures_are_of_all_along_directions_that_others_gave(given, drawn):
    exact = cp.mean_projection(given.risk(), drawn.subspace).hessian[0].diagonal()
    assert ((drawn.spectrum.eigenvalues - exact).abs() < 2 * drawn.spectrum.reach).all()
    assert torch.equal(drawn.spectrum.found, drawn.subspace.eigenvalues)


def test_the_answer_and_the_table_say_from_how_many(drawn):
    assert "k = 600 (from 150 of 600 examples, seed 4), 40 candidates" in str(drawn)
    assert "as far as 150 examples tell" in str(drawn)
    assert "2 of 2, of 150 drawn" in str(drawn) or "3 of 3, of 150 drawn" in str(drawn)
    assert " drawn)" in next(part for part in str(drawn).split(" | ") if part.startswith("quadratic"))
    assert "600 in the sample (seen by 150 that were drawn)" in drawn.table()
    assert "The isotropic criterion is known from all examples only" in drawn.table()
    assert any("150 examples that were drawn of 600" in note for note in drawn.notes)
    assert " +- " in drawn.table().split("eigenvalues")[1].splitlines()[0]


def test_a_minimum_of_all_is_not_doubted_for_the_noise_of_the_draw(drawn):
    assert drawn.stationarity.refusal(1e-6) is None
    assert drawn.stationarity.step_decrease == 0
    assert {mark.name: mark.word for mark in drawn.answer.trust}["minimum"] == "yes"


def test_a_point_that_moves_is_refused_still(given):
    moved = task()
    moved.model.bias.data += 2.0
    found = cp.analyze(moved.risk(), moved.candidates, dim=2, sigma=0.1, max_examples=150, stages="quick")
    assert "not stationary" in found.stationarity.refusal()


def test_as_many_as_there_are_is_all_of_them(given, whole):
    options = {"dim": 2, "sigma": 0.1, "tolerance": 1e-3, "stages": "quick"}
    again = cp.analyze(given.risk(), given.candidates, **options, max_examples=600)
    one, other = (json.loads(json.dumps(found.to_json(), default=str)) for found in (whole, again))
    for record in (one, other):
        del record["seconds"]
    assert one == other


def test_it_is_read_back_and_written_as_a_page(drawn, folder, tmp_path):
    again = cp.load(folder)
    assert str(again) == str(drawn)
    assert again.table() == drawn.table()
    assert again.sample.size == 600
    assert cp.compare([folder, drawn]).paired is False
    pytest.importorskip("altair")
    assert drawn.to_html(tmp_path / "page.html").stat().st_size > 10_000


def test_the_stages_are_found_again(given, drawn, folder):
    options = {"dim": 2, "sigma": 0.1, "tolerance": 1e-3, "max_examples": 150, "surface": 3, "seed": 4}
    again = cp.analyze(given.risk(), given.candidates, **options, out=folder)
    assert not any(again.seconds.values())
    assert again.metrics() == drawn.metrics()


def test_the_page_widens_its_intervals_as_the_expectation_does(drawn):
    from curvprobe.report.aggregates import aggregates

    sigmas = torch.tensor([0.1], dtype=torch.float64)
    low, high, flat, steep = aggregates(drawn.sample, drawn.fresh, sigmas).intervals[-1, 0].tolist()
    expected = drawn.expected
    assert low == pytest.approx(expected.interval[0], rel=0.02)
    assert flat == pytest.approx(expected.shape_interval[0], rel=0.02)
    assert (high, steep) == (expected.interval[1], expected.shape_interval[1])  # 40 candidates: no upper end


def test_the_draws_of_the_eigenspace_and_of_all_else_are_independent(given):
    settings = Settings(2, 0.1, "algebraic", 1e-3, None, 64, 0, False, max_examples=150)
    job = Job.of(given.risk(), given.risk().on(given.candidates), settings)
    shared = set(job.risk.digests()) & set(job.solved.digests())
    assert 10 < len(shared) < 70  # 37.5 on average


def test_an_overlap_is_looked_for_among_all(given):
    x, y = given.data
    known = (torch.cat([given.candidates[0], x[:1]]), torch.cat([given.candidates[1], y[:1]]))
    with pytest.raises(cp.ArgumentError, match="1 of 41 candidates are in the sample too"):
        cp.analyze(given.risk(), known, dim=2, max_examples=150)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_examples": 99}, "max_examples is 99; expected at least 100"),
        ({"max_examples": 150, "p": 3.0}, "expected p = 2"),
        ({"max_examples": 150, "laws": True}, "laws or concentration"),
        ({"max_examples": 150, "concentration": True}, "laws or concentration"),
    ],
)
def test_what_takes_all_examples_is_refused(given, options, message):
    with pytest.raises(cp.ArgumentError, match=message):
        cp.analyze(given.risk(), given.candidates, dim=2, **options)


def test_fewer_than_two_candidates_are_refused(given):
    for candidates in (None, tuple(part[:1] for part in given.candidates)):
        with pytest.raises(cp.ArgumentError, match="fewer than 2 candidates"):
            cp.analyze(given.risk(), candidates, dim=2, max_examples=150)


def test_the_command_draws_too_and_its_plan_counts_the_pass_over_all(tmp_path):
    (tmp_path / "my_task.py").write_text(TASK)
    options = [f"{tmp_path / 'my_task.py'}:task", "--dim", "2", "--max-examples", "120"]
    out = CliRunner().invoke(app, ["run", *options, "--stages", "quick", "--no-report", "--out", str(tmp_path / "run")])
    assert out.exit_code == 0, out.output
    assert "from 120 of 600 examples, seed 0" in out.stdout
    planned = json.loads(CliRunner().invoke(app, ["plan", *options, "--json"]).stdout)["stages"]
    assert planned[0]["name"] == "drawing"
    assert planned[0]["losses"] == [600, 600]
    assert {row["name"]: row["examples"] for row in planned}["sample"] == 120
