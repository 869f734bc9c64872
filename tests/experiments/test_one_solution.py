"""Experiments that look at one solution of each of several models, at a tiny size."""

import pytest
import torch

from curvprobe.experiments import convergence, error_map, fc, timing, validity
from curvprobe.experiments.run import run_experiment
from tests.experiments.tiny import TINY, run


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
    absolute, square, variance = fc.along_orders(losses, orders)
    steps = [
        [float(row[order][: k + 1].mean() - row[order][:k].mean()) for k in range(1, 5)]
        for row in losses
        for order in orders
    ]
    table = torch.tensor(steps, dtype=torch.float64)
    assert torch.allclose(absolute, table.abs().mean(0))
    assert torch.allclose(square, table.square().mean(0))
    assert float(variance) == pytest.approx(float(losses.var(1).mean()))


def test_one_model_has_no_next_one(tmp_path):
    settings = convergence.Settings(TINY, trained=8, dim=2, draws=(8, 16), seeds=1)
    done = run_experiment("convergence", settings=settings, out=tmp_path, say=lambda _: None)
    assert any("no model further than" in line for line in done.findings)
    assert not any("the next" in line for line in done.findings)
