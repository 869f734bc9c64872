"""The law of a quadratic increment against draws, and its parts against one another."""

import math

import pytest
import torch
from scipy import stats

import curvprobe as cp
from curvprobe.criteria.distribution import absolute_moments
from curvprobe.numerics.quadratic_form import absolute_moment


def increment(dim, seed=0, level=0.3, *batch):
    draw = torch.Generator().manual_seed(seed)
    c, B = (torch.randn(*batch, *shape, generator=draw, dtype=torch.float64) for shape in ((dim,), (dim, dim)))
    return cp.QuadraticIncrement(torch.full(batch, level), c, (B + B.mT) / 2)


@pytest.mark.parametrize(("dim", "sigma"), [(1, 0.7), (3, 0.5), (10, 0.3)])
def test_against_draws(dim, sigma):
    inc = increment(dim)
    law = cp.increment_distribution(inc, sigma)
    z = sigma * torch.randn(400_000, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = inc.at(z)
    for p in (0.5, 1, 1.5, 2, 3, 4, 6):
        powers = drawn.abs() ** p
        assert abs(law.moment(p) - float(powers.mean())) < 4.5 * float(powers.std()) / math.sqrt(len(drawn))
    assert law.mean == pytest.approx(float(drawn.mean()), abs=5 * law.variance**0.5 / 632)
    assert law.variance == pytest.approx(float(drawn.var()), rel=0.05)
    for threshold in (0.0, 0.2, 0.8, 2.0):
        share = float((drawn.abs() > threshold).double().mean())
        assert law.exceedance(threshold) == pytest.approx(share, abs=0.004)
    for probability in (0.001, 0.2, 0.5, 0.9, 0.999):
        value = law.quantile(probability)
        assert law.cdf(value) == pytest.approx(probability, rel=1e-9)
        assert float((drawn <= value).double().mean()) == pytest.approx(probability, abs=0.004)


def test_quantiles_far_out():
    law = cp.increment_distribution(cp.QuadraticIncrement(torch.tensor(1.0), torch.ones(1), torch.zeros(1, 1)), 2.0)
    for probability in (1e-12, 1 - 1e-9):
        assert law.quantile(probability) == pytest.approx(1 + 2 * stats.norm.ppf(probability), rel=1e-7)
    assert law.exceedance(60.0) == pytest.approx(stats.norm.sf(29.5) + stats.norm.sf(30.5), rel=1e-10, abs=0)


@pytest.mark.parametrize("p", [4, 6, 8])
def test_even_orders_by_cumulants_are_those_of_the_integral(p):
    inc = increment(5, 3, 0.3, 40)
    sigma = torch.tensor(0.4, dtype=torch.float64)
    scaled = torch.linalg.eigh(inc.curvature * sigma**2)
    slope = torch.einsum("nd,nde->ne", inc.slope * sigma, scaled.eigenvectors)
    integral, _ = absolute_moment(float(p), inc.level, slope, scaled.eigenvalues)
    found = absolute_moments(inc, sigma, p)
    assert bool(((found - integral).abs() <= 1e-10 * integral).all())


def test_a_sum_that_cancels_is_taken_by_the_integral():
    """Cumulants of an increment that is nearly zero at nearly all draws: terms of 1 for a fourth moment of 1e-12."""
    level = cp.QuadraticIncrement(torch.tensor(-1.0), torch.zeros(200), 1e-2 * torch.eye(200))  # tr B / 2 = 1
    law = cp.increment_distribution(level, 1.0)
    z = torch.randn(200_000, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fourth = (z.square().sum(1) / 200 - 1) ** 4
    assert law.moment(4) == pytest.approx(float(fourth.mean()), rel=0.03)


def test_the_moments_of_several_are_those_of_each():
    inc = increment(4, 2, 0.1, 3, 2)
    for p in (1.0, 3.0, 4.0):
        found = absolute_moments(inc, torch.tensor(0.2, dtype=torch.float64), p)
        one = cp.QuadraticIncrement(inc.level[2, 1], inc.slope[2, 1], inc.curvature[2, 1])
        assert float(found[2, 1]) == pytest.approx(cp.gaussian_moment(one, sigma=0.2, p=p).value, rel=1e-9)


def test_a_sigma_for_each_direction():
    inc, sigma = increment(3), torch.tensor([0.1, 1.0, 0.5], dtype=torch.float64)
    scaled = cp.QuadraticIncrement(inc.level, inc.slope * sigma, inc.curvature * sigma[:, None] * sigma)
    law, same = cp.increment_distribution(inc, sigma), cp.increment_distribution(scaled, 1.0)
    assert law.moment(1) == pytest.approx(same.moment(1), rel=1e-12)
    moment = cp.gaussian_moment(inc, sigma=sigma, p=2)
    assert law.moment(2) == pytest.approx(moment.value, rel=1e-12)
    assert law.variance == pytest.approx(moment.shape, rel=1e-12)


def test_a_constant():
    law = cp.increment_distribution(cp.QuadraticIncrement(torch.tensor(-2.0), torch.zeros(2), torch.zeros(2, 2)), 0.1)
    assert (law.moment(3), law.cdf(-2.0), law.cdf(-2.1), law.quantile(0.3)) == (8.0, 1.0, 0.0, -2.0)
    assert (law.exceedance(1.9), law.exceedance(2.1)) == (1.0, 0.0)


def test_arguments():
    inc = increment(2)
    law = cp.increment_distribution(inc, 0.1)
    with pytest.raises(ValueError, match="worst_case"):
        law.moment(math.inf)
    with pytest.raises(ValueError, match="p is 0"):
        law.moment(0)
    with pytest.raises(ValueError, match="probability is 1"):
        law.quantile(1)
    with pytest.raises(ValueError, match="threshold is -1"):
        law.exceedance(-1)
    with pytest.raises(ValueError, match=r"\(3,\) increments came"):
        cp.increment_distribution(increment(2, 0, 0.3, 3), 0.1)
    for p in (0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="worst_case"):
            cp.gaussian_moment(inc, sigma=0.1, p=p)
