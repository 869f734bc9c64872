import pytest
import torch
from torch import Tensor

import curvprobe as cp
from curvprobe.criteria.increment import fresh_increments, last_increments
from tests import cases, reference
from tests.criteria.samples import sample_of

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def orthonormal(n: int, dim: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(n, dim, generator=generator, dtype=torch.float64)).Q


def synthetic(n: int, dim: int = 2, seed: int = 0, weights: bool = True) -> cp.ProjectedSample:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(n, 1 + dim + dim * dim, generator=generator, dtype=torch.float64)
    bent = draws[:, 1 + dim :].view(n, dim, dim)
    weight = torch.randint(1, 6, (n,), generator=generator).double() if weights else torch.ones(n)
    return cp.ProjectedSample(draws[:, 0] + 3, weight, draws[:, 1 : 1 + dim], bent + bent.mT)


def same(first: cp.QuadraticIncrement, second: cp.QuadraticIncrement, **tolerance) -> bool:
    names = ("level", "slope", "curvature")
    return all(torch.allclose(getattr(first, n), getattr(second, n), **(tolerance or EXACT)) for n in names)


def stack(increments: list[cp.QuadraticIncrement]) -> cp.QuadraticIncrement:
    names = ("level", "slope", "curvature")
    return cp.QuadraticIncrement(*(torch.stack([getattr(i, name) for i in increments]) for name in names))


def dense(case: cases.Case, batches: list) -> tuple[Tensor, Tensor, Tensor]:
    params = reference.trainable(case.model)
    value = reference.risk_value(case.model, case.loss, batches)
    return value.detach(), reference.gradient(value, params).detach(), reference.dense_hessian(value, params)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["mlp", "layer_norm", "weighted"])
def test_increment_is_the_difference_of_two_dense_risks(name, count):
    case = cases.make(name)
    risk = case.risk()
    U = orthonormal(risk.num_params)
    subspace = cp.Subspace.from_basis(U)
    new = case.batches(case.candidates)[:count]
    before, after = dense(case, case.batches()), dense(case, case.batches() + new)
    inc = cp.increment(cp.project(risk, subspace), cp.project(risk.on(case.candidates), subspace)[:count])
    assert torch.allclose(inc.level, after[0] - before[0], rtol=1e-8, atol=1e-12)
    assert torch.allclose(inc.slope, U.T @ (after[1] - before[1]), rtol=1e-8, atol=1e-10)
    assert torch.allclose(inc.curvature, U.T @ (after[2] - before[2]) @ U, rtol=1e-8, atol=1e-10)
    assert float(inc.curvature.norm()) > 1e-3


def test_a_mean_stands_for_its_sample():
    sample, new = synthetic(7), synthetic(3, seed=1)
    assert same(cp.increment(sample.mean(), new.mean()), cp.increment(sample, new))


def test_unequal_weights_count():
    sample = cp.ProjectedSample(torch.tensor([1.0, 4.0]), torch.tensor([3.0, 1.0]), torch.eye(2), torch.zeros(2, 2, 2))
    new = cp.ProjectedSample(torch.tensor([9.0]), torch.tensor([6.0]), torch.zeros(1, 2), torch.eye(2)[None])
    inc = cp.increment(sample, new)
    assert abs(float(inc.level) - 0.6 * (9 - 7 / 4)) < 1e-15
    assert torch.allclose(inc.slope, -0.6 * torch.tensor([0.75, 0.25], dtype=torch.float64), **EXACT)
    assert torch.allclose(inc.curvature, 0.6 * torch.eye(2, dtype=torch.float64), **EXACT)


def test_growing_one_by_one_adds_up_to_growing_at_once():
    sample, new = synthetic(7), synthetic(3, seed=1)
    both = cp.ProjectedSample(
        *(torch.cat([getattr(sample, n), getattr(new, n)]) for n in ("loss", "weight", "gradient", "hessian"))
    )
    steps = [cp.increment(both[: 7 + i], both[7 + i]) for i in range(3)]
    total = stack(steps)
    summed = cp.QuadraticIncrement(total.level.sum(0), total.slope.sum(0), total.curvature.sum(0))
    assert same(summed, cp.increment(sample, new))


@pytest.mark.parametrize("weights", [True, False])
def test_prefix_increments_are_one_by_one_increments(weights):
    sample = synthetic(30, weights=weights)
    assert same(cp.prefix_increments(sample), stack([cp.increment(sample[:k], sample[k]) for k in range(1, 30)]))
    ks = [4, 1, 29]
    assert same(cp.prefix_increments(sample, ks), stack([cp.increment(sample[:k], sample[k]) for k in ks]))


@pytest.mark.parametrize("ks", [None, [5, 1, 12]])
def test_fresh_increments_are_one_by_one_increments(ks):
    sample, fresh = synthetic(12), synthetic(4, seed=1)
    found = list(fresh_increments(sample, fresh, ks))
    lengths = ks or range(1, 13)
    assert len(found) == len(lengths)
    for inc, k in zip(found, lengths, strict=True):
        assert same(inc, stack([cp.increment(sample[:k], fresh[j]) for j in range(4)]))


