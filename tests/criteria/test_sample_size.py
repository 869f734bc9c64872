"""The required sample size against the truth of known populations."""

import math

import pytest
import torch
from scipy.optimize import brentq

import curvprobe as cp
from curvprobe.criteria import sample_size
from curvprobe.criteria.expectation import features
from curvprobe.criteria.sample_size import size_with
from curvprobe.criteria.stationarity import moving_ratio, over_scatter
from curvprobe.numerics.intervals import ShiftAndSpread
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
    pool = sample_of(500)
    moving = cp.ProjectedSample(pool.loss, pool.weight, pool.gradient + 3.0, pool.hessian)
    assert moving_ratio(moving) > 100
    refused = cp.required_sample_size(moving, None, SIGMA, 1e-2)
    assert (refused.value, refused.at_least, refused.observed) == (None, None, None)
    assert "not stationary" in refused.verdict
    assert "no answer; the point is not stationary" in str(refused)
    with pytest.raises(ValueError, match="4 examples came"):
        cp.required_sample_size(sample_of(4), None, SIGMA, 1e-3)
    with pytest.raises(ValueError, match="tolerance is 0"):
        cp.required_sample_size(pool, None, SIGMA, 0)


def test_the_moving_ratio_is_one_at_a_minimiser_of_the_population():
    ratios = torch.tensor([moving_ratio(sample_of(50, seed=s)) for s in range(400)])
    assert abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / 20


@pytest.mark.parametrize("pool", [False, True])
def test_the_interval_covers_the_true_size(pool):
    """Nominally 95 %; the lower end of 97.5 % is above the truth in 2 to 5 % of them at most."""
    sample, population = logistic()
    if pool:
        dispersion = 2 * cp.expected_criterion(population, None, SIGMA, k=1).value
        truth = (math.sqrt(1 + 4 * dispersion / 1e-6) - 1) / 2
    else:
        truth = sample_size.size_with(sample, population[:20_000], SIGMA, 1e-3)[0]
    above, below, widths = 0, 0, []
    for seed in range(200):
        draws = drawn(population, 250, seed)
        size = cp.required_sample_size(draws if pool else sample, None if pool else draws, SIGMA, 1e-3)
        above, below = above + (size.interval[0] > truth), below + (size.interval[1] < truth)
        widths.append(size.interval[1] / size.interval[0])
    assert above <= 12
    assert below <= 12
    assert sorted(widths)[100] < 2.5


def test_few_candidates_bound_the_size_from_below_only():
    _, population = logistic()
    few, enough = (cp.required_sample_size(drawn(population, m, 0), None, SIGMA, 1e-3) for m in (249, 250))
    assert (few.value, few.verdict, few.interval[1]) == (None, "at least", math.inf)
    assert few.at_least == math.ceil(few.interval[0])
    assert few.at_least < few.observed
    assert f"at least {few.at_least} (97.5 %)" in str(few)
    assert "rarer than 1 in 83" in str(few)
    assert (enough.value, enough.verdict) == (enough.observed, "supported")


def test_an_answer_holds_where_one_example_in_fifty_is_far_off():
    """Whatever the draw shows: no answer is kept for being narrow. A draw without such an example is 5 % at most."""
    draw = torch.Generator().manual_seed(0)
    losses = 0.1 * torch.rand(100_000, generator=draw, dtype=torch.float64)
    losses[torch.rand(100_000, generator=draw) < 0.02] = 5.0
    population = cp.ProjectedSample(
        losses, torch.ones(len(losses)), *(torch.zeros(len(losses), 1, *s) for s in ((), (1,)))
    )
    truth = (math.sqrt(1 + 4 * float(losses.var()) / 1e-4) - 1) / 2
    for m, least in ((40, 0.95), (250, 0.95), (300, 0.95)):
        hits, bounded = 0, 0
        for seed in range(200):
            size = cp.required_sample_size(drawn(population, m, seed), None, SIGMA, 1e-2)
            hits += size.interval[0] <= truth <= size.interval[1]
            bounded += size.value is not None
        assert hits >= least * 200
        assert (bounded > 0) == (m >= 250)


def test_a_point_outside_the_subspace_is_not_stationary():
    """Five steps of Adam: the gradient is as at initialisation, and outside the subspace."""
    lost = cp.Stationarity(0.36, 0.036, 1e-4, 0.065, 30.0, 0.1)
    assert lost.outside == pytest.approx(0.99)
    refused = cp.required_sample_size(sample_of(500), None, SIGMA, 1e-2, stationarity=lost)
    assert refused.value is None
    assert "99 % of it outside the subspace" in refused.verdict
    assert "weight decay" in refused.verdict
    noisy = cp.Stationarity(0.36, 0.036, 1e-4, 0.065, 2.0, 0.1)  # as for few examples
    assert "a gradient step would take 0.065 off the loss" in noisy.refusal(1e-2)
    assert noisy.refusal(0.1) is None
    fine = cp.required_sample_size(sample_of(500), None, SIGMA, 0.1, stationarity=noisy)
    assert fine.verdict == "supported"
    assert "outside the subspace" not in fine.assumptions
    assert "outside the subspace" in cp.required_sample_size(sample_of(500), None, SIGMA, 0.1).assumptions


