"""Expectations against brute force: every candidate, every order of a pool, many draws from a population."""

import itertools
import math

import pytest
import torch

import curvprobe as cp
from curvprobe.criteria.expectation import features
from curvprobe.criteria.weighted_sets import ratio_of_sets
from curvprobe.numerics.intervals import mean_interval
from tests.criteria.samples import SIGMA, joined, sample_of
from tests.population import drawn, logistic


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sigma", [SIGMA, torch.tensor([0.2, 1.5], dtype=torch.float64)])
def test_the_expectation_is_the_mean_of_the_closed_form_over_candidates(weighted, sigma):
    sample, fresh = sample_of(9, weighted=weighted), sample_of(6, seed=1, weighted=weighted)
    each = [joined(sample, fresh[j], sigma) for j in range(6)]
    expected = cp.expected_criterion(sample, fresh, sigma)
    assert expected.value == pytest.approx(sum(e.value for e in each) / 6, rel=1e-12)
    assert float(expected.table.sum()) == pytest.approx(expected.value, rel=1e-12)
    for part, name in enumerate(("level", "slope", "curvature")):
        assert float(expected.table[:, part].sum()) == pytest.approx(sum(getattr(e, name) for e in each) / 6, rel=1e-12)
    assert expected.shape == pytest.approx(sum(e.shape for e in each) / 6, rel=1e-12)
    assert expected.rms == math.sqrt(expected.value)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_shape_by_direction_and_its_interval(weighted):
    """A direction's slope and its row of the curvature, written out; the interval is that of each candidate's shape."""
    sigma = torch.tensor([0.2, 1.5], dtype=torch.float64)
    sample, fresh = sample_of(9, weighted=weighted), sample_of(6, seed=1, weighted=weighted)
    parts, shapes = torch.zeros(2, dtype=torch.float64), []
    for j in range(6):
        one = cp.increment(sample, fresh[j])
        slope, bend = one.slope * sigma, one.curvature * sigma[:, None] * sigma
        parts += (slope.square() + bend.square().sum(1) / 2) / 6
        shapes.append(joined(sample, fresh[j], sigma).shape)
    expected = cp.expected_criterion(sample, fresh, sigma)
    torch.testing.assert_close(expected.shape_by_direction, parts, rtol=1e-12, atol=0)
    assert expected.shape_interval == pytest.approx(mean_interval(torch.tensor(shapes, dtype=torch.float64)))
    assert expected.shape_rms == pytest.approx(expected.shape**0.5)


@pytest.mark.parametrize("b", [1, 3])
@pytest.mark.parametrize("given", [True, False], ids=["candidates", "pool"])
def test_the_directions_of_the_shape_add_up(b, given):
    sample, fresh = sample_of(9), sample_of(6, seed=1) if given else None
    expected = cp.expected_criterion(sample, fresh, SIGMA, grow_by=b)
    assert float(expected.shape_by_direction.sum()) == pytest.approx(expected.shape, rel=1e-12)
    assert expected.shape_interval[0] < expected.shape


def test_the_shape_has_an_upper_end_for_many_that_join_together():
    """Of losses that are all alike, the interval is that of the whole: there is no level."""
    sample, fresh = sample_of(40), sample_of(300, seed=1)
    flat = [cp.ProjectedSample(torch.ones(len(s)), s.weight, s.gradient, s.hessian) for s in (sample, fresh)]
    level = [s.hessian.diagonal(dim1=1, dim2=2).sum(1) * SIGMA**2 / 2 for s in flat]
    flat = [cp.ProjectedSample(1 - part, s.weight, s.gradient, s.hessian) for s, part in zip(flat, level, strict=True)]
    expected = cp.expected_criterion(*flat, SIGMA, grow_by="double")
    assert float(expected.table[:, 0].abs().sum()) < 1e-12 * expected.value
    assert expected.shape_interval == pytest.approx(expected.interval, rel=1e-6)
    assert expected.shape_rms_interval[1] == pytest.approx(expected.interval[1] ** 0.5)


def test_which_candidates_carry_it():
    sample, fresh = sample_of(9), sample_of(6, seed=1)
    expected = cp.expected_criterion(sample, fresh, SIGMA)
    order = cp.rank_candidates(sample, fresh, SIGMA).order.tolist()
    positions, share = expected.largest_contributors(2)
    assert positions == order[:2]
    assert share == pytest.approx(float(expected.contributions[order[:2]].sum() / expected.contributions.sum()))


