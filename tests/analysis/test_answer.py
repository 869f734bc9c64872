"""The answer in ten lines: each sentence against the numbers that it stands for, and what is not said."""

import json
import math
from dataclasses import replace

import pytest
import torch

import curvprobe as cp
from curvprobe.analysis.answer import short
from curvprobe.criteria.row_errors import RowErrors
from curvprobe.criteria.sample_size import OF_MEAN_WEIGHT
from curvprobe.runtime.plain import to_json
from tests.analysis.sound import GOOD, shape_of, sized


def test_what_is_printed_line_by_line(sound):
    assert str(sound.answer).split("\n") == [
        "45 parameters (float64), k = 30, 10 candidates",
        "one more example moves the loss here by 0.001 [5e-4, 0.002] (0.2 % of 0.500); as many again by 0.01 [0.005, "
        "0.02]; 3 of 10 (4, 1, 2) make 70 % of that mean square",
        "over 99.9 % of its square is its mean over the probe (level); tilt and bend about that: 2e-5 [1e-5, 3e-5], "
        "60 % along direction 2, 30 % along direction 4",
        "loss 0.500 on the sample, 0.612 on the candidates",
        "trust: minimum YES (|g| 1e-8, whole space) | quadratic YES (1.1 % of the whole, 3 % of tilt and bend) | "
        "eigenspace YES (4 of 4) | precision YES (float64)",
        f"next: to compare runs, give all of them this sigma: {sound.sigma:.3g}",
        f"sigma {sound.sigma:.3g} (auto: the largest validated; fix it to compare runs), D = 4",
    ]
    assert str(sound) == f"{sound.answer}\ndetails: analysis.table()"
    assert sound.answer.word == "yes"
    assert sound.answer.judgement is None


@pytest.mark.parametrize("tolerance", [None, 1e-2])
def test_never_more_than_ten_lines(case, tolerance):
    found = cp.analyze(case.risk(), case.candidates, dim=2, tolerance=tolerance, num_probes=8)
    assert len(str(found).split("\n")) <= 10


def test_a_point_that_training_leaves_gets_no_numbers(sound):
    moving = sized(replace(sound, stationarity=cp.Stationarity(2.0, 1.0, 0.1, 0.3, 50.0, 0.5)), 1e-3)
    text = str(moving.answer)
    assert "NO ANSWER: the point is not stationary" in text
    assert "next: train on, or put what else was trained with (weight decay) into the loss" in text
    assert "minimum NO" in text
    assert "moves the loss" not in text
    assert "tolerance 0.001: CANNOT TELL; see above" in text
    assert "3,2" not in text
    assert "make " not in text
    assert (moving.answer.judgement, moving.answer.word) == ("cannot tell", "no")


@pytest.mark.parametrize(
    ("error", "said", "unsaid", "word"),
    [
        (replace(GOOD, total=0.8), "NO ANSWER: the quadratic model is off (total invalid", "moves the loss", "no"),
        (
            replace(GOOD, shape=0.8),
            "tilt and bend about that: not told, as the quadratic model is off",
            "direction 2",
            "doubt",
        ),
        (replace(GOOD, total=0.3), "moves the loss", "NO ANSWER", "doubt"),
        (replace(GOOD, shape=0.3), "tilt and bend about that: 2e-5", "NO ANSWER", "doubt"),
        (replace(GOOD, shape=math.nan), "quadratic YES (1.1 % of the whole)", "tilt and bend)", "yes"),
    ],
)
def test_numbers_that_the_model_does_not_carry_are_not_told(sound, error, said, unsaid, word):
    found = replace(sound, errors=RowErrors({0: error}, error, 10)).answer
    assert said in str(found)
    assert unsaid not in str(found)
    assert found.word == word
    if word != "yes":
        assert "take a smaller sigma" in found.advice


def test_without_errors_of_rows_the_pooled_verdict_counts(sound):
    found = replace(sound, errors=None)
    off = 100 * found.validity.error_at(found.sigma)
    assert f"quadratic YES ({off:.2g} %)" in str(found.answer)
    beyond = replace(found, sigma=1e9).answer
    assert "NO ANSWER: the quadratic model is" in str(beyond)


