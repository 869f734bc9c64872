import math

import pytest
import torch

from curvprobe.numerics.strata import degrees, deviations, draw, errors, reaches, whole_size


def weights_of(n: int, seed: int = 0) -> torch.Tensor:
    normal = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normal.exp().mul(20).round().clamp_min(1)


@pytest.mark.parametrize("count", [2, 3, 30, 100, 499, 500])
def test_as_many_are_drawn_as_are_asked_for_and_stand_for_all(count):
    weight = weights_of(500)
    found = draw(weight, count, seed=1)
    assert len(found.rows) == len(set(found.rows.tolist())) == count
    assert (found.rows.diff() > 0).all()
    assert torch.allclose(found.weight, weight[found.rows] * found.scale, rtol=1e-14)
    if count >= 30:  # every stratum has one
        assert float(found.weight.sum()) == pytest.approx(float(weight.sum()), rel=1e-12)
        assert whole_size(found.design) == 500


def test_the_seed_alone_decides():
    weight = weights_of(500)
    one, same, other = (draw(weight, 50, seed).rows for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_of_equal_weights_each_is_as_likely_as_another():
    weight, seen = torch.ones(40, dtype=torch.float64), torch.zeros(40)
    for seed in range(400):
        found = draw(weight, 10, seed)
        assert found.design.tolist() == [[0, 40]] * 10
        assert torch.equal(found.weight, torch.full((10,), 4.0, dtype=torch.float64))
        seen[found.rows] += 1
    assert seen.sub(100).abs().max() < 5 * math.sqrt(100 * 0.75)


def test_a_heavy_example_is_always_among_them_and_stands_for_itself():
    weight = torch.ones(1000, dtype=torch.float64)
    weight[123] = 500.0
    for seed in range(20):
        found = draw(weight, 50, seed)
        where = found.rows.tolist().index(123)
        assert found.weight[where] == 500.0
        own = deviations(torch.randn(50, 1, dtype=torch.float64), found.weight, found.design)
        assert own[where] == 0


def test_where_all_are_taken_nothing_is_left_of_the_error():
    weight = weights_of(200)
    found = draw(weight, 200, seed=0)
    assert (
        errors(deviations(torch.randn(200, 3, dtype=torch.float64), found.weight, found.design)).tolist() == [0.0] * 3
    )


def test_terms_that_do_not_differ_have_no_error():
    found = draw(weights_of(300), 40, seed=0)
    own = deviations(torch.full((40, 1), 0.3, dtype=torch.float64), found.weight, found.design)
    assert float(errors(own)) < 1e-15
    assert float(reaches(own)) < 1e-14


def test_the_error_of_equal_weights_is_that_of_a_mean_of_a_finite_population():
    found = draw(torch.ones(100, dtype=torch.float64), 25, seed=0)
    terms = torch.randn(25, 1, dtype=torch.float64)
    own = deviations(terms, found.weight, found.design)
    assert float(errors(own)) == pytest.approx(float(terms.std()) * math.sqrt(0.75 / 25), rel=1e-12)
    squares = (terms - terms.mean()).square()
    assert float(degrees(own)) == pytest.approx(float(squares.sum() ** 2 / squares.square().sum()) - 1, rel=1e-10)


@pytest.mark.parametrize("count", [30, 200])
@pytest.mark.parametrize("kind", ["equal", "unequal"])
@pytest.mark.parametrize("tail", ["normal", "squares"])
def test_intervals_hold_the_mean_of_all(count, kind, tail):
    n = 3000
    weight = torch.ones(n, dtype=torch.float64) if kind == "equal" else weights_of(n)
    terms = torch.randn(n, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    terms = terms.square() if tail == "squares" else terms
    truth, hits = weight @ terms / weight.sum(), []
    for seed in range(300):
        found = draw(weight, count, seed)
        some = terms[found.rows]
        off = found.weight @ some / found.weight.sum() - truth
        hits += (off.abs() <= reaches(deviations(some, found.weight, found.design))).tolist()
    assert 0.92 <= sum(hits) / len(hits) <= 0.98
