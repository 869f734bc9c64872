"""Decay and ratio at a tiny size: what they find, and that they go on where they stopped."""

import json
from dataclasses import replace

import pytest
import torch

import curvprobe as cp
from curvprobe.experiments import growth
from curvprobe.experiments.solutions import stream
from tests.experiments.tiny import GROWTH, TINY, run, sequences

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*an eigenvalue outside is more wanted:curvprobe.ConvergenceWarning"
)  # of a bottom subspace at a tolerance of 0.01


@pytest.fixture(scope="module")
def decayed(folder):
    return run("decay", GROWTH, folder, literal=True)


@pytest.fixture(scope="module")
def shares(folder, decayed):
    """After decay, whose points it shares."""
    return run("ratio", GROWTH, folder, literal=True)


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
