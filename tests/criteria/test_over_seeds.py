"""Expectations over several seeds or checkpoints, number by number."""

import math

import pytest
import torch

import curvprobe as cp
from curvprobe.numerics.intervals import log_interval
from tests.criteria.samples import SIGMA, sample_of


def named(sample, *names):
    """The same examples, recognised by these names."""
    return cp.ProjectedSample(sample.loss, sample.weight, sample.gradient, sample.hessian, names)


def test_over_seeds_each_with_candidates_of_its_own():
    samples, fresh = [sample_of(9, seed=s) for s in (0, 2, 4)], [sample_of(6, seed=s) for s in (1, 3, 5)]
    each = [cp.expected_criterion(a, b, SIGMA, grow_by=2) for a, b in zip(samples, fresh, strict=True)]
    found = cp.expected_criterion(samples, fresh, SIGMA, grow_by=2)
    values = torch.tensor([one.value for one in each], dtype=torch.float64)
    shapes = torch.tensor([one.shape for one in each], dtype=torch.float64)
    assert found.value == pytest.approx(float(values.mean()), rel=1e-12)
    assert found.stderr == pytest.approx(float(values.std()) / 3**0.5, rel=1e-12)
    assert found.interval == log_interval(found.value, found.stderr, 2)
    assert found.shape_interval == log_interval(float(shapes.mean()), float(shapes.std()) / 3**0.5, 2)
    torch.testing.assert_close(found.table, torch.stack([one.table for one in each]).mean(0))
    torch.testing.assert_close(found.table_stderr, torch.stack([one.table for one in each]).std(0) / 3**0.5)
    assert torch.equal(found.contributions, torch.cat([one.contributions for one in each]))
    assert (found.grow_by, found.pool, found.p) == (2, False, 2.0)
    assert bool(found.shape_by_direction.isnan().all())
    assert len(found.shape_by_direction) == 2
    two = cp.expected_criterion(samples[:2], fresh[:2], SIGMA)
    assert 0 < two.interval[0] < two.value < two.interval[1]


def test_over_seeds_with_the_same_candidates_for_all():
    samples, names = [sample_of(9, seed=s) for s in (0, 2, 4)], tuple("abcdef")
    fresh = [named(sample_of(6, seed=s), *names) for s in (1, 3, 5)]
    each = [cp.expected_criterion(a, b, SIGMA) for a, b in zip(samples, fresh, strict=True)]
    found = cp.expected_criterion(samples, fresh, SIGMA)
    values = torch.tensor([one.value for one in each], dtype=torch.float64)
    common = torch.stack([one.contributions for one in each]).mean(0)
    assert torch.equal(found.contributions, common)
    variance = float(values.var()) / 3 + float(common.var()) / 6
    assert found.stderr == pytest.approx(variance**0.5, rel=1e-12)
    differing = [*fresh[:2], named(sample_of(6, seed=5), *"abcdeg")]
    other = cp.expected_criterion(samples, differing, SIGMA)
    assert len(other.contributions) == 18
    assert other.stderr == pytest.approx((float(values.var()) / 3) ** 0.5, rel=1e-12)


def test_over_seeds_without_candidates_and_what_is_passed_on():
    samples = [sample_of(9, seed=s) for s in (0, 2)]
    found = cp.expected_criterion(samples, None, SIGMA, "double", k=4)
    each = [cp.expected_criterion(one, None, SIGMA, "double", k=4).value for one in samples]
    assert found.value == pytest.approx(sum(each) / 2, rel=1e-12)
    assert (found.pool, found.grow_by) == (True, 4)
    cubic = cp.expected_criterion(samples, None, SIGMA, p=3.0)
    assert cubic.p == 3.0
    assert cubic.shape_interval == (0.0, math.inf)
    shared = [named(one, *"abcdefghi") for one in samples]
    fresh = [named(sample_of(6, seed=s), *"aijklm") for s in (1, 3)]
    with pytest.raises(cp.ArgumentError, match="2 of 6 candidates are in the sample too"):
        cp.expected_criterion(shared, fresh, SIGMA)
    assert cp.expected_criterion(shared, fresh, SIGMA, allow_overlap=True).value > 0
