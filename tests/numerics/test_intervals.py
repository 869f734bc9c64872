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
    vectors = torch.randn(40, 2, generator=draw, dtype=torch.float64) ** 3
    one = torch.ones(1, dtype=torch.float64)

    def widths() -> list[float]:
        low, high = intervals.mean_interval(vectors[:, 0].square())
        ends = intervals.ShiftAndSpread(vectors).intervals(one, one)
        return [high / low, float(ends[1] / ends[0])]

    expanded = widths()
    monkeypatch.setattr(intervals, "expanded_tail", lambda _: 0.025)
    assert all(wide > 1.1 * plain for wide, plain in zip(expanded, widths(), strict=True))
