"""Conditions for a pipeline: what they are on, when they are met, and what cannot be told."""

import math
from dataclasses import replace

import pytest

import curvprobe as cp
from curvprobe.analysis.conditions import NAMES, Condition, conditioned
from curvprobe.criteria.row_errors import RowErrors
from tests.analysis.sound import GOOD, shape_of, sized


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shape_rms", "expected one such as"),
        ("shape_rms > ", "expected one such as"),
        ("shape_rms > big", "expected one such as"),
        ("shape_rms > nan", "expected one such as"),
        ("shape_rms == 1", "expected one such as"),
        ("__import__('os') > 1", "expected one such as"),
        ("rms > 1; rms > 2", "expected one such as"),
        ("shapes > 1", "the condition is on 'shapes'; expected one of rms, rms_low"),
    ],
)
def test_what_is_no_condition_is_refused(text, message):
    with pytest.raises(cp.ArgumentError, match=message):
        Condition.parse(text)


def test_every_name_is_known_and_its_number_the_answers(sound):
    sound = sized(sound, 1e-3)
    found = conditioned(sound)
    assert set(found) == set(NAMES)
    expected = {"rms": 1e-3, "rms_low": 5e-4, "rms_high": 2e-3, "rms_relative": 2e-3, "doubling_rms": 1e-2}
    expected |= {"shape_rms": 2e-5, "shape_rms_low": 1e-5, "shape_rms_high": 3e-5, "required_sample_size": 3215}
    expected |= {
        "loss": 0.5,
        "held_out_loss": 0.61234,
        "gradient_norm": 1e-8,
        "doubts": 0,
        "failures": 0,
    }
    expected |= {"sigma": sound.sigma, "quadratic_error": sound.validity.error_at(sound.sigma)}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name
    assert found["residual_max"] == float(sound.spectrum.residuals.max())
    assert found["num_matvecs"] == sound.spectrum.num_matvecs


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("rms > 0.0009", True),
        ("rms > 0.0011", False),
        ("rms<0.0011", True),
        ("rms <= 1e-4", False),
        ("sigma >= 1e-9", True),
    ],
)
def test_when_a_condition_is_met(sound, text, met):
    reason = Condition.parse(text).met_by(sound)
    assert (reason is not None) is met
    if met:
        assert reason.startswith(f"{Condition.parse(text)}: it is ")


def test_the_bounds_belong_to_a_relation_or_not(sound):
    at = replace(sound, held_out_loss=0.5)
    met = {relation: Condition("held_out_loss", relation, 0.5).met_by(at) for relation in (">", ">=", "<", "<=")}
    assert {relation for relation, reason in met.items() if reason} == {">=", "<="}


def test_what_cannot_be_told_stops_a_pipeline_too(sound):
    moving = sized(replace(sound, stationarity=cp.Stationarity(2.0, 1.0, 0.1, 0.3, 50.0, 0.5)), 1e-3)
    for name in ("rms", "shape_rms", "required_sample_size"):
        assert f"{name} < 0: it is not known (the point is not stationary" in Condition(name, "<", 0.0).met_by(moving)
    assert Condition.parse("failures > 0").met_by(moving) == "failures > 0: it is 1"
    bent = replace(GOOD, shape=0.8)
    shapeless = replace(sound, errors=RowErrors({0: bent}, bent, 10))
    assert Condition.parse("shape_rms > 1").met_by(shapeless) == "shape_rms > 1: it is not known (see the answer)"
    assert Condition.parse("rms > 1").met_by(shapeless) is None
    assert Condition.parse("doubts > 0").met_by(shapeless) == "doubts > 0: it is 1"
    assert math.isnan(conditioned(sound)["required_sample_size"])
    assert conditioned(replace(sound, loss=0.0))["rms_relative"] == math.inf
    assert math.isnan(conditioned(replace(sound, doubling=None))["doubling_rms"])
    unheard = replace(sound, expected=replace(sound.expected, **shape_of(math.nan)))
    assert math.isnan(conditioned(unheard)["shape_rms"])