@pytest.mark.parametrize("b", [2, 3])
def test_several_that_join_at_once(b):
    """Over all b-tuples with repetition, as drawn from the candidates, but for the bias of so small a pool."""
    sample, fresh = sample_of(5), sample_of(4, seed=1)
    tuples = list(itertools.product(range(4), repeat=b))
    brute = sum(joined(sample, fresh[list(chosen)]).value for chosen in tuples) / len(tuples)
    expected = cp.expected_criterion(sample, fresh, SIGMA, grow_by=b)
    factor = (b / (5 + b)) ** 2
    # Drawn from the four, the spread is 3/4 of the unbiased one, and the shift is not debiased.
    spread = float(expected.table[1].sum()) * b / factor
    biased = factor * ((float(expected.table[0].sum()) / factor + spread / 4) + spread * 3 / 4 / b)
    assert biased == pytest.approx(brute, rel=1e-12)


def test_double_is_as_many_as_there_are():
    sample, fresh = sample_of(5), sample_of(4, seed=1)
    double, five = (cp.expected_criterion(sample, fresh, SIGMA, grow_by=b) for b in ("double", 5))
    assert (double.grow_by, double.value) == (5, five.value)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("b", [1, 2])
def test_a_pool_is_averaged_over_all_its_orders(k, b):
    if k + b > 5:
        return
    pool = sample_of(5)
    orders = list(itertools.permutations(range(5), k + b))
    brute = sum(joined(pool[list(order[:k])], pool[list(order[k:])]).value for order in orders) / len(orders)
    # In a finite pool the b that join are drawn without repetition.
    dispersion = cp.expected_criterion(pool, None, SIGMA, k=1).value * 2
    exact = (b / (k + b)) ** 2 * dispersion * (1 / b + 1 / k)
    assert exact == pytest.approx(brute, rel=1e-12)
    assert cp.expected_criterion(pool, None, SIGMA, b, k=k).value == pytest.approx(exact, rel=1e-12)


def test_a_pool_with_weights_is_averaged_over_who_comes_last():
    pool = sample_of(7, weighted=True)
    others = [[i for i in range(7) if i != j] for j in range(7)]
    brute = sum(joined(pool[rest], pool[j]).value for j, rest in enumerate(others)) / 7
    assert cp.expected_criterion(pool, None, SIGMA, k=6).value == pytest.approx(brute, rel=1e-12)


@pytest.mark.parametrize("b", [2, 50])
def test_several_of_unequal_weight_join_at_their_own_weight(b):
    """At the mean weight the same is 5 to 15 % off: heavy sets are those that move most."""
    sample, fresh = sample_of(60, weighted=True), sample_of(4000, seed=1, weighted=True, shift=0.3)
    found = cp.expected_criterion(sample, fresh, SIGMA, b)
    draw = torch.Generator().manual_seed(5)
    share = sample.weight / sample.weight.sum()
    distance = features(fresh, SIGMA) - share @ features(sample, SIGMA)
    rows = torch.randint(len(fresh), (20_000, b), generator=draw)
    weight = fresh.weight[rows]
    moved = torch.einsum("sb,sbp->sp", weight, distance[rows]) / (sample.weight.sum() + weight.sum(1, keepdim=True))
    brute = moved.square().sum(1)
    assert abs(found.value - float(brute.mean())) < 4 * float(brute.std()) / math.sqrt(len(brute)) + 0.01 * found.value
    assert found.value == pytest.approx(float(found.table.sum()), rel=1e-12)
    assert found.value == pytest.approx(float(found.contributions.mean()), rel=1e-9)


def test_the_ratio_of_sets_is_that_of_all_sets():
    """Two candidates of weights 1 and 20, two of which join: three kinds of sets, of 1/4, 1/2 and 1/4."""
    weight, before = torch.tensor([1.0, 20.0], dtype=torch.float64), 30.0
    moves = torch.tensor([[0.5], [3.0]], dtype=torch.float64)
    sets = [(0.25, 1.0, 2.0), (0.5, 3.5, 21.0), (0.25, 6.0, 40.0)]  # probability, move, weight
    plain = sum(p * move**2 for p, move, _ in sets)
    exact = sum(p * move**2 * (51.0 / (before + joined)) ** 2 for p, move, joined in sets)
    ratio, error = ratio_of_sets(moves, weight, before, 2)
    assert exact / plain < 0.8
    assert abs(ratio - exact / plain) < 4 * error < 0.05


