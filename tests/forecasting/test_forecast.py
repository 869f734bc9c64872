"""The whole of a forecast: by theory, found again, beside one another, from a trajectory, and read back."""

import json
import math
from dataclasses import replace

import pytest
import torch

import curvprobe as cp
from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.forecasting.result import NO_CRITERION, told
from curvprobe.forecasting.rules import Reason
from tests.forecasting import HELD_OUT, WIDTH, first, least_squares, refits


@pytest.fixture(scope="module")
def found():
    return cp.forecast(least_squares, 200, HELD_OUT)


def expected(k):
    """Held-out loss of least squares with normal inputs: (1 + d / (k - d - 1)) times the noise."""
    return 1 + WIDTH / (k - WIDTH - 1)


def test_it_is_near_what_theory_says(found):
    truth = expected(200) - expected(400)
    assert found.reasons == ()
    assert truth / 2 < found.gain < 2 * truth
    low, high = found.interval
    assert low < truth < high
    assert found.sizes.tolist() == [200, 100, 50]
    assert found.models.tolist() == [1, 8, 4]
    assert float(found.losses[1]) == pytest.approx(expected(100), rel=0.15)
    assert found.ahead()[1][0] == 800
    assert found.ahead()[0][1] == pytest.approx(found.held_out_loss - found.gain)


def test_what_is_printed(found):
    text = str(found)
    low, high = found.interval
    assert f"would take {found.gain:.2g} [{low:.2g}, {high:.2g}] off the held-out loss" in text
    assert "assumed: the loss in excess of the best falls as 1 / k" in text
    assert "within a factor 2" in text
    assert "was not looked at" not in text
    assert text.endswith(NO_CRITERION)
    assert found._repr_html_().count("<tr>") == 4
    assert "Forecast(sizes=" in repr(found)


def test_a_refusal_says_why_and_forecasts_nothing(found):
    refused = replace(found, refusals=(Reason("few held-out examples", "39 held-out examples; expected at least 40"),))
    assert math.isnan(refused.gain)
    assert refused.interval == (-math.inf, math.inf)
    assert refused.ahead() == []
    assert str(refused).startswith("NO FORECAST of what more examples would take off the held-out loss:\n  39 held-out")
    assert "(200 to 400)" not in str(refused)


def test_finished_trainings_are_found_again(tmp_path, found):
    calls = []

    def train(rows):
        calls.append(len(rows))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return least_squares(rows)

    with pytest.raises(KeyboardInterrupt):
        cp.forecast(train, 200, HELD_OUT, out=tmp_path)
    again = cp.forecast(train, 200, HELD_OUT, out=tmp_path)
    assert len(calls) == 14  # one split was under way
    assert again.gain == pytest.approx(found.gain)
    assert cp.forecast(train, 200, HELD_OUT, out=tmp_path).gain == again.gain
    assert len(calls) == 14
    cp.forecast(train, 200, (HELD_OUT[0][:300], HELD_OUT[1][:300]), out=tmp_path)
    assert len(calls) == 27


def test_several_processes_find_the_same(found):
    beside = cp.forecast(least_squares, 200, HELD_OUT, processes=2)
    assert beside.gain == pytest.approx(found.gain, rel=1e-9)
    assert torch.allclose(beside.losses, found.losses)


def test_what_other_processes_cannot_be_given_is_refused_before_anything_is_trained():
    with pytest.raises(ArgumentTypeError, match="cannot be given to other processes"):
        cp.forecast(lambda rows: pytest.fail("trained"), 200, HELD_OUT, processes=2)


def failing(rows):
    if len(rows) == 100:
        raise ZeroDivisionError(f"in {len(rows)} rows")
    return least_squares(rows)


def test_an_error_in_another_process_is_the_users_own():
    with pytest.raises(ZeroDivisionError, match="in 100 rows"):
        cp.forecast(failing, 200, HELD_OUT, processes=2)


def test_the_first_k_alone_do_too():
    found = cp.forecast(first, 200, HELD_OUT)
    assert "was not looked at: that takes both halves" in str(found)
    assert found.models.tolist() == [1, 1, 1]
    assert float(found.losses[1]) == pytest.approx(first(100).on(HELD_OUT).value())


def test_a_trajectory_is_taken_in_the_place_of_trainings(tmp_path):
    cp.trajectory(first, [50, 100, 200], candidates=HELD_OUT, dim=2, sigma=0.01, out=tmp_path)
    taken, trained = cp.forecast(tmp_path), cp.forecast(first, 200, HELD_OUT)
    assert taken.gain == pytest.approx(trained.gain, rel=1e-6)
    assert torch.allclose(taken.losses, trained.losses)
    assert taken.exponent == pytest.approx(trained.exponent, rel=1e-5)


def test_a_trajectory_that_does_not_tell_enough_is_refused(tmp_path):
    cp.trajectory(first, [50, 200], candidates=HELD_OUT, dim=1, sigma=0.01, out=tmp_path / "uneven")
    with pytest.raises(ArgumentError, match=r"has the sample sizes \[50, 200\]; expected each once, and half of the"):
        cp.forecast(tmp_path / "uneven")
    cp.trajectory(first, [100, 200], dim=1, sigma=0.01, out=tmp_path / "bare")
    with pytest.raises(ArgumentError, match="has no candidates"):
        cp.forecast(tmp_path / "bare")
    with pytest.raises(ArgumentError, match="no trajectory could be read"):
        cp.forecast(tmp_path / "none")


def test_it_is_read_back_as_it_was(tmp_path, found):
    again = cp.forecast(least_squares, 200, HELD_OUT, out=tmp_path)
    loaded = cp.load(tmp_path)
    assert str(loaded) == str(again)
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["forecast"]["answered"] is True
    assert record["config"]["k"] == 200
    assert record["forecast"]["estimates"][3]["further_interval"] == list(again.answer.further_interval)
    record["forecast"]["estimates"] = "none"
    (tmp_path / "result.json").write_text(json.dumps(record))
    with pytest.raises(ArgumentError, match="not a whole result"):
        cp.load(tmp_path)


def test_too_little_to_cut_is_refused():
    with pytest.raises(ArgumentError, match="k is 15, splits 4, processes 1; expected k of at least 16"):
        cp.forecast(least_squares, 15, HELD_OUT)
    with pytest.raises(ArgumentError, match="k is None"):
        cp.forecast(least_squares, held_out=HELD_OUT)


def test_its_costs_are_said_first():
    said = []
    cp.forecast(least_squares, 64, HELD_OUT, splits=2, say=said.append)
    assert said[0] == "9 models are trained: as much work as 4 trainings on 64 examples."
    assert said[1].startswith("The training on 64 examples took ")


def test_four_sizes_and_more_have_a_power_law_too():
    losses = torch.linspace(0.9, 1.1, 50, dtype=torch.float64)
    sizes = [refits(size, losses + 10 / size, 1.0 - 10 / size) for size in (160, 80, 40, 20)]
    assert [estimate.rule for estimate in told(sizes).estimates][-1] == "power law"
    assert len(told(sizes[:3]).estimates) == 4
