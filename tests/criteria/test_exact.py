"""Numbers that a user sees, held to the formula term by term: what a wrong sign or denominator would change."""

import math

import pytest
import torch

import curvprobe as cp
from curvprobe.criteria.estimators import corrected, model_error
from curvprobe.criteria.expectation import features, move_terms, squared_mean
from tests.criteria.samples import SIGMA, sample_of


def test_the_errors_of_cells_are_those_of_leave_one_out_pseudo_values():
    sample, fresh = sample_of(9), sample_of(12, seed=1, shift=0.4)
    moves = (features(fresh, SIGMA) - features(sample, SIGMA).mean(0)) / 10
    part = torch.tensor([0] + [1] * 2 + [2] * 4)
    shift, spread = move_terms(moves, 2)

    def whole(rows):
        both = (squared_mean(moves[rows]), moves[rows].var(0))
        return [torch.stack([values[part == p].sum() for p in range(3)]) for values in both]

    everyone = list(range(12))
    for terms, which in ((shift, 0), (spread, 1)):
        left_out = torch.stack([whole([i for i in everyone if i != j])[which] for j in everyone])
        expected = 12 * whole(everyone)[which] - 11 * left_out
        assert torch.allclose(terms, expected, rtol=1e-10, atol=1e-14)
    found = cp.expected_criterion(sample, fresh, SIGMA)
    for row, terms in zip(found.table_stderr, (shift, spread), strict=True):
        assert torch.allclose(row, terms.std(0) / math.sqrt(12), rtol=1e-10)


def test_the_table_over_seeds_is_the_mean_and_its_error_the_scatter():
    samples, fresh = [sample_of(9, seed=s) for s in range(4)], [sample_of(8, seed=10 + s) for s in range(4)]
    each = torch.stack([cp.expected_criterion(a, b, SIGMA).table for a, b in zip(samples, fresh, strict=True)])
    found = cp.expected_criterion(samples, fresh, SIGMA)
    assert torch.allclose(found.table, each.mean(0), rtol=1e-12)
    assert torch.allclose(found.table_stderr, each.std(0) / 2, rtol=1e-12)
    assert found.stderr == pytest.approx(float(each.sum((1, 2)).std()) / 2, rel=1e-10)


def test_the_rate_bound_term_by_term():
    losses, weights = torch.tensor([1.0, 2.0, 4.0]), torch.ones(3)
    gradients = torch.tensor([[3.0, 0.0], [0.0, 4.0], [5.0, 12.0]])
    hessians = torch.stack([torch.diag(torch.tensor(d)) for d in ([1.0, -7.0], [2.0, 3.0], [0.5, 0.0])])
    sample = cp.ProjectedSample(losses, weights, gradients, hessians)
    found = cp.rate_bound(sample[:2], sample[2], 0.3)
    mean_gradient = math.hypot(1.5, 2.0)
    assert (found.loss_bound, found.gradient_bound, found.hessian_bound) == (4.0, 13.0 + mean_gradient, 7.0)
    terms = 12 * 16 + 3 * 0.09 * (13 + mean_gradient) ** 2 + 3 * 0.3**4 * (4 + 4) * 49
    assert found.bound == pytest.approx(terms / 9, rel=1e-12)
    assert found.value == pytest.approx(cp.gaussian_moment(cp.increment(sample[:2], sample[2]), sigma=0.3).value)
    assert found.slack == pytest.approx(found.bound / found.value)


def test_the_error_of_the_model_is_relative_to_the_change():
    model = cp.QuadraticIncrement(torch.tensor(5.0), torch.tensor([2.0]), torch.zeros(1, 1))
    z = torch.tensor([[1.0], [-1.0]])
    true = torch.tensor([7.3, 2.9], dtype=torch.float64)  # the model says 7 and 3
    assert model_error(true, model, z) == pytest.approx(math.sqrt((0.09 + 0.01) / (2.3**2 + 2.1**2)), rel=1e-12)


def test_a_corrected_estimate_adds_the_excess_and_both_errors():
    moment = cp.Estimate(10.0, 0.4, freedom=5.0)
    true, model = torch.tensor([3.0, 1.0, 2.0]).double(), torch.tensor([2.0, 1.0, 2.0]).double()
    found = corrected(moment, true, model)
    excess = torch.tensor([5.0, 0.0, 0.0]).double()
    own = float(excess.std()) / math.sqrt(3)
    assert found.value == pytest.approx(10 + 5 / 3)
    assert found.stderr == pytest.approx(math.hypot(own, 0.4))
    # (sum of squares)^2 over sum of fourth powers, less one, of 10/3, -5/3, -5/3
    few = (100 + 25 + 25) ** 2 / (100**2 + 25**2 + 25**2) - 1
    assert found.freedom == pytest.approx(found.stderr**4 / (own**4 / max(1.0, few) + 0.4**4 / 5), rel=1e-9)


def test_the_smallest_sizes():
    losses = torch.tensor([0.0, 2.0] * 200).double()
    pool = cp.ProjectedSample(losses, torch.ones(400), torch.zeros(400, 1), torch.zeros(400, 1, 1))
    variance = float(losses.var())
    # V / (k (k + 1)) is V / 2 at one example, V / 6 at two
    for k in (1, 2, 5):
        at = math.sqrt(variance / (k * (k + 1)))
        assert cp.required_sample_size(pool, None, SIGMA, at * 1.0001).value == k
        assert cp.required_sample_size(pool, None, SIGMA, at * 0.9999).value == k + 1
    sample = pool[:4]
    mean, spread = float((losses - losses[:4].mean()).mean()), variance
    for size in (2, 4, 9):
        joined = max(0, size - 4)
        shift = mean**2 - spread / 400
        square = (min(1.0, 4 / size) ** 2 * shift + spread * (1 + joined / size**2)) / (size + 1) ** 2
        found = cp.required_sample_size(sample, pool, SIGMA, math.sqrt(square) * 1.0001)
        assert found.observed == size
