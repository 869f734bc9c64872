"""The verdict on a single row: from draws of its own, for the total and for the shape."""

import math

import pytest
import torch

import curvprobe as cp
from curvprobe.criteria.row_errors import RowError, RowErrors, row_errors


def increments(*scales):
    """Models of several candidates: level, slope and curvature of a size each."""
    draw = torch.Generator().manual_seed(0)
    c, B = torch.randn(3, 2, generator=draw, dtype=torch.float64), torch.randn(3, 2, 2, generator=draw)
    size = torch.tensor(scales, dtype=torch.float64)
    n = len(scales)
    return cp.QuadraticIncrement(size, size[:, None] * c[:n], size[:, None, None] * (B + B.mT)[:n].double())


def draws(count, sigma=0.5):
    half = sigma * torch.randn(count // 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.stack([half, -half], 1).flatten(0, 1)


def test_a_model_that_is_the_truth_is_valid_at_no_error():
    model, z = increments(1.0, 1e-6, 3.0), draws(64)
    found = row_errors([0, 1, 2], 3, model, 0.5, model.at(z).T, z)
    for row in [*found.rows.values(), found.expected]:
        assert (row.total, row.total_reach, row.total_verdict, row.shape_verdict) == (0.0, 0.0, "valid", "valid")


def test_one_bad_row_among_good_ones_is_told():
    """The pooled error is that of the large candidates; the small one is off by half, and its row says so."""
    model, z = increments(1.0, 1e-3, 1.0), draws(512)
    true = model.at(z).T.clone()
    true[:, 1] *= math.sqrt(1.5)
    found = row_errors([0, 1, 2], 3, model, 0.5, true, z)
    assert found.rows[0].total_verdict == "valid"
    assert found.rows[1].total_verdict == "invalid"
    assert found.rows[1].total == pytest.approx(0.5, abs=0.15)
    assert abs(found.rows[1].total - 0.5) < found.rows[1].total_reach
    assert abs(found.rows[1].shape - 0.5) < found.rows[1].shape_reach
    assert found.expected.total_verdict == "valid"
    assert abs(found.expected.total) < 1e-5


def test_total_and_shape_are_judged_apart():
    """A cubic term that vanishes in the total beside a large level is most of a small shape."""
    model, z = increments(1.0), draws(2048)
    model = cp.QuadraticIncrement(model.level, 1e-3 * model.slope, 1e-3 * model.curvature)
    true = model.at(z).T + 2e-3 * z[:, :1] ** 3
    row = row_errors([0], 1, model, 0.5, true, z).rows[0]
    assert row.total_verdict == "valid"
    assert row.shape_verdict != "valid"
    exact = (
        float(true[:, 0].var(correction=0))
        / cp.gaussian_moment(cp.QuadraticIncrement(model.level[0], model.slope[0], model.curvature[0]), sigma=0.5).shape
    )
    assert row.shape == pytest.approx(exact - 1, abs=row.shape_reach + 0.1)


def test_the_mean_is_over_those_that_were_not_chosen():
    model, z = increments(1.0, 1.0, 1.0), draws(64)
    true = model.at(z).T.clone()
    true[:, 2] *= 10  # chosen for its size
    found = row_errors([0, 1, 7], 2, model, 0.5, true, z)
    assert set(found.rows) == {0, 1, 7}
    assert (found.num_candidates, found.expected.total) == (2, 0.0)
    assert found.rows[7].total > 10


@pytest.mark.parametrize("p", [1.0, 3.0])
def test_other_orders(p):
    model, z = increments(1.0), draws(20_000)
    row = row_errors([0], 1, model, 0.5, 1.1 * model.at(z).T, z, p).rows[0]
    assert row.total == pytest.approx(1.1**p - 1, rel=0.1)
    assert abs(row.total - (1.1**p - 1)) < 2 * row.total_reach


def test_intervals_of_rows_cover():
    """95 % intervals of a heavy-tailed excess: 85 % of 300 sets of draws at least, where Student's hold in 70 %."""
    model = increments(1.0)
    far = 1.0

    def truth(z):
        return model.at(z).T + 0.3 * z[:, :1] ** 3 + 0.1 * z[:, 1:] ** 4

    z = draws(400_000, far)
    exact = row_errors([0], 1, model, far, truth(z), z).rows[0].total
    hits = 0
    for seed in range(300):
        half = far * torch.randn(16, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        z = torch.stack([half, -half], 1).flatten(0, 1)
        row = row_errors([0], 1, model, far, truth(z), z).rows[0]
        hits += abs(row.total - exact) <= row.total_reach
    assert hits >= 255


def test_two_draws_by_hand():
    """Closed forms: total 4 + 1 * 0.25 = 4.25, shape 0.25. Truths of 3 and 2 against 2.5 and 1.5 of the model."""
    model = cp.QuadraticIncrement(torch.tensor([2.0]), torch.tensor([[1.0]]), torch.zeros(1, 1, 1))
    z = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
    row = row_errors([0], 1, model, 0.5, torch.tensor([[3.0], [2.2]], dtype=torch.float64), z).rows[0]
    assert row.total == pytest.approx(((9 - 6.25) + (4.84 - 2.25)) / 2 / 4.25, rel=1e-12)
    assert row.shape == pytest.approx((2 * 0.4**2 - 2 * 0.5**2) / 0.25, rel=1e-12)  # over n - 1


def test_flat_rows_json_and_words():
    flat = cp.QuadraticIncrement(torch.zeros(1), torch.zeros(1, 2), torch.zeros(1, 2, 2))
    z = draws(8)
    nothing = row_errors([0], 1, flat, 0.5, torch.zeros(8, 1, dtype=torch.float64), z)
    assert nothing.rows[0].total_verdict == "valid"
    found = row_errors([0], 1, flat, 0.5, torch.ones(8, 1, dtype=torch.float64), z)
    assert (found.rows[0].total, found.rows[0].total_verdict) == (math.inf, "invalid")
    assert "the closed form is zero" in str(found.rows[0])
    known = RowErrors({3: RowError(0.02, 0.01, -0.2, 0.05)}, RowError(0.5, 0.1, 0.0, 0.01), 1)
    assert RowErrors.from_json(known.to_json()) == known
    words = "total valid (+2.0 +- 1.0 %), shape marginal (-20.0 +- 5.0 %)"
    assert str(known.rows[3]) == words
    assert str(RowError.of_total(cp.Estimate(2.0, 0.0), cp.Estimate(2.1, 0.0))) == "total valid (+5.0 +- 0.0 %)"
    assert RowError.of_total(cp.Estimate(0.0, 0.0), cp.Estimate(2.1, 0.0)).total == math.inf
    assert known.to_json()["expected"]["total_verdict"] == "invalid"


def test_two_draws_have_an_error():
    model, z = increments(1.0), draws(2)
    true = model.at(z).T + torch.tensor([[0.01], [0.02]])
    row = row_errors([0], 1, model, 0.5, true, z).rows[0]
    assert 0 < row.total_reach < math.inf
    assert 0 < row.shape_reach < math.inf


def test_the_error_of_an_estimate_against_another():
    closed, true = cp.Estimate(0.5, 0.0), cp.Estimate(0.6, 0.01)
    found = RowError.of_total(closed, true)
    assert (found.total, found.total_reach) == (pytest.approx(0.2), pytest.approx(true.reach / 0.5))
    assert math.isnan(found.shape)
    assert math.isnan(found.shape_reach)
    none = RowError.of_total(cp.Estimate(0.0, 0.0), true)
    assert (none.total, none.total_reach, none.total_verdict) == (math.inf, math.inf, "invalid")
    assert math.isnan(none.shape_reach)


def test_a_sigma_of_the_wrong_length_is_refused():
    model, z = increments(1.0), draws(4)
    with pytest.raises(cp.ArgumentError, match="sigma"):
        row_errors([0], 1, model, torch.full((3,), 0.5), model.at(z).T, z)