@pytest.mark.parametrize(
    ("tolerance", "of", "judgement"),
    [
        (3e-3, "total", "within tolerance"),
        (2e-3, "total", "within tolerance"),
        (1e-3, "total", "cannot tell"),
        (4e-4, "total", "not within"),
        (4e-5, "shape", "within tolerance"),
        (2e-5, "shape", "cannot tell"),
        (5e-6, "shape", "not within"),
    ],
)
def test_the_tolerance_is_judged_by_the_interval(sound, tolerance, of, judgement):
    asked = {"tolerance": tolerance, "tolerance_on": of}
    found = sized(replace(sound, config=sound.config | asked), tolerance, of)
    assert found.answer.judgement == judgement
    line = f"{judgement.upper()}; if the weights stay, from k = 3,220 [2,260, 5,640]"
    name = f"tolerance {short(tolerance)}" + (" on tilt and bend" if of == "shape" else "")
    assert f"\n{name}: {line}\n" in str(found.answer)
    bounded = replace(found.expected, interval=(1e-14, math.inf), shape_interval=(1e-14, math.inf))
    assert replace(found, expected=bounded).answer.judgement == "cannot tell"


def test_a_size_that_has_a_lower_end_only(sound):
    found = sized(sound, 1e-3, value=None, verdict="at least", interval=(2258.7, math.inf)).answer
    assert "if the weights stay, from k = 2,260 at the earliest" in str(found)
    assert "give more held-out examples: the interval holds the tolerance" in found.advice


def test_a_size_that_was_refused(sound):
    refused = sized(sound, 1e-3, value=None, at_least=None, observed=None, verdict="a step takes more").answer
    assert "tolerance 0.001: CANNOT TELL; a step takes more" in str(refused)


def test_a_relative_tolerance_is_of_the_loss(case):
    found = cp.analyze(case.risk(), case.candidates, dim=2, tolerance=0.01, tolerance_on="relative", num_probes=8)
    assert found.required.tolerance == pytest.approx(0.01 * found.loss)
    assert f"tolerance {short(0.01 * found.loss)} (1 % of the loss): " in str(found.answer)
    on_shape = cp.analyze(case.risk(), case.candidates, dim=2, tolerance=0.01, tolerance_on="shape", num_probes=8)
    judged = {"validity": on_shape.validity, "stationarity": on_shape.stationarity}
    alone = cp.required_sample_size(on_shape.sample, on_shape.fresh, on_shape.sigma, 0.01, of="shape", **judged)
    assert on_shape.required == alone
    with pytest.raises(cp.ArgumentError, match="tolerance_on is 'level'"):
        cp.analyze(case.risk(), case.candidates, tolerance=0.01, tolerance_on="level")


def test_what_the_eigenspace_and_the_precision_are_worth(sound):
    space = sound.spectrum
    for changes, mark, advice in (
        ({"converged": space.converged & (torch.arange(4) < 3)}, "eigenspace DOUBT (3 of 4)", "raise max_matvecs"),
        ({"cut_decided": False}, "eigenspace DOUBT (4 of 4, cut after 4 not decided)", "take another D than 4"),
        ({"converged": torch.zeros(4, dtype=torch.bool)}, "eigenspace NO (0 of 4)", "raise max_matvecs"),
    ):
        found = replace(sound, spectrum=replace(space, **changes)).answer
        assert mark in str(found)
        assert advice in found.advice
        assert found.word == ("no" if "NO" in mark else "doubt")
    sigmas, verdicts = sound.validity.sigmas, ("invalid",) * 4 + ("valid",) * (len(sound.validity.sigmas) - 4)
    error = torch.tensor([0.01 if v == "valid" else 0.9 for v in verdicts], dtype=torch.float64)
    rounded = replace(sound.validity, verdicts=verdicts, increment_error=error)
    below = replace(sound, validity=rounded, sigma=float(sigmas[2])).answer
    assert f"precision NO (float64 rounds below sigma {float(sigmas[4]):.2g})" in str(below)
    assert "precision YES" in str(replace(sound, validity=rounded, sigma=float(sigmas[4])).answer)
    coarse = cp.Examination((cp.Finding("precision", "doubt", "a product is off by 1 %", "float64"),))
    assert "precision DOUBT (float64) | checks DOUBT (precision)" in str(replace(sound, examination=coarse).answer)


