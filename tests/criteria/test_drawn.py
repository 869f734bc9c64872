import math
from dataclasses import replace

import pytest
import torch

import curvprobe as cp
from curvprobe.criteria.drawn import also_drawn, draw_error, widened
from curvprobe.numerics.strata import draw, reaches
from tests.criteria.samples import SIGMA, sample_of


def drawn(whole: cp.ProjectedSample, count: int, seed: int) -> cp.ProjectedSample:
    """As a risk on drawn examples is projected."""
    found, mean = draw(whole.weight, count, seed), float(whole.mean().loss)
    part = whole[found.rows.tolist()]
    loss = part.loss + (mean - float(found.weight @ part.loss / found.weight.sum()))
    return replace(part, loss=loss, weight=found.weight, design=found.design)


@pytest.mark.parametrize("weighted", [False, True])
def test_all_examples_drawn_are_the_sample(weighted):
    whole, fresh = sample_of(60, weighted=weighted), sample_of(30, seed=1, weighted=weighted)
    part = drawn(whole, 60, 0)
    for grow_by in (1, "double"):
        one, other = (cp.expected_criterion(of, fresh, SIGMA, grow_by) for of in (part, whole))
        assert one.value == pytest.approx(other.value, rel=1e-9)
        assert one.interval == pytest.approx(other.interval, rel=1e-6)
    sizes = [cp.required_sample_size(of, fresh, SIGMA, 1e-3) for of in (part, whole)]
    assert sizes[0].observed == sizes[1].observed
    assert sizes[0].interval == pytest.approx(sizes[1].interval, rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grow_by", [1, "double"])
def test_expectations_from_draws_are_those_of_the_sample_on_average(weighted, grow_by):
    whole, fresh = sample_of(800, weighted=weighted), sample_of(12, seed=1, weighted=weighted, shift=0.5)
    truth = cp.expected_criterion(whole, fresh, SIGMA, grow_by)
    found = [cp.expected_criterion(drawn(whole, 60, seed), fresh, SIGMA, grow_by) for seed in range(60)]
    values = torch.tensor([one.value for one in found], dtype=torch.float64)
    assert abs(float(values.mean()) - truth.value) < 4 * float(values.std()) / math.sqrt(len(values))
    assert all(one.interval[0] <= truth.interval[0] * 1.2 for one in found)
    parts = torch.stack([one.shape_by_direction for one in found]).sum(1)
    assert torch.allclose(parts, torch.tensor([one.shape for one in found], dtype=torch.float64))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_criterion_of_one_candidate_is_held(weighted):
    whole, new = sample_of(2000, weighted=weighted), sample_of(1, seed=7, weighted=weighted)
    truth, hits = cp.gaussian_moment(cp.increment(whole, new), sigma=SIGMA).value, []
    for seed in range(300):
        part = drawn(whole, 100, seed)
        value = cp.gaussian_moment(cp.increment(part, new), sigma=SIGMA).value
        hits.append(abs(value - truth) <= float(reaches(draw_error(part, new, SIGMA))[0]))
    assert 0.92 <= sum(hits) / len(hits) <= 0.98


def test_the_level_is_known_and_has_no_error():
    whole, new = sample_of(500), sample_of(1, seed=7)
    for seed in range(5):
        part = drawn(whole, 50, seed)
        assert float(cp.increment(part, new).level) == pytest.approx(float(cp.increment(whole, new).level), rel=1e-12)


def test_a_decay_curve_has_prefixes_of_the_drawn_and_the_whole():
    whole, fresh = sample_of(500), sample_of(20, seed=1)
    part = drawn(whole, 50, 0)
    curve = cp.decay_curve(part, [10, 50, 500], SIGMA, fresh=fresh)
    assert curve.ks.tolist() == [10, 50, 500]
    plain = replace(part, weight=torch.ones(50, dtype=torch.float64), design=None)
    same = cp.decay_curve(plain, [10, 50], SIGMA, fresh=fresh)
    assert torch.allclose(curve.value[:2], same.value)
    assert torch.allclose(curve.stderr[:2], same.stderr)
    assert float(curve.value[2, 0, 0]) == pytest.approx(float(curve.value[1, 0, 0]) * (51 / 501) ** 2)
    assert float(curve.stderr[2, 0, 0]) > float(same.stderr[1, 0, 0]) * (51 / 501) ** 2
    with pytest.raises(cp.ArgumentError, match="from 1 to 50, or 500"):
        cp.decay_curve(part, [51], SIGMA, fresh=fresh)


def test_what_takes_all_examples_is_refused():
    part, fresh = drawn(sample_of(500), 50, 0), sample_of(20, seed=1)
    for ask in (
        lambda: cp.expected_criterion(part, None, SIGMA),
        lambda: cp.expected_criterion(part, fresh, SIGMA, p=3.0),
        lambda: cp.decay_curve(part, [3], SIGMA),
        lambda: cp.required_sample_size(part, None, SIGMA, 1e-3),
    ):
        with pytest.raises(cp.ArgumentError, match="50 examples that were drawn of 500"):
            ask()


def test_a_required_size_is_that_of_the_whole():
    whole, fresh = sample_of(3000), sample_of(300, seed=1)
    exact = cp.required_sample_size(whole, fresh, SIGMA, 1e-3)
    found = cp.required_sample_size(drawn(whole, 300, 0), fresh, SIGMA, 1e-3)
    assert found.observed == pytest.approx(exact.observed, rel=0.02)
    assert found.interval[0] < exact.interval[0] * 1.02
    assert found.interval[1] > exact.interval[1] * 0.98
    assert "mean weight" not in found.assumptions


def test_intervals_widen_by_the_square():
    assert widened(10.0, 1.0, (7.0, 14.0), 4.0) == (4.0, 10 + math.sqrt(32))
    assert widened(1.0, 0.0, (0.5, math.inf), 9.0) == (0.0, math.inf)
    assert widened(1.0, 0.0, (0.5, 2.0), 0.0) == (0.5, 2.0)


def test_an_estimate_takes_the_error_of_the_draw_with_its_freedom():
    own = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)  # four equal squares: three degrees of freedom
    exact = also_drawn(cp.Estimate(5.0, 0.0), own)
    assert (exact.stderr, exact.freedom) == (2.0, pytest.approx(3.0))
    both = also_drawn(cp.Estimate(5.0, 2.0, freedom=3.0), own)
    assert (both.stderr, both.freedom) == (pytest.approx(8**0.5), pytest.approx(6.0))
    assert also_drawn(cp.Estimate(5.0, 0.5), 0 * own) == cp.Estimate(5.0, 0.5)


def test_curvature_along_its_own_eigenvector_is_too_large_and_along_that_of_another_draw_is_not():
    whole, off, own = sample_of(2000, dim=4), [], []
    for seed in range(100):
        solved, part = (drawn(whole, 100, 2 * seed + one).mean().hessian[0] for one in (1, 0))
        values, vectors = torch.linalg.eigh(solved)
        truth, u = whole.mean().hessian[0], vectors[:, -1]
        own.append(float(values[-1] - u @ truth @ u))
        off.append(float(u @ part @ u - u @ truth @ u))
    noise = torch.tensor(off).std() / 10
    assert abs(sum(off) / 100) < 4 * noise
    assert sum(own) / 100 > 10 * noise
