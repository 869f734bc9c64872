import copy
import json
import math
import re
import warnings
from dataclasses import asdict

import numpy
import pytest
import torch

import curvprobe as cp
from tests import cases


def test_numbers_are_those_of_the_functions(case, analysis):
    risk = case.risk()
    new, subspace = risk.on(case.candidates)[:1], analysis.subspace
    law = cp.SubspaceProbe(subspace, analysis.sigma)
    assert analysis.loss == risk.value()
    assert analysis.delta1 == cp.delta1(risk, new)
    closed = cp.delta2_subspace(risk, new, subspace, sigma=analysis.sigma)
    assert analysis.closed_form.value == pytest.approx(closed.value, rel=1e-10)
    assert analysis.direct.value == pytest.approx(cp.direct_monte_carlo(risk, new, law, seed=1).value, rel=1e-10)
    controlled = cp.controlled_monte_carlo(risk, new, law, seed=1)
    assert analysis.controlled.value == pytest.approx(controlled.value, rel=1e-8)
    assert analysis.isotropic.value == cp.delta2(risk, new, sigma=analysis.sigma, seed=1).value
    draws = list(cp.IsotropicProbe(analysis.sigma).displacements(risk, 64, 1))[:32]
    factor = float(new.total_weight / (risk.total_weight + new.total_weight))
    H, slope = cp.hessian(new), new.gradient() - risk.gradient()
    excess = []
    for d in draws:
        true = factor * (new.value(d) - risk.value(d))
        bend = float(d @ (H @ d - cp.hessian(risk) @ d)) / 2
        model = factor * (new.value() - risk.value() + float(slope @ d) + bend)
        excess.append(true**2 - model**2)
    expected = analysis.isotropic_closed_form.value + sum(excess) / 32
    assert analysis.isotropic_controlled.value == pytest.approx(expected, rel=1e-6)
    assert analysis.isotropic_controlled.num_probes == 32


def test_validity_is_judged_at_the_draws_of_monte_carlo(case, analysis):
    risk = case.risk()
    sigma, subspace = analysis.sigma, analysis.subspace
    z = cp.SubspaceProbe(subspace, sigma).coordinates(64, 1)[:16]
    true = torch.tensor([risk.value(subspace.basis @ row) - risk.value() for row in z], dtype=torch.float64)
    mean = analysis.sample.mean()
    model = z @ mean.gradient[0] + torch.einsum("sd,de,se->s", z, mean.hessian[0], z) / 2
    expected = ((true - model).square().mean() / true.square().mean()).sqrt()
    at = int((analysis.validity.sigmas - sigma).abs().argmin())
    assert float(analysis.validity.loss_error[at]) == pytest.approx(float(expected), rel=1e-4)


def test_the_average_over_candidates_is_that_of_single_ones(case, analysis):
    single = [
        cp.gaussian_moment(cp.increment(analysis.sample, analysis.fresh[i]), sigma=analysis.sigma).value
        for i in range(10)
    ]
    assert float(analysis.decay.value[-1, -1, 0]) == pytest.approx(sum(single) / 10, rel=1e-10)
    assert analysis.metrics()["curvprobe/expected_delta2_subspace"] == pytest.approx(sum(single) / 10, rel=1e-10)


def test_auto_sigma_is_the_largest_valid_one(analysis):
    assert analysis.verdict == "valid"
    larger = analysis.validity.sigmas > analysis.sigma
    assert larger.any()
    first = int(larger.nonzero()[0])
    assert analysis.validity.verdicts[first] != "valid"


def test_auto_sigma_is_stable_across_seeds(case):
    sigmas = {cp.analyze(case.risk(), case.candidates, dim=4, seed=seed).sigma for seed in range(4)}
    assert max(sigmas) / min(sigmas) < 4  # at most one half decade apart


def test_a_sigma_outside_the_validated_regime_is_noted(case):
    analysis = cp.analyze(case.risk(), case.candidates, dim=2, sigma=3.0)
    assert analysis.verdict == "invalid"
    assert any("smaller standard error" in note for note in analysis.notes)
    assert "invalid" in analysis.table()


def test_candidates_that_the_sample_holds_are_refused(case):
    x, y = case.data
    with pytest.raises(ValueError, match="1 of 2 candidates are in the sample"):
        cp.analyze(case.risk(), (torch.stack([x[0] + 1, x[4]]), y[[0, 4]]), dim=2)