def test_intervals_without_an_upper_end_and_what_to_do(sound):
    open_above = replace(sound.expected, interval=(0.25e-6, math.inf))
    found = replace(sound, expected=open_above).answer
    assert "by 0.001 [5e-4, no upper end]" in str(found)
    assert found.advice == "give 250 held-out examples or more: fewer set no upper end"
    many = replace(open_above, contributions=torch.ones(300, dtype=torch.float64))
    assert "a few examples make the whole mean" in replace(sound, expected=many).answer.advice
    unknown = replace(sound.expected, interval=(0.0, math.inf))
    assert "by 0.001 [no interval]" in str(replace(sound, expected=unknown).answer)


def test_other_orders_and_single_candidates(case, sound):
    cubic = cp.analyze(case.risk(), case.candidates, dim=2, p=3.0, num_probes=8)
    assert f"moves the loss here (order 3) by {short(cubic.expected.rms)} [" in str(cubic.answer)
    alone = cp.analyze(case.risk(), dim=2, num_probes=8)
    assert "1 candidate, so the sample stands for what comes" in alone.answer.model
    assert "of the sample's 29 (" in str(alone.answer)
    assert "on the candidates" not in str(alone.answer)
    assert ", no upper end]" in str(alone.answer)
    settled = replace(alone, stationarity=sound.stationarity)
    assert "give examples that the weights were not fitted to" in settled.answer.advice
    assert math.isnan(alone.held_out_loss)
    few = cp.analyze(case.risk()[:2], dim=2, num_probes=8)
    assert "NO ANSWER" in str(few.answer)
    assert "2 notes in the details" in str(replace(sound, notes=("one", "two")).answer)


def test_the_held_out_loss_is_weighted(analysis, case):
    new = case.risk().on(case.candidates)
    assert analysis.held_out_loss == pytest.approx(new.value(), rel=1e-12)


def test_shares_are_never_rounded_to_all_or_nothing(sound):
    for shape, said in ((1e-6, "none of its square"), (1e-10, "over 99.9 %"), (5e-9, "99.5 %"), (0.3e-6, "70 %")):
        expected = replace(sound.expected, **shape_of(shape))
        assert f"{said}" in str(replace(sound, expected=expected).answer).split("\n")[2]


def test_what_is_not_told_from_noise_has_no_number(sound):
    noise = replace(sound, doubling=replace(sound.doubling, value=-1e-4, interval=(0.0, math.inf)))
    assert "; what as many again do is not told from noise; 3 of 10" in str(noise.answer)
    assert "as many again by" not in str(noise.answer)


def test_a_maximum_and_a_saddle(sound):
    space = sound.spectrum
    down = replace(sound, spectrum=replace(space, eigenvalues=-space.eigenvalues.abs())).answer
    assert "NO ANSWER: the point is no minimum: the loss bends upwards along none of the 4 directions" in str(down)
    assert "minimum NO (|g| 1e-8, whole space, curvature -" in str(down)
    assert down.advice.startswith("train on")
    values = space.eigenvalues.clone()
    values[3] = -0.1 * values[0]
    saddle = replace(sound, spectrum=replace(space, eigenvalues=values)).answer
    assert f"minimum DOUBT (|g| 1e-8, whole space, curvature {short(float(values[3]))} along one direction)" in str(
        saddle
    )
    assert "moves the loss" in str(saddle)
    values[3] = -1e-9 * values[0]
    assert replace(sound, spectrum=replace(space, eigenvalues=values)).answer.word == "yes"


def test_one_example_leaves_nothing_to_judge_a_minimum_by(sound):
    alone = replace(sound, stationarity=replace(sound.stationarity, moving_ratio=math.nan)).answer
    assert "minimum DOUBT (|g| 1e-8, whole space, and no scatter to judge it by)" in str(alone)


def test_another_order_does_not_judge_a_root_mean_square(sound):
    other = sized(replace(sound, expected=replace(sound.expected, p=1.0), doubling=None), 3e-3)
    assert other.answer.judgement == "cannot tell"
    assert "tolerance 0.003 (of the root mean square, which order 1 is not): CANNOT TELL; if the" in str(other.answer)
    assert "holds the tolerance" not in other.answer.advice


def test_the_sample_itself_never_shows_that_a_tolerance_is_met(sound):
    own = sized(replace(sound, expected=replace(sound.expected, pool=True)), 1.0)
    assert own.answer.judgement == "cannot tell"
    assert sized(own, 1e-5).answer.judgement == "not within"


def test_sizes_of_unequal_weight_say_how_they_count(sound):
    assert "counted at the candidates' mean weight" in str(sized(sound, 1e-3, assumptions=OF_MEAN_WEIGHT).answer)
    assert "mean weight" not in str(sized(sound, 1e-3).answer)


