"""The required sample size against the truth of known populations."""

import math

import pytest
import torch

import curvprobe as cp
from curvprobe.criteria import sample_size
from curvprobe.criteria.sample import moving_ratio
from tests.criteria.samples import SIGMA, sample_of
from tests.population import drawn, logistic


def test_the_required_size_is_the_first_that_is_enough():
    pool = sample_of(500)
    tolerance = 0.01
    size = cp.required_sample_size(pool, None, SIGMA, tolerance)
    assert size.verdict == "supported"
    at, before = (cp.expected_criterion(pool, None, SIGMA, k=k).rms for k in (size.value, size.value - 1))
    assert at <= tolerance < before
    assert size.interval[0] < size.value < size.interval[1]


def test_candidates_that_join_pull_the_mean_along():
    sample, fresh = sample_of(50), sample_of(400, seed=1, shift=1.0)
    size = cp.required_sample_size(sample, fresh, SIGMA, 0.02)
    assert size.value > 50
    draws = []
    for seed in range(200):
        order = torch.randint(0, 400, (size.value - 50,), generator=torch.Generator().manual_seed(seed))
        grown = cp.ProjectedSample(
            *(
                torch.cat([getattr(sample, name), getattr(fresh[order], name)])
                for name in ("loss", "weight", "gradient", "hessian")
            )
        )
        draws.append(cp.expected_criterion(grown, fresh, SIGMA).value)
    assert math.sqrt(sum(draws) / len(draws)) == pytest.approx(0.02, rel=0.02)


def test_no_answer_without_grounds():
    few = cp.required_sample_size(sample_of(6), None, SIGMA, 1e-3, widest=1.5)
    assert few.value is None
    assert "do not determine it" in few.verdict
    pool = sample_of(500)
    moving = cp.ProjectedSample(pool.loss, pool.weight, pool.gradient + 3.0, pool.hessian)
    assert moving_ratio(moving) > 100
    refused = cp.required_sample_size(moving, None, SIGMA, 1e-2)
    assert refused.value is None
    assert "not stationary" in refused.verdict
    with pytest.raises(ValueError, match="4 examples came"):
        cp.required_sample_size(sample_of(4), None, SIGMA, 1e-3)
    with pytest.raises(ValueError, match="tolerance is 0"):
        cp.required_sample_size(pool, None, SIGMA, 0)


def test_the_moving_ratio_is_one_at_a_minimiser_of_the_population():
    ratios = torch.tensor([moving_ratio(sample_of(50, seed=s)) for s in range(400)])
    assert abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / 20


@pytest.mark.parametrize("pool", [False, True])
def test_the_interval_covers_the_true_size(pool):
    """Nominally 95 %: between 92 and 98 % of 600 draws."""
    sample, population = logistic()
    if pool:
        dispersion = 2 * cp.expected_criterion(population, None, SIGMA, k=1).value
        truth = (math.sqrt(1 + 4 * dispersion / 1e-6) - 1) / 2
    else:
        truth = sample_size.size_with(sample, population[:20_000], SIGMA, 1e-3)[0]
    hits = 0
    for seed in range(600):
        draws = drawn(population, 100, seed)
        size = cp.required_sample_size(draws if pool else sample, None if pool else draws, SIGMA, 1e-3, widest=1e9)
        hits += size.interval[0] <= truth <= size.interval[1]
    assert 552 <= hits <= 588


@pytest.mark.parametrize("sigma", [SIGMA, 1, torch.tensor(SIGMA)])
def test_no_answer_where_the_quadratic_model_does_not_hold(sigma):
    zero = torch.zeros(2, dtype=torch.float64)
    grid = torch.tensor([1e-3, 10.0], dtype=torch.float64)
    validity = cp.QuadraticValidity(grid, zero, None, 0.05, ("valid", "invalid"), 2, zero, grid, 1.0)
    found = cp.required_sample_size(sample_of(500), None, sigma, 1e-2, validity=validity)
    assert found.value is None
    assert "the quadratic model is invalid" in found.verdict


def test_candidates_that_are_all_alike_determine_nothing():
    same = sample_of(1)[[0] * 8]
    size = cp.required_sample_size(same[:4], same, SIGMA, 1e-3)
    assert (size.value, size.interval) == (None, (1.0, math.inf))
    assert "do not determine it" in size.verdict
