"""The study of forecasts in small, what its result says, and that the library says the same."""

import json

import pytest
import torch

import curvprobe as cp
from curvprobe.criteria.stationarity import explained
from curvprobe.forecasting.rates import RATES
from curvprobe.forecasting.result import SHIPPED
from tests.benchmarks.test_benchmarks import rows_of


def test_forecasts_in_small(tmp_path):
    import forecast

    options = ["--sets", "circles", "--noises", "0.2", "--ways", "strong decay", "--seeds", "2", "--splits", "1"]
    out = tmp_path / "result.json"
    forecast.BENCHMARK.main([*options, "--out", str(out)])
    result = json.loads(out.read_text())
    assert len(result["rows"]) == 2
    row = result["rows"][0]
    assert row["expected"]["four times"] > 0
    assert row["gains"]["gap"] > 0
    assert result["rates"]["told"]["no change"]["twice"]["expected"]["within"]["3.0"] == 0
    assert len(rows_of(forecast.table(result))) > 20


def test_other_factors_in_small(tmp_path):
    import forecast
    import forecast_factor

    out = tmp_path / "result.json"
    options = ["--sets", "linear rule", "--noises", "0.0", "--ways", "strong decay", "--seeds", "3", "--splits", "2"]
    forecast_factor.BENCHMARK.main([*options, "--out", str(out)])
    result = json.loads(out.read_text())
    study = result["factors"]["1.35"]["study"]
    shipped = json.loads(forecast.BENCHMARK.result.read_text())["rates"]["told"][SHIPPED]["twice"]
    assert study["answered"] == shipped["answered"]
    assert study["within"] == pytest.approx(shipped["expected"]["within"]["2.0"], abs=1e-3)
    ratios = [found["fitted"]["truth_over_forecast"] * float(factor) for factor, found in result["factors"].items()]
    assert ratios == pytest.approx([ratios[0]] * 4)
    assert len(rows_of(forecast_factor.table(result))) == 4 + 1 + 4


def test_a_hit_is_within_the_factor_and_of_the_same_sign():
    import forecast

    def row(value, truth, refused=()):
        said = {"twice": [value, value / 2, value * 2], "refused": list(refused)}
        about = {"set": "a", "noise": 0, "how": "b", "told": {"rule": said}}
        return about | {"expected": {"twice": truth}, "realised": {"twice": truth}}

    rows = [row(1.0, 1.9), row(1.0, 2.1), row(1.0, -0.5), row(1.0, 1.0, ["noise"])]
    found = forecast.rate(rows, "rule", "twice")
    assert found["answered"] == 0.75
    assert found["expected"]["within"] == pytest.approx({"1.5": 0, "2.0": 1 / 3, "3.0": 2 / 3})
    assert found["expected"]["covered"] == pytest.approx(1 / 3)


def test_networks_side_by_side_are_those_that_are_trained_one_by_one():
    import forecast_cells as cells

    of = next(one for one in cells.SETS if one.name == "circles")
    tried = cells.cell(of, 0.0, "weak decay", 2)
    pieces = [torch.arange(50), torch.arange(50, 100)]
    together, tested = cells.refits(tried, pieces, seed=2)
    x, y = cells.gathered(tried, pieces)
    assert x.shape == (4, 50, 2)
    weights = cells.trained(tried, pieces, 2)
    model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)).double()
    for parameter, value in zip(
        model.parameters(), (weights[0][2].T, weights[1][2, 0], weights[2][2].T, weights[3][2, 0]), strict=True
    ):
        parameter.data = value.contiguous()
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x[2], y[2]))
    assert torch.allclose(risk.losses(), together[0].own[1])  # the second piece of the first seed
    square = float(risk.gradient().norm()) ** 2
    noise = explained(square, cp.gradient_norms(risk), risk.shares)
    assert float(together[0].moving[1]) == pytest.approx(square / noise, rel=1e-6)
    assert tested.shape == (2, 2)


def test_the_library_says_what_the_study_found():
    import forecast

    result = json.loads(forecast.BENCHMARK.result.read_text())
    for said, name in (("splits", "told"), ("one split", "one split"), ("first k only", "first k only")):
        for rate, ahead in zip(RATES[said], forecast.AHEAD, strict=True):
            found = result["rates"][name][SHIPPED][ahead]
            assert rate.answered == pytest.approx(found["answered"], abs=0.005)
            assert rate.covered == pytest.approx(found["expected"]["covered"], abs=0.005)
            assert rate.realised == pytest.approx(found["realised"]["covered"], abs=0.005)
            assert {f"{factor}": share for factor, share in rate.within.items()} == pytest.approx(
                found["expected"]["within"], abs=0.005
            )
            assert (rate.tries, rate.cells) == (found["tries"], found["cells"])