def test_the_mean_shift_is_unbiased():
    sample = sample_of(20)
    cells = torch.stack([cp.expected_criterion(sample, sample_of(8, seed=s), SIGMA).table for s in range(1, 2001)])
    many = cp.expected_criterion(sample, sample_of(200_000, seed=9999), SIGMA).table
    error = cells.std(0) / math.sqrt(len(cells))
    assert bool(((cells.mean(0) - many).abs() < 4 * error).all())


@pytest.mark.parametrize(("m", "b"), [(200, 1), (200, 8), (0, 1)])
def test_the_interval_covers_the_truth(m, b):
    """Nominally 95 %, at a fitted logistic regression: either end is on the wrong side of the truth in 5 % at most, and
    the interval is not so wide that it could not be. No candidates: the sample itself stands for the population."""
    sample, population = logistic()
    truth = cp.expected_criterion(*((sample, population) if m else (population, None)), SIGMA, b, k=None if m else 250)
    above, below, widths = 0, 0, []
    for seed in range(200):
        draws = drawn(population, 250, seed)
        low, high = cp.expected_criterion(*((sample, draws) if m else (draws, None)), SIGMA, b).interval
        above, below = above + (low > truth.value), below + (high < truth.value)
        widths.append(high / low)
    assert above <= 12
    assert below <= 12
    assert sorted(widths)[100] < 6


def test_few_candidates_set_no_upper_end():
    sample, population = logistic()
    for b in (1, 8):
        low, high = cp.expected_criterion(sample, drawn(population, 249, 0), SIGMA, b).interval
        assert low > 0
        assert high == math.inf


def test_the_errors_of_the_cells_are_their_scatter():
    sample, population = logistic()
    drawings = [cp.expected_criterion(sample, drawn(population, 100, seed), SIGMA) for seed in range(1000)]
    scatter = torch.stack([one.table for one in drawings]).std(0)
    stated = torch.stack([one.table_stderr for one in drawings]).square().mean(0).sqrt()
    assert bool((stated > 0.85 * scatter).all())
    assert bool((stated < 1.5 * scatter).all())
    assert torch.allclose(stated[1], scatter[1], rtol=0.15)
    values = torch.tensor([one.value for one in drawings])
    assert float(torch.tensor([one.stderr for one in drawings]).square().mean().sqrt()) == pytest.approx(
        float(values.std()), rel=0.1
    )


@pytest.mark.parametrize("shared", [False, True])
def test_the_interval_over_seeds_covers_the_truth(shared):
    """Each seed has its own level; candidates are shared by all or not."""
    sample, population = logistic()
    scale = lambda s: math.exp(0.3 * float(torch.randn((), generator=torch.Generator().manual_seed(s))))  # noqa: E731
    one = cp.expected_criterion(sample, population, SIGMA).value
    truth = one * math.exp(2 * 0.3**2)  # losses times exp(0.3 n): squares times exp(0.6 n)
    hits = 0
    for seed in range(500):
        samples, fresh = [], []
        for s in range(5):
            factor = scale(1000 * seed + s)
            candidates = drawn(population, 60, seed if shared else 5 * seed + s, names=shared)
            for part, out in ((sample, samples), (candidates, fresh)):
                out.append(
                    cp.ProjectedSample(
                        factor * part.loss, part.weight, factor * part.gradient, factor * part.hessian, part.digests
                    )
                )
        low, high = cp.expected_criterion(samples, fresh, SIGMA).interval
        hits += low <= truth <= high
    assert 0.91 * 500 <= hits <= 0.99 * 500


