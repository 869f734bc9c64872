"""What the page recomputes its numbers from, against the functions that it stands for."""

import math
from dataclasses import replace

import pytest
import torch

import curvprobe as cp
from curvprobe.criteria.increment import fresh_increments, prefix_means
from curvprobe.report.aggregates import CELLS, aggregates
from tests.criteria.samples import sample_of

SIGMAS = torch.tensor([1e-3, 0.1, 0.7], dtype=torch.float64)


def polynomial(moments, sigma):
    """Level, slope and curvature from the five moments."""
    aa, at, tt, cc, bb = moments.tolist()
    return aa + sigma**2 * at + sigma**4 * tt / 4, sigma**2 * cc, sigma**4 * bb / 2


@pytest.mark.parametrize("weighted", [False, True])
def test_the_moments_are_the_decay_curve(weighted):
    sample, fresh = sample_of(40, dim=3, weighted=weighted), sample_of(9, dim=3, seed=1, weighted=weighted)
    found = aggregates(sample, fresh, SIGMAS)
    curve = cp.decay_curve(sample, found.ks, [0.1, 0.7], [1, 2, 3], fresh=fresh)
    for i in range(len(found.ks)):
        for d in range(3):
            for s, sigma in enumerate((0.1, 0.7)):
                parts = polynomial(found.moments[i, d], sigma)
                for part, name in zip(parts, ("level", "slope", "curvature"), strict=True):
                    assert part == pytest.approx(float(getattr(curve, name)[i, d, s]), rel=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sigma", [0.1, 0.7])
def test_the_cells_are_the_expectations_table(weighted, sigma):
    sample, fresh = sample_of(40, dim=3, weighted=weighted), sample_of(9, dim=3, seed=1, weighted=weighted)
    found, m = aggregates(sample, fresh, SIGMAS), 9
    for d in range(3):
        expected = cp.expected_criterion(sample.truncate(d + 1), fresh.truncate(d + 1), sigma)
        c = dict(zip(CELLS, found.cells[d].tolist(), strict=True))
        spread = [
            c["var_a"] + sigma**2 * c["cov_a_tr"] + sigma**4 * c["var_tr"] / 4,
            sigma**2 * c["var_c"],
            sigma**4 * c["var_B"] / 2,
        ]
        square = [
            (c["mean_a"] + sigma**2 * c["mean_tr"] / 2) ** 2,
            sigma**2 * c["mean_c_squared"],
            sigma**4 * c["mean_B_squared"] / 2,
        ]
        shift = [a - b / m for a, b in zip(square, spread, strict=True)]
        torch.testing.assert_close(
            torch.tensor([shift, spread], dtype=torch.float64), expected.table, rtol=1e-9, atol=1e-15
        )
        powers = torch.tensor([1, sigma**2, sigma**4, 0, 0], dtype=torch.float64)
        assert float(powers @ found.products[d] @ powers) ** 0.5 == pytest.approx(expected.stderr, rel=1e-9)
        of_shape = torch.tensor([0, 0, 0, sigma**2, sigma**4], dtype=torch.float64)
        curve = cp.decay_curve(sample, [40], sigma, [d + 1], fresh=fresh)
        stderr = float(of_shape @ found.products[d] @ of_shape) ** 0.5
        assert stderr == pytest.approx(float(curve.shape_stderr[0, 0, 0]), rel=1e-9)


def test_the_landscapes_are_the_means():
    sample, fresh = sample_of(40, dim=8, weighted=True), sample_of(9, dim=8, seed=1, weighted=True)
    found = aggregates(sample, fresh, SIGMAS)
    assert found.risk.shape == (len(found.ks), 1 + 6 + 36)
    means = prefix_means(sample, found.ks)
    assert torch.equal(found.risk[:, 0], means.loss)
    assert torch.equal(found.risk[:, 1:7], means.gradient[:, :6])
    assert torch.equal(found.risk[3, 7:].reshape(6, 6), means.hessian[3, :6, :6])
    assert float(found.candidates[0]) == pytest.approx(float(fresh.mean().loss[0]))
    together = cp.ProjectedSample(
        *(torch.cat([getattr(sample, f), getattr(fresh, f)]) for f in ("loss", "weight", "gradient", "hessian"))
    ).mean()
    torch.testing.assert_close(found.joined[1:7], together.gradient[0, :6])


def test_one_candidate_has_no_scatter_and_many_fewer_sizes():
    sample, fresh = sample_of(40, dim=3), sample_of(1, dim=3, seed=1)
    alone = aggregates(sample, fresh, SIGMAS)
    assert bool((alone.products == 0).all())
    assert alone.num_candidates == 1
    found = alone.to_json()
    assert found["ks"][-1] == 40
    assert all(math.isfinite(value) for row in found["cells"] for value in row)
    assert repr(alone).count("\n") == 0


def test_what_the_curvatures_share_takes_no_digits_from_how_they_differ():
    sample, fresh = sample_of(40, dim=3, weighted=True), sample_of(9, dim=3, seed=1, weighted=True)
    common = 1e6 * torch.eye(3, dtype=torch.float64)
    lifted = [replace(part, hessian=part.hessian + common) for part in (sample, fresh)]
    found = aggregates(*lifted, SIGMAS)
    for i, at_k in enumerate(fresh_increments(*lifted, found.ks)):
        bend = at_k.curvature.square().mean(0).cumsum(0).cumsum(1).diagonal()
        assert torch.allclose(found.moments[i, :, 4], bend, rtol=1e-7)


def test_the_last_size_is_the_whole_sample_however_many():
    """Of a million examples too, which a logarithm in float32 would miss."""
    k = 1_070_609
    one = sample_of(1, dim=1)
    many = cp.ProjectedSample(
        *(getattr(one, f).expand(k, *getattr(one, f).shape[1:]) for f in ("loss", "weight", "gradient", "hessian"))
    )
    assert aggregates(many, sample_of(3, dim=1, seed=1), SIGMAS).ks[-1] == k


@pytest.mark.parametrize(("count", "weighted"), [(9, True), (300, False)])
def test_intervals_and_quantiles_are_those_of_the_expectation(count, weighted):
    sample, fresh = (sample_of(n, dim=3, seed=n, weighted=weighted) for n in (40, count))
    found = aggregates(sample, fresh, SIGMAS)
    for d in range(3):
        for s, sigma in enumerate(SIGMAS.tolist()):
            expected = cp.expected_criterion(sample.truncate(d + 1), fresh.truncate(d + 1), sigma)
            ends = [*expected.interval, *expected.shape_interval]
            assert found.intervals[d, s].tolist() == pytest.approx(ends, rel=1e-9)
            assert math.isfinite(ends[1]) == (count >= 250)
            ordered = expected.contributions.sort().values
            quantiles = [float(ordered.quantile(level)) for level in (0.05, 0.5, 0.95)]
            assert found.quantiles[d, s].tolist() == pytest.approx(quantiles, rel=1e-9)


def test_few_candidates_have_no_interval():
    found = aggregates(sample_of(40, dim=2), sample_of(4, dim=2, seed=1), SIGMAS)
    assert torch.equal(found.intervals, torch.tensor([0.0, math.inf, 0.0, math.inf]).expand(2, 3, 4))
    assert found.to_json()["intervals"][1][2] == [0.0, None, 0.0, None]
