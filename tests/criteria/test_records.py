"""What the criteria write into files, field by field, and what they print, word by word."""

import json
import math
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from torch import Tensor

import curvprobe as cp
from curvprobe.criteria.row_errors import RowError, RowErrors
from curvprobe.criteria.theory import Extremality, RateBound, SpectralClosedForm
from curvprobe.runtime.plain import to_json
from tests.criteria.samples import SIGMA, joined, sample_of


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def validity(increment_error: Tensor | None, change: Tensor) -> cp.QuadraticValidity:
    return cp.QuadraticValidity(
        sigmas=double(0.1, 1.0),
        loss_error=double(0.01, math.inf),
        increment_error=increment_error,
        threshold=0.05,
        verdicts=("valid", "invalid"),
        num_probes=torch.tensor([4, 16]),
        stderr=double(0.001, math.inf),
        change=change,
        loss=0.5,
    )


THEORY = cp.TheoryChecks(
    RateBound(4.0, 2.0, 1.0, 3.0, 5.0, math.nan),
    SpectralClosedForm(0.5, 0.75, 1.0, 0.25),
    Extremality(3.0, 4.0, (1, 2), 0.5, 10, False),
)
AMBIENT = cp.TheoryChecks(
    RateBound(4.0, 2.0, 1.0, 3.0, 5.0, 9.0),
    SpectralClosedForm(0.5, 0.75, 1.0, 0.25),
    Extremality(3.0, 4.0, (1, 2), 0.5, 10, True),
)
RANKING = cp.Ranking(
    double(1.0, 3.0, 2.0), double(0.1, 0.2, 0.3), double(5.0, 6.0, 7.0), double(1, 2, 3), double(3, 2, 1)
)
SIZE = cp.RequiredSampleSize(290, 276, 290, (275.2, 310.7), 0.01, "supported", "the weights stay", 0.012, "shape")
AT_LEAST = cp.RequiredSampleSize(None, 276, 290, (275.2, math.inf), 0.01, "at least", "the weights stay", 0.012)
STATIONARITY = cp.Stationarity(2.0, 1.0, 0.125, 0.25, 0.5, 0.03)


def samples() -> tuple[cp.ProjectedSample, cp.ProjectedSample]:
    return sample_of(9), sample_of(6, seed=1)


RECORDS = {
    "expected": lambda: cp.expected_criterion(*samples(), SIGMA),
    "expected of order 3": lambda: cp.expected_criterion(*samples(), SIGMA, p=3.0),
    "expected of a pool": lambda: cp.expected_criterion(samples()[0], None, SIGMA, grow_by=2),
    "decay": lambda: cp.decay_curve(samples()[0], [3, 7], [0.1, 0.3], [1, 2]),
    "decay of order 3": lambda: cp.decay_curve(samples()[0], [3, 7], [0.1, 0.3], [1, 2], p=3.0),
    "closed form": lambda: joined(samples()[0], samples()[1][0]),
    "Monte Carlo": lambda: cp.quadratic_monte_carlo(cp.increment(*samples()), sigma=SIGMA, num_probes=8, p=1.5),
    "validity": lambda: validity(double(0.02, math.inf), double(0.3, math.inf)),
    "validity without an increment": lambda: validity(None, double(0.3, math.inf)),
    "validity whose change is not known": lambda: validity(None, double(math.nan, math.nan)),
    "ranking": lambda: RANKING,
    "errors of rows": lambda: RowErrors({0: RowError(0.1, 0.2, math.inf, math.inf)}, RowError(0.1, 0.01, 0.5, 0.2), 3),
    "required size": lambda: SIZE,
    "least size": lambda: AT_LEAST,
    "stationarity": lambda: STATIONARITY,
    "stationarity that nothing explains": lambda: replace(STATIONARITY, moving_ratio=math.inf),
    "stationarity that cannot be judged": lambda: replace(STATIONARITY, moving_ratio=math.nan),
    "theory": lambda: THEORY,
    "theory with the ambient dimension": lambda: AMBIENT,
    "expected of many": lambda: cp.expected_criterion(samples()[0], sample_of(300, seed=1), SIGMA),
}


