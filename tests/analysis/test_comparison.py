"""Runs side by side: at one sigma, with the words that their errors allow."""

import math
from dataclasses import replace

import pytest
import torch

import curvprobe as cp
from curvprobe.numerics.intervals import freedom, student_reach
from tests.analysis.sound import without_doubts


@pytest.fixture(scope="module")
def pair(case, tmp_path_factory):
    """The same network at two weights, each analysed at a sigma of its own, and its folder."""
    found = []
    for i, sigma in enumerate((0.05, 0.02)):
        folder = tmp_path_factory.mktemp("runs") / f"run{i}"
        with torch.no_grad():
            case.model[0].weight.mul_(1 + 0.3 * i)
        found.append((cp.analyze(case.risk(), case.candidates, dim=3, sigma=sigma, num_probes=8, out=folder), folder))
        with torch.no_grad():
            case.model[0].weight.div_(1 + 0.3 * i)
    return found


def still(analysis):
    """As if at a minimum."""
    return replace(analysis, stationarity=cp.Stationarity(1e-8, 1e-9, 1e-18, 1e-18, 0.0, 0.0))


def test_all_are_taken_at_the_smallest_sigma(pair):
    analyses = [still(analysis) for analysis, _ in pair]
    found = cp.compare(analyses)
    assert found.sigma == 0.02
    assert [run.name for run in found.runs] == ["1", "2"]
    for run, analysis in zip(found.runs, analyses, strict=True):
        expected = cp.expected_criterion(analysis.sample, analysis.fresh, 0.02)
        assert run.rms == pytest.approx(expected.rms, rel=1e-12)
        assert run.shape_rms == pytest.approx(expected.shape_rms, rel=1e-12)
        assert run.rms_interval == pytest.approx(expected.rms_interval)
        assert (run.loss, run.held_out_loss, run.k, run.dim) == (analysis.loss, analysis.held_out_loss, 30, 3)
    assert found.runs[0].ratio == 1.0
    assert found.runs[0].differs is False
    assert found.runs[1].ratio == pytest.approx(found.runs[1].rms / found.runs[0].rms)


def test_the_same_candidates_are_compared_one_by_one(pair):
    first, second = (still(analysis) for analysis, _ in pair)
    found = cp.compare([first, second])
    assert found.paired
    terms = [cp.expected_criterion(a.sample, a.fresh, 0.02).contributions for a in (first, second)]
    difference = terms[1] - terms[0]
    reach = student_reach(float(difference.std()) / len(difference) ** 0.5, freedom(difference))
    assert found.runs[1].differs is (abs(float(difference.mean())) > reach)
    overlap = (first.subspace.basis.T @ second.subspace.basis).square().sum() / 3
    assert found.runs[1].overlap == pytest.approx(float(overlap), rel=1e-9)
    assert found.runs[0].overlap == pytest.approx(1.0, rel=1e-6)


def test_other_candidates_are_compared_by_their_intervals(analysis):
    sound = without_doubts(analysis)

    def of(value, low, high):
        return replace(
            sound,
            expected=replace(sound.expected, value=value, interval=(low, high)),
            fresh=replace(sound.fresh, digests=()),
        )

    for other, differs in ((of(4e-6, 3e-6, 5e-6), False), (of(9e-6, 5e-6, 1e-5), True), (of(1e-7, 1e-8, 2e-7), True)):
        assert cp.compare([of(1e-6, 0.25e-6, 4e-6), other]).runs[1].differs is differs
    unbounded = of(4e-6, 3e-6, math.inf)
    found = cp.compare([of(1e-6, 0.25e-6, 4e-6), unbounded])
    assert found.runs[1].differs is None
    assert not found.paired
    assert "cannot tell" in str(found)


def test_folders_of_runs_and_their_names(pair):
    folders = [folder for _, folder in pair]
    found = cp.compare(folders)
    assert [run.name for run in found.runs] == ["run0", "run1"]
    assert [run.name for run in cp.compare(folders, names=["a", "b"]).runs] == ["a", "b"]
    frame = found.to_dataframe()
    assert frame.index.tolist() == ["run0", "run1"]
    assert {"rms", "rms_low", "rms_high", "shape_rms", "ratio", "differs", "overlap"} <= set(frame.columns)
    with pytest.raises(cp.ArgumentError, match="1 names came for 2 runs"):
        cp.compare(folders, names=["a"])
    with pytest.raises(cp.ArgumentError, match="needs at least 2"):
        cp.compare(folders[:1])


def test_a_run_without_an_answer_has_no_numbers(pair):
    moving = replace(pair[0][0], stationarity=cp.Stationarity(2.0, 1.0, 0.1, 0.3, 50.0, 0.5))
    found = cp.compare([still(pair[1][0]), moving], names=["still", "moving"])
    assert math.isnan(found.runs[1].rms)
    assert math.isnan(found.runs[1].ratio)
    assert found.runs[1].differs is None
    assert "no answer" in str(found)
    assert "doubt: moving: the point is not stationary" in str(found)
    turned = cp.compare([moving, still(pair[1][0])])
    assert math.isnan(turned.runs[1].ratio)
    assert turned.runs[1].rms > 0


def test_what_makes_runs_unlike_is_a_doubt(pair):
    first = still(pair[0][0])
    fewer = replace(first, spectrum=replace(first.spectrum, eigenvalues=first.spectrum.eigenvalues[:2]), k=20)
    text = str(cp.compare([first, fewer]))
    assert "doubt: the runs are of 3, 2 directions, and the criterion grows with D" in text
    assert "doubt: the samples are of different sizes" in text
    assert "doubt: 10 candidates: what is rarer than 1 in 3 among those to come was not compared" in text
    assert "different sizes" not in str(cp.compare([first, first]))


def test_the_table(analysis):
    sound = without_doubts(analysis)
    lines = str(cp.compare([sound, sound], names=["a", "recipe b"])).split("\n")
    assert lines[0].split("  ")[0] == "run"
    assert lines[1].startswith("a         30  0.500  0.612       0.001 [5e-4, 0.002]   2e-5 [1e-5, 3e-5]")
    assert "1 times, not told apart" in lines[2]
    assert lines[3] == f"sigma {sound.sigma:.3g} for all; differences are judged candidate by candidate, at 95 %"


def test_a_notebook_shows_the_same_table_with_names_as_text(analysis):
    sound = without_doubts(analysis)
    html = cp.compare([sound, sound], names=["a", "<script>"])._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert html.count("<tr>") == 3
    assert "differences are judged candidate by candidate" in html
