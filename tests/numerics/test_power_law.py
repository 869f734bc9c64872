"""Power laws against SciPy's regression."""

import math

import pytest
import torch
from scipy import stats

from curvprobe.numerics.power_law import power_law


def test_a_fit_is_that_of_scipy():
    ks = torch.tensor([2, 5, 11, 30, 70])
    noise = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = 3 * ks.double() ** -1.7 * (0.2 * noise).exp()
    found = power_law(ks, values)
    expected = stats.linregress(ks.double().log().numpy(), values.log().numpy())
    assert found.exponent == pytest.approx(expected.slope, rel=1e-12)
    assert found.at_one == pytest.approx(math.exp(expected.intercept), rel=1e-12)
    reach = float(stats.t.ppf(0.975, 3)) * expected.stderr
    assert found.interval == pytest.approx((expected.slope - reach, expected.slope + reach), rel=1e-9)


def test_an_exact_law_and_too_few_points():
    ks = torch.tensor([1, 2, 4])
    found = power_law(ks, 5 * ks.double() ** -2)
    assert (found.exponent, found.at_one) == (pytest.approx(-2), pytest.approx(5))
    assert found.interval == pytest.approx((-2, -2))
    two = power_law(ks[:2], ks[:2].double())
    assert (two.exponent, two.interval) == (pytest.approx(1), (-math.inf, math.inf))
    one = power_law(ks[:1], ks[:1].double())
    assert math.isnan(one.exponent)
    assert math.isnan(one.at_one)
    assert one.interval == (-math.inf, math.inf)