def assert_same(a, b) -> None:
    assert type(a) is type(b)
    if is_dataclass(a):
        for field in fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.allclose(a.double(), b.double(), rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b or (a != a and b != b)


@pytest.mark.parametrize("name", RECORDS)
def test_what_is_written_is_read_back(name):
    found = RECORDS[name]()
    record = json.loads(to_json(found.to_json()))
    assert_same(type(found).from_json(record), found)


@pytest.mark.parametrize("name", ["expected", "decay", "closed form"])
def test_a_record_that_says_nothing_of_its_order_is_of_the_second(name):
    found = RECORDS[name]()
    record = json.loads(to_json(found.to_json()))
    if name != "closed form":  # its reader fills that in for the whole file
        del record["p"]
    assert type(found).from_json(record).p == 2.0


def test_records_of_earlier_versions():
    record = json.loads(to_json(RECORDS["expected"]().to_json()))
    del record["shape_interval"], record["shape_by_direction"]
    found = cp.ExpectedCriterion.from_json(record)
    assert (found.shape_interval, found.shape_by_direction.shape) == ((0.0, math.inf), (0,))
    record = json.loads(to_json(SIZE.to_json()))
    del record["at_least"], record["observed"], record["unseen"], record["of"]
    found = cp.RequiredSampleSize.from_json(record)
    assert (found.value, found.at_least, found.observed, found.of) == (290, None, 290, "total")
    assert math.isnan(found.unseen)
    record = STATIONARITY.to_json()
    del record["step_decrease"]
    assert math.isnan(cp.Stationarity.from_json(record).step_decrease)
    record = json.loads(to_json(THEORY.to_json()))
    del record["rate_bound"]["ambient_bound"]
    assert math.isnan(cp.TheoryChecks.from_json(record).rate_bound.ambient_bound)


def test_derived_values_are_written_too():
    assert STATIONARITY.to_json()["outside"] == 0.75
    expected = RECORDS["expected"]()
    record = expected.to_json()
    assert (record["rms"], record["shape"]) == (expected.rms, expected.shape)
    assert record["table"]["spread"]["slope"] == {
        "value": float(expected.table[1, 1]),
        "stderr": float(expected.table_stderr[1, 1]),
    }
    judged = RowError(0.05, 0.01, 0.3, 0.05).to_json()
    assert (judged["total_verdict"], judged["shape_verdict"]) == ("valid", "marginal")
    record = RANKING.to_json()["rank_correlation"]
    assert record["shape"] == {
        "loss": pytest.approx(1.0),
        "gradient_norm": pytest.approx(1.0),
        "projected_gradient_norm": pytest.approx(-1.0),
    }
    assert record["total"]["loss"] == pytest.approx(0.5)


# ---- texts -----------------------------------------------------------------------------------------------------------


def test_the_text_of_an_expectation():
    flat = cp.ExpectedCriterion(
        value=0.25,
        stderr=0.01,
        interval=(0.04, 0.36),
        table=double(0.1, 0.02, 0.003, 0.12, 0.006, 0.001).reshape(2, 3),
        table_stderr=torch.zeros(2, 3),
        contributions=torch.ones(2),
        grow_by=4,
        shape_interval=(0.01, 0.04),
        shape_by_direction=double(0.02, 0.01),
        pool=False,
    )
    assert str(flat).split("\n") == [
        "RMS increment 0.5 [0.2, 0.6] when 4 more join",
        "                   level       slope   curvature",
        "mean shift           0.1        0.02       0.003",
        "spread              0.12       0.006       0.001",
    ]
    assert (flat.rms_interval, flat.shape_rms_interval) == ((0.2, 0.6), (0.1, 0.2))
    assert flat.shape_rms == pytest.approx(0.03**0.5)
    cubic = cp.expected_criterion(*samples(), SIGMA, p=3.0)
    low, high = cubic.rms_interval
    assert str(cubic) == f"Mean increment of order 3 {cubic.rms:.4g} [{low:.4g}, {high:.4g}] when 1 more join"
    assert math.isnan(cubic.shape_rms)


def test_the_text_of_a_required_size():
    assert str(SIZE) == (
        "Sample size for an rms of 0.01 loss units of the shape: 290 [275, 311]\n"
        "  (if the weights stay; a kind of examples rarer than 1 in 83 may have been missed)"
    )
    assert str(AT_LEAST).startswith(
        "Sample size for an rms of 0.01 loss units: at least 276 (97.5 %); no upper end, the candidates themselves "
        "give 290\n"
    )
    assert str(replace(AT_LEAST, unseen=math.nan)).endswith("(if the weights stay)")
    refused = cp.RequiredSampleSize(None, None, None, (1.0, 2.0), 0.01, "it is not a minimum", "", 0.012)
    assert str(refused) == "Sample size for an rms of 0.01 loss units: no answer; it is not a minimum"


def test_the_text_of_stationarity():
    assert str(STATIONARITY) == (
        "Stationarity: a gradient step would take 2.50e-01 off the loss, 75 % of the squared gradient is outside the "
        "subspace;\n  a Newton step in the subspace would take 1.25e-01 off the loss; in the slope's mean square the "
        "sample's own gradient is 3 %"
    )
    undefined = cp.Stationarity(2.0, 1.0, math.nan, 0.25, 0.5, 0.03)
    assert "Newton step in the subspace is not defined (not all eigenvalues are positive)" in str(undefined)
    assert STATIONARITY.refusal(0.25) is None
    assert "0.25 off the loss, more than the tolerance of 0.24" in STATIONARITY.refusal(0.24)


def test_the_text_of_theory():
    assert str(THEORY) == (
        "Theory, first candidate: rate bound 4.00e+00, 2 times the value; spectral form 5.00e-01, 25 % of B is not in "
        "the shifts;\n  of 10 sets of 2 of the directions found, 50 % bend no more than the leading ones (the "
        "proposition's premise does not hold: the shifts are not all positive and in order, or B mixes them)"
    )
    assert "rate bound 4.00e+00 (with N for D at least 9.00e+00)" in str(AMBIENT)
    assert str(AMBIENT).endswith("(the proposition's premise holds)")


def test_the_text_of_a_ranking():
    lines = RANKING.text({1: "off"}).split("\n")
    assert lines[0] == "Candidates that would move it most (at the end, the truth against the total):"
    assert " ".join(lines[1].split()) == "candidate total shape loss gradient norm projected gradient norm"
    assert [line.split() for line in lines[2:5]] == [
        ["1", "3", "0.2", "6", "2", "2", "off"],
        ["2", "2", "0.3", "7", "3", "1"],
        ["0", "1", "0.1", "5", "1", "3"],
    ]
    assert lines[5:] == [
        "Ranking by shape agrees with loss 1.00, gradient norm 1.00, projected gradient norm -1.00 (rank correlation)"
    ]
    assert str(RANKING).startswith("Candidates that would move it most:\n")
    two = cp.Ranking(*(column[:2] for column in vars(RANKING).values()))
    assert len(str(two).split("\n")) == 5
    one = cp.Ranking(*(column[:1] for column in vars(RANKING).values()))
    assert str(one).startswith("Ranking by shape agrees with loss nan")
    frame = RANKING.to_dataframe()
    assert (frame.index.name, frame.index.tolist()) == ("candidate", [1, 2, 0])


def test_the_text_of_a_row():
    assert str(RowError(0.05, 0.01, 0.3, 0.05)) == "total valid (+5.0 +- 1.0 %), shape marginal (+30.0 +- 5.0 %)"
    assert str(RowError(math.inf, math.inf, math.nan, math.nan)) == "total invalid (the closed form is zero)"
