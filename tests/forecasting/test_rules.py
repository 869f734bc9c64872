"""Each rule on losses that follow a law, and its standard error against draws."""

import math

import numpy
import pytest
import torch

from curvprobe.forecasting import rules
from curvprobe.forecasting.refits import Mean
from curvprobe.forecasting.rules import GainEstimate
from tests.forecasting import refits

K, C, BEST = 400, 40.0, 0.5


def law(size, power=1.0, m=500, noise=0.0, seed=0):
    """Losses of the held-out examples whose mean follows the law; the examples' own part is common to all sizes."""
    draw = torch.Generator().manual_seed(seed)
    own = torch.randn(m, generator=draw, dtype=torch.float64)
    apart = torch.randn(m, generator=torch.Generator().manual_seed(seed + size), dtype=torch.float64)
    value = BEST + C / K * (size / K) ** -power
    return value + (own - own.mean()) + noise * (apart - apart.mean())


def at(size, power=1.0, **options):
    return refits(size, law(size, power, **options), BEST - C / size)


def test_under_the_law_all_tell_the_same_gain():
    full, half, quarter, eighth = (at(K // parts, noise=0.01) for parts in (1, 2, 4, 8))
    truth = C / (2 * K)
    assert rules.gap(full).gain == pytest.approx(truth)
    assert rules.halves(full, half).gain == pytest.approx(truth)
    assert rules.mean(rules.gap(full), rules.halves(full, half)).gain == pytest.approx(truth)
    assert rules.calibrated(rules.gap(full), rules.halves(full, half)).gain == pytest.approx(1.35 * truth)
    fitted = rules.power_law([full, half, quarter, eighth])
    assert fitted.gain == pytest.approx(truth, rel=1e-4)
    assert fitted.further == pytest.approx(C / K * 0.75, rel=1e-4)
    assert rules.gap(full).further == pytest.approx(C / K * 0.75)
    exponent, error = rules.exponent(full, half, quarter)
    assert exponent == pytest.approx(1.0)
    assert 0 < error < 0.1


@pytest.mark.parametrize("power", [0.5, 1.5])
def test_the_power_law_and_the_exponent_follow_another_power(power):
    sizes = [at(K // parts, power, noise=0.01) for parts in (1, 2, 4, 8)]
    assert rules.power_law(sizes).gain == pytest.approx(C / K * (1 - 2**-power), rel=1e-3)
    assert rules.exponent(*sizes[:3])[0] == pytest.approx(power)


def test_standard_errors_are_those_of_draws():
    gaps, halvings = [], []
    for seed in range(2000):
        draw = torch.Generator().manual_seed(seed)
        common = torch.randn(100, generator=draw, dtype=torch.float64)
        apart = torch.randn(2, 100, generator=draw, dtype=torch.float64)
        full = refits(K, 1.0 + common, 0.8)
        half = refits(K // 2, 1.2 + common + 0.3 * apart, 0.7, count=2)
        gaps.append(rules.gap(full))
        halvings.append(rules.halves(full, half))
    for found in (gaps, halvings):
        scatter = float(torch.tensor([one.gain for one in found]).std())
        assert float(torch.tensor([one.stderr for one in found]).mean()) == pytest.approx(scatter, rel=0.06)


def test_weights_count():
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    mean = Mean(torch.tensor([1.0, 2.0], dtype=torch.float64), weights)
    assert mean.value == 1.75
    assert float(mean.influences.sum()) == pytest.approx(0.0)
    same = Mean(torch.arange(10.0, dtype=torch.float64), torch.full((10,), 7.0, dtype=torch.float64))
    assert same.stderr == pytest.approx(float(same.terms.std()) / math.sqrt(10))
    assert math.isnan(Mean(torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)).stderr)


def test_what_is_within_its_error_is_no_answer():
    full = refits(K, law(K), 0.55)
    (reason,) = rules.gap(full).reasons
    assert reason.kind == "the held-out gap is noise"
    assert "at most" in reason.said
    found = rules.mean(rules.gap(full), GainEstimate("halves", 0.02, 0.01, 0.03))
    assert [reason.kind for reason in found.reasons] == ["the held-out gap is noise"]


def test_no_gain_without_noise_is_no_answer_either():
    losses = torch.ones(50, dtype=torch.float64)
    full, half = refits(K, losses, 1.0), refits(K // 2, losses, 1.0, count=2)
    found = rules.calibrated(rules.gap(full), rules.halves(full, half))
    assert [reason.kind for reason in found.reasons] == ["the held-out gap is noise", "the halving is noise"]


def test_a_power_law_that_is_not_found_or_not_known_is_no_answer(monkeypatch):
    sizes = [at(K // parts, noise=0.01) for parts in (1, 2, 4, 8)]

    def fails(*_, **__):
        raise RuntimeError("Optimal parameters not found")

    monkeypatch.setattr("scipy.optimize.curve_fit", fails)
    assert (
        rules.power_law(sizes).reasons[0].said == "no power law with an offset was found through the losses at 4 sizes"
    )
    unknown = numpy.full((3, 3), numpy.inf)
    monkeypatch.setattr("scipy.optimize.curve_fit", lambda *_, **__: ((0.5, 0.1, 1.0), unknown))
    found = rules.power_law(sizes)
    assert found.stderr == math.inf
    assert found.reasons[0].kind == "the power law is noise"
    assert found.interval == (-math.inf, math.inf)


def test_two_that_are_apart_are_no_answer():
    first, second = GainEstimate("gap", 0.1, 0.01, 0.15), GainEstimate("halves", 0.25, 0.01, 0.3)
    assert [reason.kind for reason in rules.mean(first, second).reasons] == ["gap and halving apart"]
    assert rules.calibrated(first, second).reasons == ()
    assert rules.calibrated(first, GainEstimate("halves", 0.31, 0.01, 0.4)).reasons != ()


def test_a_loss_that_rises_has_no_mean_and_no_exponent():
    first, second = GainEstimate("gap", 0.1, 0.01, 0.15), GainEstimate("halves", -0.1, 0.01, -0.15)
    found = rules.mean(first, second)
    assert math.isnan(found.gain)
    assert found.interval == (-math.inf, math.inf)
    assert all(map(math.isnan, rules.exponent(at(K), at(K // 2), at(K))))


def test_an_interval_is_wider_with_noise_and_farther_ahead():
    sure, noisy = (GainEstimate("calibrated", 1.0, error, 1.5) for error in (0.0, 0.5))
    low, high = sure.interval
    assert high == pytest.approx(1 / low) == pytest.approx(math.exp(1.645 * 0.5))
    assert noisy.interval[0] < low
    assert sure.further_interval[1] / 1.5 > high
    assert GainEstimate("calibrated", 1.0, math.nan, 1.5).interval == (-math.inf, math.inf)
