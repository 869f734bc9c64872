"""The tails of the bootstrap: expanded for few or unequal terms, in both kinds of intervals."""

import pytest
import torch
from scipy.stats import norm, t

from curvprobe.numerics import intervals


def test_tails_are_students_for_the_effective_number_of_terms():
    terms = torch.tensor([4.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    effective = 8.0**2 / 20.0
    assert intervals.expanded_tail(terms) == pytest.approx(norm.cdf(-t.ppf(0.975, effective - 1)), rel=1e-10)
    assert intervals.expanded_tail(torch.ones(10**6)) == pytest.approx(0.025, rel=1e-3)
    assert intervals.expanded_tail(torch.zeros(3)) == intervals.expanded_tail(torch.tensor([1.0, 0.0, 0.0]))


def test_both_kinds_of_intervals_leave_out_less_for_skewed_terms(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(250, 2, generator=draw, dtype=torch.float64) ** 3
    one = torch.ones(1, dtype=torch.float64)

    def widths() -> list[float]:
        low, high = intervals.mean_interval(vectors[:, 0].square())
        ends = intervals.ShiftAndSpread(vectors).intervals(one, one)
        return [high / low, float(ends[1] / ends[0])]

    expanded = widths()
    monkeypatch.setattr(intervals, "expanded_tail", lambda _: 0.025)
    assert all(wide > 1.03 * plain for wide, plain in zip(expanded, widths(), strict=True))


@pytest.mark.parametrize("kind", ["lognormal", "t3"])
@pytest.mark.parametrize("n", [250, 400])
def test_heavy_tails_are_covered(kind, n):
    """Squares whose own variance is infinite or nearly so: 92 % of 300 samples of the mean at least, nominally 95 %."""
    draw = torch.Generator().manual_seed(n)
    z = torch.randn(4, 300, n, generator=draw, dtype=torch.float64)
    if kind == "lognormal":
        terms, truth = (
            (z[0].exp() - 0.5**0.5).square(),
            float(torch.tensor(2.0).exp()) - 2**0.5 * 2.718281828**0.5 + 0.5,
        )
    else:
        terms, truth = (z[0] / (z[1:].square().mean(0)).sqrt()).square(), 3.0
    ends = [intervals.mean_interval(one) for one in terms]
    assert sum(low <= truth <= high for low, high in ends) >= 276
    assert sum(low > truth for low, _ in ends) <= 12


def test_no_upper_end_for_few_terms():
    terms = torch.linspace(1, 2, 249, dtype=torch.float64)
    assert intervals.mean_interval(terms)[1] == float("inf")
    assert intervals.mean_interval(torch.linspace(1, 2, 250, dtype=torch.float64))[1] < 1.7


def test_no_upper_end_where_a_few_terms_make_the_whole_mean():
    """One term in 300: a third of the resamples are without it, and the bootstrap's own end is 1e21."""
    terms = torch.linspace(1, 100, 300, dtype=torch.float64) * 1e-5
    terms[7] = 1.0
    low, high = intervals.mean_interval(terms)
    assert 0 <= low < terms.mean()
    assert high == float("inf")
    one = torch.ones(1, dtype=torch.float64)
    assert intervals.ShiftAndSpread(terms.sqrt()[:, None]).intervals(one, one)[1] == float("inf")


def test_degrees_of_freedom():
    """n - 1 where the squares are alike, 1 where one makes the whole, and Kish's number less one between."""
    alternating = torch.tensor([1.0, -1.0] * 8, dtype=torch.float64)
    assert intervals.freedom(alternating) == 15
    assert intervals.freedom(alternating + 5) == 15
    one = torch.zeros(400, dtype=torch.float64)
    one[3] = 1.0
    assert intervals.freedom(one) == 1.0
    assert intervals.freedom(torch.tensor([1.0, 3.0], dtype=torch.float64)) == 1.0
    assert intervals.freedom(torch.tensor([1.0], dtype=torch.float64)) == 1.0
    assert intervals.freedom(torch.full((6,), 2.0, dtype=torch.float64)) == 5.0
    assert intervals.freedom(torch.full((2,), 2.0, dtype=torch.float64)) == 1.0
    terms = torch.tensor([4.0, -4.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    assert intervals.freedom(terms) == pytest.approx((2 * 16 + 6) ** 2 / (2 * 256 + 6) - 1)


def test_logarithmic_intervals():
    t = 4.302652729911275  # Student's 97.5 % quantile of 2 degrees of freedom
    low, high = intervals.log_interval(2.0, 0.5, 2)
    factor = float(torch.tensor(t * 0.25, dtype=torch.float64).exp())
    assert (low, high) == (pytest.approx(2 / factor), pytest.approx(2 * factor))
    nothing = (0.0, float("inf"))
    for value, stderr, freedom in ((0.0, 1.0, 2), (-1.0, 1.0, 2), (1.0, float("nan"), 2), (1.0, 0.1, 0)):
        assert intervals.log_interval(value, stderr, freedom) == nothing
    assert intervals.log_interval(1.0, 1e9, 1)[1] == pytest.approx(2.718281828459045**700)


def test_the_reach_is_students():
    assert intervals.student_reach(2.0, 2) == pytest.approx(2 * 4.302652729911275)
    assert intervals.student_reach(1.0, float("inf")) == pytest.approx(1.959963984540054)