def test_contributions_are_each_candidates_own_criterion():
    sample, fresh = sample_of(9, weighted=True), sample_of(6, seed=1, weighted=True)
    expected = cp.expected_criterion(sample, fresh, SIGMA)
    each = torch.tensor([joined(sample, fresh[j]).value for j in range(6)], dtype=torch.float64)
    assert torch.allclose(expected.contributions, each, rtol=1e-12, atol=0)
    assert expected.stderr == pytest.approx(float(each.std()) / math.sqrt(6), rel=1e-12)
    assert expected.num_candidates == 6
    assert "mean shift" in str(expected)


def test_several_seeds_are_as_uncertain_as_they_scatter():
    samples, fresh = [sample_of(9, seed=s) for s in (1, 2, 3)], [sample_of(5, seed=s) for s in (4, 5, 6)]
    each = [cp.expected_criterion(a, b, SIGMA).value for a, b in zip(samples, fresh, strict=True)]
    both = cp.expected_criterion(samples, fresh, SIGMA)
    assert both.value == pytest.approx(sum(each) / 3, rel=1e-12)
    assert both.stderr == pytest.approx(float(torch.tensor(each).std()) / math.sqrt(3), rel=1e-6)
    assert both.interval[0] < both.value < both.interval[1]
    assert both.num_candidates == 15


