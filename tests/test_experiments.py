"""The paper's experiments at a tiny size: what they find, and that they go on where they stopped."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import curvprobe as cp
from curvprobe.cli import app
from curvprobe.experiments import convergence, error_map, fc, growth, timing, validity
from curvprobe.experiments.cost import Cost, dry_run
from curvprobe.experiments.options import Options
from curvprobe.experiments.over_seeds import exponent
from curvprobe.experiments.run import EXPERIMENTS, check_options, rehearse, run_experiment
from curvprobe.experiments.solutions import Language, converged, stream, streamed, unseen
from curvprobe.losses import causal_lm
from curvprobe.runtime.digest import overlap
from curvprobe.runtime.store import Store

for name in ("transformers", "sklearn", "matplotlib"):
    pytest.importorskip(name)

TINY = Language(
    vocabulary=300,
    context=12,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    batch=4,
    learning_rate=3e-3,
)

GROWTH = growth.Settings(
    TINY,
    ks=(8, 16, 32),
    converged_ks=(64, 128),
    seeds=2,
    candidates=6,
    dims=(1, 3),
    num_probes=16,
    trace_candidates=4,
    trace_products=8,
    compared_at=32,
    sigmas=(1e-4, 1e-3, 1e-1),  # the last is large enough for B to matter
)


def run(name, settings, folder, **options):
    said = []
    done = run_experiment(
        name,
        settings=settings,
        options=Options(**options),
        out=folder / name,
        stages=folder / "stages",
        say=said.append,
    )
    assert any("estimate" in line for line in said)
    assert json.loads((folder / name / "result.json").read_text())["findings"] == done.findings
    assert {path.suffix for path in done.paths} == {".json", ".png", ".pdf"}
    assert all(path.stat().st_size > 100 for path in done.paths)
    return done.result["result"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(scope="module")
def decayed(folder):
    return run("decay", GROWTH, folder, literal=True)


@pytest.fixture(scope="module")
def shares(folder, decayed):
    """After decay, whose points it shares."""
    return run("ratio", GROWTH, folder, literal=True)


# ---- solutions


def sequences():
    return TINY.sequences(None, Store(None))


def test_a_stream_has_been_trained_on_its_sample_and_not_on_what_comes_next():
    first, second = stream(TINY, sequences(), [8, 16], 6, seed=1)
    assert len(first.risk) == 8
    assert len(second.risk) == 16
    assert torch.equal(second.data[:8], first.data)
    assert torch.equal(second.data[8:14], first.new_data)
    for solution in (first, second):
        assert not overlap(solution.risk.digests(), solution.new.digests())
        assert len(solution.new) == 6
    assert second.risk.value() < first.risk.on(second.data).value()  # it goes on learning
    assert streamed(TINY, sequences(), 16, 8, 6, seed=1, store=Store(None)).risk.value() == second.risk[:8].value()


def test_a_stream_trains_as_plain_adamw_on_the_mean_over_tokens():
    (solution,) = stream(TINY, sequences(), [4], 1, seed=3)
    order = torch.randperm(len(sequences()), generator=torch.Generator().manual_seed(3))
    tokens = sequences()[order[:4]]
    model = TINY.model(3)
    logits = model(input_ids=tokens).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0)
    optimizer.step()  # at a tenth of the rate, the first of ten steps of warming up
    for found, expected in zip(solution.module.parameters(), model.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def test_what_a_repetitive_text_holds_twice_does_not_come_next():
    tokens = torch.tensor([[1], [2], [1], [3], [2], [4], [3]])
    assert unseen(tokens, 2, 2).tolist() == [[3], [4]]
    assert unseen(tokens, 3, 3).tolist() == [[3], [4], [3]]
    with pytest.raises(ValueError, match=r"of the 5 sequences after the first 2 only 3 are .* needs 4"):
        unseen(tokens, 2, 4)


@pytest.mark.parametrize("ks", [[6], [8, 4], [8, 8]])
def test_sample_sizes_that_the_batch_does_not_make_are_refused(ks):
    with pytest.raises(ValueError, match="expected ascending multiples of the batch, which is 4"):
        next(stream(TINY, sequences(), ks, 1, seed=0))


def test_a_text_that_is_too_short_is_refused(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("Some words.\n\nAnd some more of them. " * 40)
    tokens = TINY.sequences(path, Store(None))
    assert tokens.shape[1] == TINY.context
    with pytest.raises(ValueError, match=f"the text has {len(tokens)} sequences of 12 tokens and .* needs 4001"):
        next(stream(TINY, tokens, [4000], 1, seed=0))


def test_tokens_and_weights_are_found_by_the_next_experiment(tmp_path, monkeypatch):
    path, store = tmp_path / "text.txt", Store.at(tmp_path / "stages")
    path.write_text("Some words.\n\nAnd some more of them. " * 40)
    tokens = TINY.sequences(path, store)
    first = streamed(TINY, tokens, 8, 4, 1, seed=0, store=store)
    monkeypatch.setattr("curvprobe.experiments.solutions.token_sequences", None)
    monkeypatch.setattr("curvprobe.experiments.solutions.stream", None)
    assert torch.equal(TINY.sequences(path, store), tokens)
    again = streamed(TINY, tokens, 8, 4, 1, seed=0, store=store)
    assert torch.equal(again.data, first.data)
    assert torch.equal(again.new_data, first.new_data)
    assert again.risk.value() == first.risk.value()
    with pytest.raises(TypeError):  # another model is trained
        streamed(TINY, tokens, 8, 4, 1, seed=1, store=store)


def test_changed_code_finds_no_points(tmp_path, monkeypatch):
    settings = validity.Settings(TINY, trained=8, sigmas=(1e-3, 1e-1), num_probes=2, seeds=1)
    run("validity", settings, tmp_path)
    monkeypatch.setattr(validity, "errors", None)
    run("validity", settings, tmp_path)  # found
    monkeypatch.setattr("curvprobe.experiments.models.code_of", lambda _: "another")
    with pytest.raises(TypeError):
        run("validity", settings, tmp_path)


def test_a_text_that_is_no_utf8_is_refused(tmp_path):
    path = tmp_path / "bytes.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as UTF-8"):
        TINY.sequences(path, Store(None))


def test_converged_weights_are_minimisers_of_nested_samples():
    small, large = converged((32, 64), 5, seed=0)
    for solution, k in ((small, 32), (large, 64)):
        assert len(solution.risk) == k
        assert float(solution.risk.gradient().norm()) < 1e-3
        assert not overlap(solution.risk.digests(), solution.new.digests())
    assert torch.equal(large.data[0][:32], small.data[0])


# ---- decay and ratio


def test_decay_is_that_of_the_criteria_one_by_one(decayed):
    seeds = []
    for seed in (0, 1):
        solution, space = solution_at(seed)
        values = [cp.delta2_subspace(solution.risk, solution.new[[j]], space, sigma=1e-1).value for j in range(6)]
        isotropic = [
            cp.delta2(solution.risk, solution.new[[j]], sigma=1e-1, num_probes=16, seed=seed).value for j in range(6)
        ]
        level = [cp.delta1(solution.risk, solution.new[[j]]).value for j in range(6)]
        seeds.append([values[0], sum(values) / 6, isotropic[0], sum(isotropic) / 6, level[0], sum(level) / 6])
    expected = torch.tensor(seeds, dtype=torch.float64).mean(0).tolist()
    curves = decayed["curves"]
    found = []
    for name, at in (("delta2_subspace", (1, 1, 2)), ("delta2", (1, 2)), ("delta1", (1,))):
        found += [float(curves[which][name]["mean"][at]) for which in ("single", "expected")]
    assert found == pytest.approx(expected, rel=1e-4)


def solution_at(seed):
    """Of the second size, with its eigenspace."""
    solution = list(stream(TINY, sequences(), [8, 16], 6, seed=seed))[1]
    return solution, cp.top_eigenspace(solution.risk, dim=3, seed=seed)


def test_the_share_of_the_dispersion_is_that_of_the_expected_criterion(decayed):
    shares = []
    for seed in (0, 1):
        solution, space = solution_at(seed)
        sample, fresh = cp.project(solution.risk, space), cp.project(solution.new, space)
        expected = cp.expected_criterion(sample, fresh, 1e-1)
        shares.append(float(expected.table[1].sum()) / expected.value)
    assert float(decayed["spread_share"]["mean"][1, 2]) == pytest.approx(sum(shares) / 2, rel=1e-3)


def test_the_shape_ratio_is_that_of_the_parts_one_by_one(shares):
    ratios = []
    for seed in (0, 1):
        solution, space = solution_at(seed)
        few = solution.new[:4]
        inside = [cp.delta2_subspace(solution.risk, few[[j]], space, sigma=1e-1).shape for j in range(4)]
        full = cp.full_space_parts(solution.risk, few, sigma=1e-1, num_probes=8, seed=seed)
        ratios.append(sum(inside) / float(full.shape.sum()))
    found = shares["shape"]["top"]
    assert float(found["low"][1, 1, 2]) == pytest.approx(min(ratios), rel=1e-3)
    assert float(found["high"][1, 1, 2]) == pytest.approx(max(ratios), rel=1e-3)


def test_the_released_procedure_is_another_one(decayed):
    ours, theirs = (decayed["curves"][which]["delta2_subspace"]["mean"] for which in ("single", "literal"))
    assert bool(theirs.isfinite().all())
    assert not torch.allclose(ours, theirs, rtol=0.1)


def test_the_level_makes_the_ratio_and_any_subspace_has_it(shares):
    top, null, literal = (shares["all_criterion"][name] for name in ("top", "random", "literal"))
    for end in ("low", "high"):
        assert float((top[end][:, 0] - 1).abs().max()) < 1e-3  # sigma = 1e-4
        assert float((null[end][:, 0] - 1).abs().max()) < 1e-3
    same = shares["all_criterion"]["same rows"]
    # One next example each, and nothing changed but the rows of B, at sigma = 0.1 and D = 3.
    assert float(literal["high"][-1, 2]) > 5 * float(same["high"][-1, 2])


def test_the_shape_tells_the_eigenspace_from_a_random_subspace(shares):
    top, null = shares["all_shape"]["top"]["median"], shares["all_shape"]["random"]["median"]
    assert bool((top > 5 * null).all())
    assert bool((top < 1).all())
    exact = torch.tensor(shares["null"], dtype=torch.float64)[:, None]
    assert bool(((null > exact / 4) & (null < 4 * exact))[:, :2].all())  # at small sigma, where the slope makes it


def test_the_top_eigenspace_bends_more_than_random_and_bottom_ones(shares):
    found = shares["subspaces"]
    assert found["names"] == ("top", "random", "bottom", "gradients")
    for block in ("bent_of_top", "tilted_of_top"):
        median = found[block]["median"].tolist()
        assert median[0] == 1
        assert median[1] < 0.2
        assert median[3] > median[1]
    assert found["bent_of_top"]["median"][2] < 1


def test_converged_weights_have_a_small_gradient(tmp_path):
    result = run("decay", replace(GROWTH, seeds=1), tmp_path, weights="converged")
    assert result["ks"] == (64, 128)
    assert float(result["gradient_norm"]["mean"].max()) < 1e-3
    assert result["num_params"] == 17226


def test_a_run_goes_on_at_the_last_finished_seed_and_k(tmp_path, monkeypatch):
    settings = replace(GROWTH, trace_candidates=2, trace_products=4, candidates=2, num_probes=4, dims=(2,))
    whole = run("decay", settings, tmp_path / "whole")
    measured = growth.at_solution
    seen = []

    def interrupted(solution, *arguments, **options):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(len(solution.risk))
        return measured(solution, *arguments, **options)

    monkeypatch.setattr(growth, "at_solution", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("decay", settings, tmp_path / "cut")
    assert seen == [8, 16, 32, 8]
    (tmp_path / "cut" / "stages" / "sequential-seed0-k16.json").unlink()  # a hole is filled too
    seen.clear()
    seen.append(0)
    monkeypatch.setattr(growth, "at_solution", lambda s, *a, **o: (seen.append(len(s.risk)), measured(s, *a, **o))[1])
    again = run("decay", settings, tmp_path / "cut")
    assert seen == [0, 16, 16, 32]
    for which in ("expected", "single"):
        for name, curve in whole["curves"][which].items():
            assert torch.equal(curve["mean"], again["curves"][which][name]["mean"]), (which, name)


def test_other_settings_or_text_are_computed_anew(tmp_path, monkeypatch):
    settings = replace(GROWTH, ks=(8,), seeds=1, trace_products=4, candidates=2, num_probes=4, dims=(2,))
    run("decay", settings, tmp_path)
    seconds = json.loads((tmp_path / "decay" / "result.json").read_text())["seconds"]
    monkeypatch.setattr(growth, "at_solution", lambda *_, **__: pytest.fail("computed anew"))
    run("decay", settings, tmp_path)
    again = json.loads((tmp_path / "decay" / "result.json").read_text())["seconds"]
    assert again == pytest.approx(seconds, rel=1e-6)  # of the points, whenever they were computed
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    for other, options in (
        (replace(settings, sigmas=(1e-3,)), {}),
        (settings, {"text": text}),
        (settings, {"seed": 1}),
    ):
        with pytest.raises(pytest.fail.Exception, match="computed anew"):
            run("decay", other, tmp_path, **options)


# ---- one solution


def test_the_error_of_the_quadratic_model_falls_until_rounding(folder):
    sigmas = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    result = run("validity", validity.Settings(TINY, trained=64, sigmas=sigmas, num_probes=4, seeds=2), folder)
    rough, single, double = result["anchored_in_float64"]["mean"]
    assert bool((rough[:5] > 1e-4).all())  # a flat floor, at any small sigma
    assert float(rough[4]) > 1e-4  # sigma = 1e-3: bfloat16 cannot do better, float32 can
    assert float(single[4]) < 1e-5
    assert float(single[0]) < 1e-6
    assert float(double[3]) < 1e-7
    assert bool(
        (torch.stack([rough, single, double])[:, -1] > 1e-2).all()
    )  # the model's own error, whatever the precision
    assert bool((double[4:].diff() > 0).all())
    assert 1e-4 < float(result["rounding_at_the_solution"]["mean"][0]) < 1e-2
    assert float(result["rounding_at_the_solution"]["mean"][1]) < 1e-6
    assert float(result["relative_to_change"]["mean"][2][3]) < 1e-3


def test_monte_carlo_converges_to_the_closed_form_within_its_errors(folder):
    settings = convergence.Settings(TINY, trained=64, dim=3, draws=(16, 64), seeds=3)
    result = run("convergence", settings, folder, literal=True)
    assert float(result["distance"][..., -1].abs().max()) < 4
    errors = result["stderr"][..., -1].median(0).values
    # The last by how much mirrored pairs help a model whose training rounds differently from machine to machine.
    assert bool((errors[1] < 0.1 * errors[0]) & (errors[3] < 0.05 * errors[1]) & (errors[4] < 0.5 * errors[3]))
    assert float(result["mean_deviation"][4, -1].abs()) < 1e-6
    ratio = result["stderr"][:, 0, 0] / result["stderr"][:, 0, 1]
    assert bool(((ratio > 1.2) & (ratio < 3.5)).all())  # four times the draws: half the error
    assert result["shape_share"] < 1e-3


def test_separate_rows_move_the_closed_form_away_and_equal_rows_do_not(folder):
    settings = convergence.Settings(TINY, trained=64, dim=3, draws=(16, 64), seeds=3, sigma=3e-2)
    result = run("convergence", settings, folder, literal=True)["literal"]
    assert float(result["distance"][:, -1].abs().min()) > 5
    assert float(result["same_rows_distance"][:, -1].abs().max()) < 4


def test_the_error_map_separates_noise_from_the_model(folder):
    settings = error_map.Settings(TINY, trained=64, dims=(1, 3), sigmas=(1e-3, 1e-1), num_probes=16, seeds=2)
    result = run("error-map", settings, folder, literal=True)
    model, direct, literal = (result[name] for name in ("model_error", "direct_error", "literal_error"))
    assert bool((model[:, 1] > 50 * model[:, 0]).all())
    assert bool((direct[:, 1] > direct[:, 0]).all())
    assert bool((result["model_error_of_shape"] >= model).all())
    assert float(literal[:, 0].max()) > 10 * float(direct[:, 0].max())


def test_timing_has_both_sides_and_their_errors(folder):
    result = run("timing", timing.Settings(TINY, trained=64, dim=3, num_probes=8, seeds=2), folder)
    assert 40 < result["products"]["paper"] <= 60  # up to twenty a vector
    assert result["largest_residual"]["ours"] <= 2e-3 < result["largest_residual"]["paper"]
    assert result["curvature_error"]["ours"] < 1e-3 < 0.3 < result["curvature_error"]["paper_four_rows"]
    assert all(cell["ours"] > 0 and cell["paper"] > 0 for cell in result["seconds"].values())


def test_fully_connected_increments_fall_as_the_variance_says(folder):
    settings = fc.Settings(k=96, depths=(1, 2), widths=(8,), width=16, num_probes=4, orders=60, seeds=2)
    assert settings.shapes == [(16,), (16, 16), (8, 8)]
    result = run("fc", settings, folder)
    for network in result["networks"]:
        assert float((network["square_to_exact"]["mean"] - 1).abs().max()) < 0.15
        assert network["gradient_norm"] < 1e-3
        assert -2.6 < network["square_exponent"]["value"] < -1.4
        assert -0.4 < network["plateau_slope"]["value"] < 0.4  # k times the increment levels off
        at, near, far = network["plateau"]["mean"].tolist()
        assert far > near > 0 <= at
        assert float(network["held_out"]["mean"][0]) > 10 * at
    assert result["networks"][0]["num_params"] == 64 * 16 + 16 + 16 * 10 + 10


def test_increments_along_orders_are_those_of_the_means_one_by_one():
    losses = torch.rand(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    orders = torch.stack([torch.arange(5), torch.tensor([4, 1, 0, 3, 2])])
    absolute, square, variance = fc._along(losses, orders)
    steps = [
        [float(row[order][: k + 1].mean() - row[order][:k].mean()) for k in range(1, 5)]
        for row in losses
        for order in orders
    ]
    table = torch.tensor(steps, dtype=torch.float64)
    assert torch.allclose(absolute, table.abs().mean(0))
    assert torch.allclose(square, table.square().mean(0))
    assert float(variance) == pytest.approx(float(losses.var(1).mean()))


# ---- what surrounds them


def test_exponents_are_those_of_power_laws():
    ks = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    found = exponent(ks, torch.stack([3 * ks**-2, 5 * ks**-1.8]))
    low, high = found["interval"]
    assert found["value"] == pytest.approx(-1.9)
    assert high - low == pytest.approx(2 * 12.706 * 0.1, rel=1e-3)


def test_costs_add_up_and_give_seconds():
    one = Cost(trained=1, forwards=2, products=3, vectors=4)
    assert (one + Cost(1, 1, 1, 9)) * 2 == Cost(4, 6, 8, 9)
    risk = cp.EmpiricalRisk(TINY.model(0).eval(), causal_lm, sequences()[:4])
    assert (one * 100).seconds(risk) > 0


def test_a_dry_run_counts_parameters_operations_and_memory():
    risk = cp.EmpiricalRisk(TINY.model(0).eval(), causal_lm, sequences()[:2])
    found = dry_run(Cost(10, 10, 10, 7), TINY, risk, needed=30, available=20)
    assert "30 sequences are needed, and the text has 20: give a longer one" in str(found)
    assert found.num_params == sum(p.numel() for p in TINY.model(0).parameters())
    assert found.logits == (1, 12, 300)
    matrices = found.num_params - 300 * 16  # all but the embedding, which is looked up
    assert 2 * 12 * matrices <= found.forward_flops < 2.5 * 12 * matrices
    assert found.total_flops == found.forward_flops * 100
    assert found.bytes >= 7 * 4 * found.num_params
    assert "(1, 12, 300)" in str(found)


def test_a_rehearsal_of_digits_gives_seconds():
    assert rehearse("fc") > 0


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_preset_counts_its_cost(name):
    for settings in EXPERIMENTS[name].PRESETS.values():
        cost = EXPERIMENTS[name].cost(settings, Options())
        assert cost.trained > 0
        assert cost.forwards > 0
        assert settings.seeds >= 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("validity", {"weights": "converged"}, "converged weights came for validity"),
        ("timing", {"literal": True}, "timing always has the paper's procedure beside"),
        ("fc", {"literal": True}, "literal came for fc"),
        ("fc", {"text": "x"}, "which needs none"),
        ("fc", {"device": "cuda"}, "runs on the cpu"),
        ("decay", {"text": "x", "weights": "converged"}, "which needs none"),
    ],
)
def test_options_without_a_use_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        check_options(name, Options(**options))


def test_an_unknown_experiment_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the experiment is 'decays'; expected one of decay, ratio"):
        run_experiment("decays", out=tmp_path)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_runs_an_experiment(tmp_path, monkeypatch):
    tiny = validity.Settings(TINY, trained=8, sigmas=(1e-3, 1e-1), num_probes=2, seeds=2)
    monkeypatch.setitem(validity.PRESETS, "cpu", tiny)
    result = invoke("experiment", "validity", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "estimate" in result.output
    assert "bfloat16" in result.output
    files = {"result.json", "validity.png", "validity.pdf"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*files, "stages"}
    monkeypatch.chdir(tmp_path)
    assert invoke("experiment", "validity").exit_code == 0  # without a folder of its own it shares the stages
    assert {p.name for p in (tmp_path / "runs/experiments/validity").iterdir()} == files
    assert len(list((tmp_path / "runs/experiments/stages").glob("weights-*.json"))) == 2
    dry = invoke("experiment", "validity", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "(1, 12, 300)" in dry.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fc", "--weights", "converged"), "expected for decay or ratio only"),
        (("decay", "--device", "nothing"), "--device is 'nothing'"),
        (("decay", "--text", "/nowhere/text"), "cannot be read"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message, tmp_path):
    result = invoke("experiment", *arguments, "--out", tmp_path)
    assert result.exit_code == 1
    assert message in result.output.replace("\n", " ")