def test_sizes_are_rounded_up(sound):
    found = sized(sound, 1e-3, value=1231, interval=(1000.0, 99.2)).answer
    assert "from k = 1,240 [1,000, 100]" in str(found)


def test_a_loss_of_nothing_has_no_share(sound):
    for loss in (0.0, -0.3, 1e-30):
        assert "% of " not in str(replace(sound, loss=loss).answer).split("\n")[1].split("; 3 of")[0]


def test_a_tolerance_needs_something_to_be_on(case):
    with pytest.raises(cp.ArgumentError, match="tolerance_on is 'shape' without a tolerance"):
        cp.analyze(case.risk(), case.candidates, tolerance_on="shape")
    zero = cp.EmpiricalRisk(case.model, lambda outputs, _: 0 * outputs.sum(1), case.data)
    with pytest.raises(cp.ArgumentError, match="the loss at the solution is 0, and no tolerance is relative to it"):
        cp.analyze(zero, case.candidates, tolerance=0.1, tolerance_on="relative")


def test_the_bottom_of_the_spectrum_says_nothing_of_its_top(sound):
    values = -0.01 * sound.spectrum.eigenvalues.abs()
    bottom = replace(sound, spectrum=replace(sound.spectrum, eigenvalues=values), config={"which": "smallest"})
    assert "NO ANSWER" not in str(bottom.answer)
    assert "minimum DOUBT" in str(bottom.answer)


def test_nothing_that_moves_is_no_fault_of_sigma(sound):
    flat = replace(sound, expected=replace(sound.expected, value=0.0, **shape_of(0.0)))
    assert "NO ANSWER: on the quadratic model nothing moves" in str(flat.answer)
    assert "smaller sigma" not in str(flat.answer)


def test_a_point_that_nothing_explains_stays_one_when_it_is_read_back(sound):
    moving = replace(sound, stationarity=replace(sound.stationarity, moving_ratio=math.inf))
    record = json.loads(to_json(moving.to_json()))
    bulk = {"subspace": sound.subspace, "sample": sound.sample, "fresh": sound.fresh}
    assert str(cp.Analysis.from_json(record, **bulk)) == str(moving)
    assert "minimum NO" in str(moving)


def test_a_step_that_takes_more_than_is_measured_is_a_doubt(sound):
    """The gradient of few examples may be within their scatter at a point that was hardly trained."""
    for step, word in ((0.9e-3, "YES"), (0.06, "DOUBT")):
        found = replace(sound, stationarity=replace(sound.stationarity, step_decrease=step)).answer
        assert f"minimum {word} (|g| 1e-8, whole space" in str(found)
    assert "; a few steps take 0.06 off the loss)" in str(found)
    assert found.advice.startswith("train on")
    for descent, word in ((0.9e-3, "yes"), (0.02, "doubt"), (math.nan, "yes")):
        fallen = replace(sound, stationarity=replace(sound.stationarity, descent=descent))
        assert fallen.answer.trust[0].word == word
        assert fallen.answer.advice.startswith("train on") == (word == "doubt")


def test_a_notebook_shows_the_answer_escaped(sound):
    named = replace(sound, dtype="<b>")
    html = named._repr_html_()
    assert "&lt;b&gt;" in html
    assert "(<b>)" not in html
    for mark in sound.answer.trust:
        assert f"<td>{mark.name}</td><td>" in html
    assert html.count("<li>") == len(sound.answer.findings)
    asked = sized(sound, 1e-3)
    assert asked.answer.tolerance
    assert asked.answer.tolerance in asked._repr_html_()


def test_a_part_of_the_model_is_said_to_be_one(case):
    found = [
        cp.analyze(case.risk(params=params), case.candidates, dim=1, num_probes=8, stages="quick")
        for params in (None, ["2.*"])
    ]
    whole, part = (analysis.answer for analysis in found)
    total = sum(p.numel() for p in case.model.parameters())
    few = sum(p.numel() for p in case.model[2].parameters())
    assert whole.model.startswith(f"{total:,} parameters (")
    assert part.model.startswith(f"{few:,} of {total:,} parameters (")
    assert ["whole space" in str(said) for said in (whole, part)] == [True, False]
    assert "all that are probed" in str(part)
    ranking = found[0].table().split("Candidates that would move it most")[1]
    assert "nan" not in ranking  # quick stages take no gradient norms
    assert "projected gradient" in ranking