def test_candidates_in_the_sample_are_refused_unless_asked_for():
    sample = cp.ProjectedSample(
        torch.arange(3.0), torch.ones(3), torch.zeros(3, 1), torch.zeros(3, 1, 1), ("a", "b", "c")
    )
    with pytest.raises(ValueError, match="2 of 2 candidates are in the sample too"):
        cp.expected_criterion(sample, sample[:2], SIGMA)
    assert cp.expected_criterion(sample, sample[:2], SIGMA, allow_overlap=True).value > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grow_by": 0}, "grow_by is 0"),
        ({"grow_by": "twice"}, "grow_by is 'twice'"),
        ({"k": 3}, "only without candidates"),
        ({"fresh": sample_of(1, seed=1)}, "needs at least 2"),
        ({"fresh": sample_of(3, dim=3)}, "projected on 2 directions"),
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"sample": sample_of(1), "fresh": None}, "needs at least 2"),
        ({"sample": [sample_of(3), sample_of(3)], "fresh": [sample_of(3, seed=1)]}, "2 or more pairs"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cp.expected_criterion(**{"sample": sample_of(4), "fresh": sample_of(3, seed=1), "sigma": SIGMA, **arguments})


def alike(n: int) -> cp.ProjectedSample:
    """Examples that differ little."""
    one, other = sample_of(1, seed=1), sample_of(n, seed=2)
    parts = (getattr(one, f) * (1 + 0.1 * getattr(other, f).tanh()) for f in ("loss", "gradient", "hessian"))
    loss, gradient, hessian = parts
    return cp.ProjectedSample(loss, torch.ones(n), gradient, hessian)


def test_sets_of_unequal_weight_against_all_of_them():
    """Two of three candidates join, in all nine ways: the ratio, and the error of 4096 draws of a way."""
    moves, weight = sample_of(3, dim=2).gradient, torch.tensor([1.0, 2.0, 7.0], dtype=torch.float64)
    mean = 10 + 2 * 10 / 3
    below, above = [], []
    for i, j in itertools.product(range(3), repeat=2):
        below.append((moves[i] + moves[j]).square().sum())
        above.append(below[-1] * (mean / (10 + weight[i] + weight[j])) ** 2)
    below, above = torch.stack(below), torch.stack(above)
    exact = above.mean() / below.mean()
    error = (above - exact * below).std(correction=0) / below.mean() / 4096**0.5
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found, stderr = ratio_of_sets(moves, weight, 10.0, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert abs(found - float(exact)) < 4 * float(error)
    assert stderr == pytest.approx(float(error), rel=0.1)
    assert ratio_of_sets(torch.zeros(3, 2, dtype=torch.float64), weight, 10.0, 2) == (1.0, 0.0)


def test_the_correction_for_unequal_weights_goes_into_every_number(monkeypatch):
    sample, fresh = sample_of(9, weighted=True), alike(300)
    fresh = cp.ProjectedSample(fresh.loss, 1.0 + torch.arange(300) % 2, fresh.gradient, fresh.hessian)
    found = {}
    for ratio in ((1.2, 0.1), (0.1, 0.1)):
        monkeypatch.setattr("curvprobe.criteria.expectation.ratio_of_sets", lambda *_, ratio=ratio: ratio)
        found[ratio] = cp.expected_criterion(sample, fresh, SIGMA, grow_by=3)
    monkeypatch.setattr("curvprobe.criteria.expectation._scaled", lambda found, *_: found)
    plain, scaled = cp.expected_criterion(sample, fresh, SIGMA, grow_by=3), found[1.2, 0.1]
    assert plain.shape_interval[1] < math.inf
    assert scaled.value == pytest.approx(1.2 * plain.value)
    assert scaled.stderr == pytest.approx(math.hypot(1.2 * plain.stderr, 0.1 * plain.value))
    assert scaled.interval == pytest.approx((1.0 * plain.interval[0], 1.4 * plain.interval[1]))
    assert scaled.shape_interval == pytest.approx((1.0 * plain.shape_interval[0], 1.4 * plain.shape_interval[1]))
    for name in ("table", "table_stderr", "contributions", "shape_by_direction"):
        torch.testing.assert_close(getattr(scaled, name), 1.2 * getattr(plain, name))
    assert found[0.1, 0.1].interval[0] == 0.0


@pytest.mark.parametrize("given", [True, False], ids=["candidates", "pool"])
def test_what_another_order_carries(given):
    sample, fresh = sample_of(9) if given else alike(9), alike(5)
    found = cp.expected_criterion(sample, fresh if given else None, SIGMA, p=3.0)
    terms = found.contributions
    assert len(terms) == (5 if given else 9)
    assert found.value == pytest.approx(float(terms.mean()))
    assert found.stderr == pytest.approx(float(terms.std()) / len(terms) ** 0.5)
    assert found.interval == mean_interval(terms)
    assert 0 < found.interval[0] < found.value
    assert (found.grow_by, found.pool, found.p) == (1, not given, 3.0)
    assert found.table.dtype == torch.float64
    assert bool(found.table.isnan().all())
    assert found.shape_interval == (0.0, math.inf)
    assert bool(found.shape_by_direction.isnan().all())
    assert len(found.shape_by_direction) == 2
    few = cp.expected_criterion(sample, fresh[:4], SIGMA, p=3.0)
    assert few.interval == (0.0, math.inf)


@pytest.mark.parametrize("b", [1, 2])
def test_five_candidates_give_an_interval_and_four_none(b):
    sample, fresh = sample_of(9), alike(5)
    five, four = (cp.expected_criterion(sample, fresh[:m], SIGMA, grow_by=b) for m in (5, 4))
    assert four.interval == four.shape_interval == (0.0, math.inf)
    assert five.interval[0] > 0
    assert five.shape_interval[0] > 0


def test_what_each_example_of_a_pool_carries():
    pool = sample_of(9)
    found = cp.expected_criterion(pool, None, SIGMA, grow_by=2)
    terms = found.contributions
    assert float(terms.mean()) == pytest.approx(found.value, rel=1e-12)
    assert found.stderr == pytest.approx(float(terms.std()) / 3, rel=1e-12)
    assert found.interval == mean_interval(terms)
    assert (found.pool, found.grow_by) == (True, 2)
    shapes = terms - torch.stack([terms_of_level(pool, i) for i in range(9)])
    assert found.shape_interval == pytest.approx(mean_interval(shapes))
    assert float(shapes.mean()) == pytest.approx(found.shape, rel=1e-9)
    two = found.table_stderr[0] / found.table_stderr[1]
    torch.testing.assert_close(two, torch.full_like(two, 2 / 9))


def terms_of_level(pool, i):
    """What the level of example i adds when two join nine: its distance from the mean of the others."""
    psi = features(pool, SIGMA)[:, 0]
    others = (psi.sum() - psi[i]) / 8
    return (2 / 11) ** 2 * (1 / 9 + 1 / 2) * 9 * 8 * ((psi[i] - others) / 9) ** 2


def test_the_largest_contributors_of_nothing():
    nothing = cp.ProjectedSample(torch.ones(4), torch.ones(4), torch.zeros(4, 1), torch.zeros(4, 1, 1))
    positions, share = cp.expected_criterion(nothing, nothing, SIGMA).largest_contributors(2)
    assert positions == [0, 1]
    assert math.isnan(share)