def test_without_candidates_the_last_example_is_the_next_and_a_note_says_so(case):
    analysis = cp.analyze(case.risk(), dim=2)
    assert (analysis.k, analysis.num_candidates) == (29, 1)
    assert "trained on" in analysis.notes[0]


def test_nonconvergence_is_noted(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cp.ConvergenceWarning)
        analysis = cp.analyze(case.risk(), case.candidates, dim=6, max_matvecs=13, tol=1e-6)
    assert any("eigenpairs converged" in note for note in analysis.notes)


def test_the_model_is_left_as_it_was(case):
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    state = torch.get_rng_state()
    cp.analyze(case.risk(), case.candidates, dim=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in case.model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_candidates_of_another_model_are_refused(case):
    other = cases.make("mlp", seed=5)
    twin = copy.deepcopy(case.model)
    cp.analyze(case.risk(), cp.EmpiricalRisk(twin, case.loss, case.candidates), dim=2)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    moved = cp.EmpiricalRisk(twin, case.loss, case.candidates)
    for wrong in (moved, other.risk()):
        with pytest.raises(ValueError, match=r"make it with risk\.on"):
            cp.analyze(case.risk(), wrong, dim=2)


def test_candidates_in_another_dtype_still_overlap(case):
    x, y = case.data
    with pytest.raises(ValueError, match="2 of 2 candidates"):
        cp.analyze(case.risk(), (x[:2].float(), y[:2].int()), dim=2)


def test_numpy_numbers_are_numbers(case, tmp_path):
    options = {
        "dim": numpy.int64(2),
        "sigma": numpy.float32(0.125),
        "num_probes": numpy.int64(4),
        "seed": numpy.int8(1),
    }
    analysis = cp.analyze(case.risk(microbatch_size=numpy.int64(7)), case.candidates, out=tmp_path, **options)
    assert (analysis.sigma, len(analysis.subspace.eigenvalues)) == (0.125, 2)


@pytest.mark.parametrize("options", [{"num_probes": 1}, {"sigma": -1.0}, {"out": "file"}, {"seed": 2**70}])
def test_what_cannot_work_is_refused_before_any_work(case, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr("curvprobe.analysis.stages.top_eigenspace", lambda *_, **__: pytest.fail("worked"))
    with pytest.raises(ValueError, match=r"num_probes is 1|sigma is -1|can be written|seed is"):
        cp.analyze(case.risk(), case.candidates, **options)


@pytest.mark.parametrize("part", ["parameter", "kept", "buffer"])
def test_a_risk_of_other_weights_is_another_model(part):
    model = cases.make("batch_norm").model
    data = (torch.randn(4, 3, dtype=torch.float64), torch.arange(4) % 3)
    options = {"params": ["0.*"]}
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, data, **options)
    changed = {"parameter": model[0].weight, "kept": model[3].weight, "buffer": model[1].running_mean}[part]
    with torch.no_grad():
        changed += 1e-3
    with pytest.raises(ValueError, match="other weights"):
        cp.delta1(risk, cp.EmpiricalRisk(model, cp.losses.cross_entropy, data, **options))


def test_a_budget_that_is_too_small_is_refused_before_any_work(case, tmp_path):
    footprint = case.risk().footprint
    risk = case.risk(memory_budget=2 * footprint.least + 72 * footprint.num_params)
    with pytest.raises(ValueError, match=r"memory_budget is .*need at least"):
        cp.analyze(risk, case.candidates, dim=40, out=tmp_path)
    assert not any(tmp_path.iterdir())


def test_compile_reaches_the_hessian(case, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    plain, compiled = (cp.analyze(case.risk(), case.candidates, dim=2, sigma=1e-2, compile=c) for c in (False, True))
    assert compiled.config["engine"]["compile"] is True
    assert compiled.closed_form.value == pytest.approx(plain.closed_form.value, rel=1e-6)


def test_what_is_expected_of_the_next_example(case, analysis):
    risk = case.risk()
    sigma, sample, fresh = analysis.sigma, analysis.sample, analysis.fresh
    expected = cp.expected_criterion(sample, fresh, sigma)
    assert analysis.expected.value == expected.value
    assert analysis.expected.value == pytest.approx(float(analysis.decay.value[-1, -1, 0]), rel=1e-10)
    assert float(analysis.expected.table.sum()) == pytest.approx(expected.value, rel=1e-10)
    assert analysis.doubling.grow_by == 30
    stationarity = cp.stationarity(risk, analysis.subspace, sample, fresh)
    assert asdict(analysis.stationarity) == pytest.approx(asdict(stationarity), rel=1e-9)
    assert analysis.theory == cp.theory_checks(sample, fresh[0], sigma, risk.num_params)
    assert analysis.theory.rate_bound.holds
    norms = cp.gradient_norms(risk.on(case.candidates))
    assert torch.allclose(analysis.ranking.gradient_norm, norms, rtol=1e-10, atol=0)
    law = cp.IsotropicProbe(sigma)
    closed = cp.full_space_moment(risk, risk.on(case.candidates)[:1], sigma=sigma, num_probes=24, seed=1)
    assert analysis.isotropic_closed_form.value == pytest.approx(closed.value, rel=1e-9)
    assert analysis.isotropic_closed_form.stderr == pytest.approx(closed.stderr, rel=1e-6)
    controlled = cp.controlled_monte_carlo(risk, risk.on(case.candidates)[:1], law)
    assert abs(closed.value - controlled.value) < 5 * (closed.stderr + controlled.stderr) + 0.1 * closed.value


def test_a_tolerance_gives_a_sample_size(case, tmp_path):
    analysis = cp.analyze(case.risk(), case.candidates, dim=2, tolerance=1e-2, out=tmp_path)
    judged = {"validity": analysis.validity, "stationarity": analysis.stationarity}
    size = cp.required_sample_size(analysis.sample, analysis.fresh, analysis.sigma, 1e-2, **judged)
    assert analysis.required == size
    assert "sample size for an rms of 0.01 loss units" in analysis.table()
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["required_sample_size"]["verdict"] == size.verdict
    assert written["expected"]["table"]["spread"]["slope"]["value"] == float(analysis.expected.table[1, 1])
    assert written["theory"]["rate_bound"]["bound"] == analysis.theory.rate_bound.bound
    assert len(written["ranking"]["columns"]["total"]) == 10
    assert "required" not in str(cp.analyze(case.risk(), case.candidates, dim=2))


def test_without_candidates_the_sample_stands_for_the_population(case):
    analysis = cp.analyze(case.risk(), dim=2)
    pool = cp.expected_criterion(analysis.sample, None, analysis.sigma)
    assert analysis.expected.pool
    assert analysis.expected.value == pool.value
    assert analysis.doubling.grow_by == analysis.k
    assert analysis.to_json()["expected"]["value"] == pool.value
    text = " ".join(analysis.table().split())
    assert "Whichever of the sample's own examples had come last" in text
    assert f"one more example {pool.value:.3g} {pool.rms:.3g} [" in text
    assert "takes the sample for the population" in text


def test_two_examples_leave_expectations_out(case):
    analysis = cp.analyze(case.risk()[:2], dim=2)
    assert analysis.expected is None
    assert analysis.to_json()["expected"] is None


def test_the_model_is_judged_in_the_draws_of_monte_carlo_too(case, analysis):
    risk = case.risk()
    law = cp.SubspaceProbe(analysis.subspace, analysis.sigma)
    new, z = risk.on(case.candidates)[:1], law.coordinates(64, 1)
    model = cp.increment(analysis.sample, analysis.fresh[0])
    factor, wrong, change = 1 / 31, 0.0, 0.0
    for row in z:
        displacement = analysis.subspace.basis @ row
        true = factor * (new.value(displacement) - risk.value(displacement))
        level = factor * (new.value() - risk.value())
        wrong += (true - float(model.at(row[None]))) ** 2
        change += (true - level) ** 2
    assert analysis.surrogate_error == pytest.approx((wrong / change) ** 0.5, rel=1e-6)
    plain, closed = analysis.isotropic, analysis.isotropic_closed_form
    distance = (closed.value - plain.value) / (closed.stderr**2 + plain.stderr**2) ** 0.5
    assert analysis.isotropic_distance == pytest.approx(distance, rel=1e-12)
    off = analysis.isotropic_controlled.value / closed.value - 1
    text = " ".join(analysis.table().split())
    assert re.search(rf"against the isotropic one: total \w+ \({re.escape(f'{100 * off:+.1f}')} \+- ", text)
    assert f"The truth against the closed form: {analysis.errors.rows[0]}" in text
    assert set(analysis.errors.rows) == set(range(10))  # all candidates, of which there are ten
    assert analysis.errors.num_candidates == 10
    controlled = analysis.controlled.value / analysis.closed_form.value - 1
    assert analysis.errors.rows[0].total == pytest.approx(controlled, rel=1e-6)


def test_the_sample_that_was_fitted_bounds_the_size_from_below_only():
    """A line through two hundred points that it meets exactly: by its own examples one is enough, by others not."""
    x = torch.linspace(-1, 1, 300, dtype=torch.float64)[:, None]
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.ones_(model.weight)
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, x))
    found = cp.analyze(risk, dim=1, sigma=0.01, tolerance=1e-3, num_probes=8).required
    assert (found.value, found.verdict, found.interval[1]) == (None, "at least", float("inf"))
    assert "to which the weights were fitted" in str(found)
    fresh = (x + 3, x + 4)
    assert cp.analyze(risk, fresh, dim=1, sigma=0.01, tolerance=1e-3, num_probes=8).required.value > found.at_least


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("inf")])
def test_a_tolerance_that_makes_no_sense_is_refused_before_any_work(case, monkeypatch, tolerance):
    monkeypatch.setattr("curvprobe.analysis.stages.top_eigenspace", lambda *_, **__: pytest.fail("worked"))
    with pytest.raises(ValueError, match="tolerance is"):
        cp.analyze(case.risk(), case.candidates, dim=2, tolerance=tolerance)
    x, y = case.candidates
    with pytest.raises(ValueError, match="3 examples came to judge by"):
        cp.analyze(case.risk(), (x[:3], y[:3]), dim=2, tolerance=1e-3)