@pytest.mark.parametrize("ks", [[], [0], [12], [-1]])
def test_prefix_lengths_out_of_range(ks):
    with pytest.raises(ValueError, match="expected prefix lengths from 1 to 11"):
        cp.prefix_increments(synthetic(12), ks)


def test_dimensions_that_do_not_match():
    with pytest.raises(ValueError, match="3 directions and the new examples on 2"):
        cp.increment(synthetic(4, dim=3), synthetic(1))
    with pytest.raises(ValueError, match="3 directions and the fresh examples on 2"):
        next(iter(fresh_increments(synthetic(4, dim=3), synthetic(1))))


def test_level_of_a_float32_model_at_a_thousand_examples():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1020, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (1020,), generator=generator)
    levels = []
    for dtype in (torch.float32, torch.float64):
        case = cases.make("mlp")
        risk = cp.EmpiricalRisk(case.model.to(dtype), case.loss, (x[:1000], y[:1000]))
        subspace = cp.random_subspace(risk, 1)
        mean, fresh = cp.mean_projection(risk, subspace), cp.project(risk.on((x[1000:], y[1000:])), subspace)
        levels.append(torch.stack([cp.increment(mean, fresh[j]).level for j in range(20)]))
    assert float((levels[0] - levels[1]).norm() / levels[1].norm()) < 1e-6


def test_level_at_a_million_examples():
    losses = 2 + torch.rand(1_000_001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sample = cp.ProjectedSample(
        losses, torch.ones(len(losses)), torch.zeros(len(losses), 1), torch.zeros(len(losses), 1, 1)
    )
    exact = float(losses.mean() - losses[:-1].mean())
    exact_identity = float((losses[-1] - losses[:-1].mean()) / len(losses))
    assert abs(exact / exact_identity - 1) < 1e-6
    for level in (cp.increment(sample[:-1], sample[-1]).level, cp.prefix_increments(sample, [1_000_000]).level[0]):
        assert abs(float(level) / exact_identity - 1) < 1e-9
    single = losses.float()
    naive = float(single.mean() - single[:-1].mean())
    assert abs(naive / exact_identity - 1) > 1e-3


# ---- the quadratic model ---------------------------------------------------------------------------------------


def test_values_at_coordinates():
    inc = cp.increment(synthetic(5, dim=3), synthetic(2, dim=3, seed=1))
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = [float(inc.level + inc.slope @ row + row @ inc.curvature @ row / 2) for row in z]
    assert torch.allclose(inc.at(z), torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_several_increments_at_once():
    several = cp.prefix_increments(synthetic(6))
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    one = cp.QuadraticIncrement(several.level[3], several.slope[3], several.curvature[3])
    assert several.at(z).shape == (5, 4)
    assert torch.allclose(several.at(z)[3], one.at(z), **EXACT)


def test_truncation_is_the_restriction_to_the_leading_directions():
    inc = cp.increment(synthetic(5, dim=3), synthetic(1, dim=3, seed=1))
    z = torch.tensor([[0.3, -2.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(inc.truncate(2).at(z[:, :2]), inc.at(z), **EXACT)
    assert inc.truncate(2).dim == 2
    with pytest.raises(ValueError, match="dim is 4"):
        inc.truncate(4)


def test_model_of_the_true_increment_is_right_to_third_order():
    case = cases.make("layer_norm")
    risk, new = case.risk(), case.risk().on(case.candidates)
    U = orthonormal(risk.num_params, 2)
    subspace = cp.Subspace.from_basis(U)
    inc = cp.increment(cp.project(risk, subspace), cp.project(new, subspace))
    z = torch.tensor([0.7, -0.4], dtype=torch.float64)
    errors = []
    for scale in (1e-1, 1e-2):
        moved = scale * (U @ z)
        true = 3 / 9 * (new.value(moved) - risk.value(moved))
        errors.append(abs(true - float(inc.at(scale * z[None]))))
    assert errors[1] < errors[0] / 300
    assert errors[1] < 1e-5


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"expected \(\.\.\.\), \(\.\.\., D\) and"):
        cp.QuadraticIncrement(torch.zeros(2), torch.zeros(3, 4), torch.zeros(2, 4, 4))


@pytest.mark.parametrize("n", [2, 5])
def test_each_example_as_the_next_of_all_others(n):
    pool = sample_of(n, weighted=True)
    found = last_increments(pool)
    for i in range(n):
        one = cp.increment(pool[[j for j in range(n) if j != i]], pool[i])
        for part in ("level", "slope", "curvature"):
            torch.testing.assert_close(getattr(found, part)[i], getattr(one, part), rtol=1e-10, atol=1e-12)
    with pytest.raises(cp.ArgumentError, match="needs at least 2"):
        last_increments(pool[:1])