@pytest.mark.parametrize("sigma", [SIGMA, 1, torch.tensor(SIGMA)])
def test_no_answer_where_the_quadratic_model_does_not_hold(sigma):
    zero = torch.zeros(2, dtype=torch.float64)
    grid = torch.tensor([1e-3, 10.0], dtype=torch.float64)
    validity = cp.QuadraticValidity(grid, zero, None, 0.05, ("valid", "invalid"), torch.full((2,), 2), zero, grid, 1.0)
    found = cp.required_sample_size(sample_of(500), None, sigma, 1e-2, validity=validity)
    assert found.value is None
    assert "the quadratic model is invalid" in found.verdict


def test_candidates_that_are_all_alike_determine_nothing():
    one = sample_of(1)
    same = cp.ProjectedSample(one.loss, one.weight, 0 * one.gradient, one.hessian)[[0] * 8]
    size = cp.required_sample_size(same[:4], same, SIGMA, 1e-3)
    assert (size.value, size.at_least, size.interval) == (None, 1, (1.0, math.inf))
    moving = cp.required_sample_size(one[[0] * 4], one[[0] * 8], SIGMA, 1e-3)  # one gradient, and nothing to explain it
    assert moving.at_least is None
    assert "inf times what the scatter" in moving.verdict


@pytest.mark.parametrize("tolerance", [10.0, 0.5, 0.05, 0.005])
def test_the_size_solves_the_formula(tolerance):
    """Of candidates of unequal weight, on either side of k, against a root finder on the formula of the docstring."""
    sample, fresh = sample_of(9, weighted=True), sample_of(30, seed=1, weighted=True)
    share = sample.weight / sample.weight.sum()
    distance = features(fresh, SIGMA) - share @ features(sample, SIGMA)
    moves = (fresh.weight / fresh.weight.mean())[:, None] * distance
    spread = float(moves.var(0).sum())
    shift = float(moves.mean(0).square().sum()) - spread / 30

    def beyond(n):
        pulled = min(1.0, 9 / n) ** 2 * shift
        return (pulled + spread * (1 + max(0.0, n - 9) / n**2)) / (n + 1) ** 2 - tolerance**2

    size, (low, high) = size_with(sample, fresh, SIGMA, tolerance)
    exact = 1.0 if beyond(1.0) <= 0 else brentq(beyond, 1.0, 1e9, rtol=1e-14)
    assert size == pytest.approx(exact, rel=1e-8)
    assert 1.0 <= low <= size
    assert high == math.inf


def test_the_ends_of_the_size_are_where_those_of_the_mean_square_meet_the_tolerance():
    sample, fresh = sample_of(9), sample_of(400, seed=1)
    size, (low, high) = size_with(sample, fresh, SIGMA, 0.01)
    assert low < size < high < math.inf
    distance = features(fresh, SIGMA) - features(sample, SIGMA).mean(0)
    for end, which in ((low, 0), (high, 1)):
        alpha = torch.tensor([min(1.0, 9 / end) ** 2 / (end + 1) ** 2], dtype=torch.float64)
        beta = torch.tensor([(1 + (end - 9) / end**2) / (end + 1) ** 2], dtype=torch.float64)
        at = float(ShiftAndSpread(distance).intervals(alpha, beta)[which])
        assert at**0.5 == pytest.approx(0.01, rel=0.01)
    assert size_with(sample, fresh, SIGMA, 1e3)[1][0] == 1.0


def test_a_size_says_when_it_counts_at_a_mean_weight():
    said = "examples of unequal weight are counted at the candidates' mean weight"
    even, uneven = sample_of(9), sample_of(9, weighted=True)
    fresh = sample_of(8, seed=1)
    assert said not in cp.required_sample_size(even, fresh, SIGMA, 0.1).assumptions
    assert said in cp.required_sample_size(uneven, fresh, SIGMA, 0.1).assumptions
    assert said in cp.required_sample_size(even, sample_of(8, seed=1, weighted=True), SIGMA, 0.1).assumptions
    assert said in cp.required_sample_size(uneven, None, SIGMA, 0.1).assumptions


@pytest.mark.parametrize(
    ("square", "scatter", "count", "ratio"),
    [
        (2.0, 4.0, 3, 0.5),
        (0.0, 0.0, 1, 0.0),
        (0.0, 0.0, 3, 0.0),
        (2.0, 0.0, 3, math.inf),
        (2.0, -1.0, 3, math.nan),
        (2.0, 4.0, 1, math.nan),
    ],
)
def test_a_gradient_over_its_scatter(square, scatter, count, ratio):
    assert over_scatter(square, scatter, count) == pytest.approx(ratio, nan_ok=True)