@pytest.mark.parametrize("more", [{}, {"laws": True, "concentration": True}, {"p": 3.0}])
def test_every_stage_is_told_as_it_begins(case, tmp_path, caplog, more):
    told, options = [], {"dim": 2, "sigma": 0.01, "num_probes": 8, "out": tmp_path, **more}
    with caplog.at_level("INFO", logger="curvprobe"):
        found = cp.analyze(case.risk(), case.candidates, progress=lambda *at: told.append(at), **options)
    assert [name for name, _, _ in told] == list(found.seconds)
    assert [at for _, at, _ in told] == list(range(len(told)))
    assert {count for _, _, count in told} == {len(told)}
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "eigenspace ..."
    assert said[1].startswith("eigenspace: ")
    assert said[1].endswith(" s")
    assert len(said) == 2 * len(told)
    caplog.clear()
    with caplog.at_level("INFO", logger="curvprobe"):
        cp.analyze(case.risk(), case.candidates, **options)
    assert {record.getMessage().split(": ")[1] for record in caplog.records} == {f"found in {tmp_path}"}


def test_a_quick_analysis_gives_the_same_answer(tmp_path):
    """And leaves out what the answer does not rest on."""
    case = cases.make("mlp")
    given = {"dim": 3, "sigma": 0.01}
    whole = cp.analyze(case.risk(), case.candidates, **given)
    told: list[tuple] = []
    quick = cp.analyze(
        case.risk(), case.candidates, **given, stages="quick", out=tmp_path, progress=lambda *at: told.append(at)
    )
    assert str(quick.answer) == str(whole.answer)
    left_out = {"isotropic", "isotropic_model", "full_space", "gradient_norms", "surface"}
    assert whole.seconds.keys() - quick.seconds.keys() == left_out
    assert [number for _, number, _ in told] == list(range(len(told)))
    assert {count for _, _, count in told} == {len(told)}
    assert (quick.isotropic, quick.isotropic_controlled, quick.isotropic_closed_form) == (None, None, None)
    assert quick.plane is None
    assert math.isnan(quick.isotropic_distance)
    assert bool(quick.ranking.gradient_norm.isnan().all())
    assert quick.controlled.value == whole.controlled.value
    assert "The isotropic criterion was left out" in quick.table()
    assert "was left out" not in whole.table()
    assert str(cp.load(tmp_path)) == str(quick)
    assert quick.rows().keys() < whole.rows().keys()
    again = cp.analyze(case.risk(), case.candidates, **given, out=tmp_path)
    assert {name for name, seconds in again.seconds.items() if seconds} == left_out
    with pytest.raises(cp.ArgumentError, match="stages is 'some'; expected 'full' or 'quick'"):
        cp.analyze(case.risk(), stages="some")
