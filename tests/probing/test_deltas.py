import itertools

import pytest
import torch
from torch import Tensor

import curvprobe as cp
from tests import cases, reference

EXACT = {"rtol": 1e-10, "atol": 1e-16}


def synthetic(n: int, dim: int = 2, seed: int = 0) -> cp.ProjectedSample:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(n, 1 + dim + dim * dim, generator=generator, dtype=torch.float64)
    bent = draws[:, 1 + dim :].view(n, dim, dim)
    return cp.ProjectedSample(draws[:, 0], torch.ones(n), draws[:, 1 : 1 + dim], bent + bent.mT)


def features(sample: cp.ProjectedSample, sigma: float) -> Tensor:
    """``psi_i = (l_i + sigma^2 tr B_i / 2, sigma c_i, sigma^2 vec B_i / sqrt 2)``."""
    level = sample.loss + sigma**2 * sample.hessian.diagonal(dim1=1, dim2=2).sum(1) / 2
    return torch.cat([level[:, None], sigma * sample.gradient, sigma**2 * sample.hessian.flatten(1) / 2**0.5], dim=1)


def problem(name: str = "weighted") -> tuple[cases.Case, cp.EmpiricalRisk, cp.EmpiricalRisk]:
    case = cases.make(name)
    risk = case.risk()
    return case, risk, risk.on(case.candidates)


# ---- one sample size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["mlp", "layer_norm", "weighted"])
def test_delta1_is_the_change_of_the_mean(name, count):
    case, risk, new = problem(name)
    batches = case.batches() + case.batches(case.candidates)[:count]
    after, before = (reference.risk_value(case.model, case.loss, part).detach() for part in (batches, case.batches()))
    estimate = cp.delta1(risk, new[:count])
    assert abs(estimate.value / abs(float(after - before)) - 1) < 1e-8
    assert (estimate.p, estimate.stderr, estimate.rms) == (1.0, 0.0, estimate.value)


def test_delta2_is_the_isotropic_moment():
    case, risk, new = problem("mlp")
    estimate = cp.delta2(risk, new, sigma=0.2, num_probes=50, seed=3)
    draws = cp.IsotropicProbe(0.2).displacements(risk, 50, 3)
    true = torch.tensor([3 / 9 * (new.value(d) - risk.value(d)) for d in draws], dtype=torch.float64)
    assert abs(estimate.value / float(true.square().mean()) - 1) < 1e-10
    params = reference.trainable(case.model)
    before, joined = (
        reference.risk_value(case.model, case.loss, case.batches(data)) for data in (case.data, case.candidates)
    )
    b = (reference.gradient(joined, params) - reference.gradient(before, params)).detach() / 3
    A = (reference.dense_hessian(joined, params) - reference.dense_hessian(before, params)) / 3
    small = cp.delta2(risk, new, sigma=1e-3, num_probes=400)
    closed = reference.gaussian_moment(float((joined - before).detach()) / 3, b, A, 1e-3)
    assert abs(small.value - closed) < 4 * small.stderr < 0.05 * closed


@pytest.mark.parametrize("sigma", [1e-3, 0.5])
@pytest.mark.parametrize("name", ["layer_norm", "weighted"])
def test_delta2_subspace_from_dense_hessians(name, sigma):
    case, risk, new = problem(name)
    subspace = cp.top_eigenspace(risk, dim=3, tol=1e-10)
    params, U = reference.trainable(case.model), subspace.basis
    before = reference.risk_value(case.model, case.loss, case.batches())
    after = reference.risk_value(case.model, case.loss, case.batches() + case.batches(case.candidates)[:1])
    c = U.T @ (reference.gradient(after, params) - reference.gradient(before, params)).detach()
    B = U.T @ (reference.dense_hessian(after, params) - reference.dense_hessian(before, params)) @ U
    expected = reference.gaussian_moment(float((after - before).detach()), c, B, sigma)
    estimate = cp.delta2_subspace(risk, new[:1], subspace, sigma=sigma)
    assert abs(estimate.value / expected - 1) < 1e-8
    shape = sigma**2 * float(c @ c) + sigma**4 / 2 * float(B.square().sum())
    assert abs(estimate.shape / shape - 1) < 1e-8


def test_delta2_subspace_with_a_sigma_for_each_direction():
    _, risk, new = problem()
    subspace = cp.random_subspace(risk, 3)
    inc = cp.increment(cp.project(risk, subspace), cp.project(new, subspace))
    sigma = torch.tensor([0.1, 0.2, 0.5])
    estimate = cp.delta2_subspace(risk, new, subspace, sigma=sigma)
    assert abs(estimate.value / cp.gaussian_moment(inc, sigma=sigma).value - 1) < 1e-10


# ---- the decay curve -------------------------------------------------------------------------------------------


def test_decay_curve_is_every_criterion_from_scratch():
    case, risk, _ = problem("weighted")
    subspace = cp.random_subspace(risk, 4)
    sample = cp.project(risk, subspace)
    dims, sigmas, ks = [1, 2, 4], [1e-3, 0.1, 1.0], [1, 2, 3, 4]
    curve = cp.decay_curve(sample, ks, sigmas, dims)
    assert curve.value.shape == (4, 3, 3)
    for row, k in enumerate(ks):
        old, new = (
            cp.EmpiricalRisk(case.model, case.loss, {key: value[part] for key, value in case.data.items()})
            for part in (slice(0, k), slice(k, k + 1))
        )
        assert abs(float(curve.delta1[row]) / cp.delta1(old, new).value - 1) < 1e-10
        for column, dim in enumerate(dims):
            sliced = cp.increment(sample[:k], sample[k]).truncate(dim)
            for depth, sigma in enumerate(sigmas):
                scratch = cp.delta2_subspace(old, new, subspace.truncate(dim), sigma=sigma)
                for estimate in (scratch, cp.gaussian_moment(sliced, sigma=sigma)):
                    for part in ("value", "level", "slope", "curvature", "shape"):
                        found = float(getattr(curve, part)[row, column, depth])
                        assert abs(found / getattr(estimate, part) - 1) < 1e-10
    assert float(curve.stderr.abs().max()) == 0.0


def test_decay_curve_is_the_distance_of_features():
    sample = synthetic(30)
    ks = [1, 2, 7, 20, 29]
    curve = cp.decay_curve(sample, ks, sigma=0.4)
    psi = features(sample, 0.4)
    expected = torch.stack([(psi[k] - psi[:k].mean(0)).square().sum() / (k + 1) ** 2 for k in ks])
    assert torch.allclose(curve.value[:, 0, 0], expected, **EXACT)
    assert curve.ks.tolist() == ks
    assert curve.dims.tolist() == [2]
    assert curve.sigmas.tolist() == [0.4]


def test_decay_curve_takes_every_k_and_the_whole_subspace_by_default():
    sample = synthetic(6)
    curve = cp.decay_curve(sample, sigma=0.3)
    assert curve.ks.tolist() == [1, 2, 3, 4, 5]
    assert cp.decay_curve(sample, sigma=0.3, fresh=synthetic(2, seed=1)).ks.tolist() == [1, 2, 3, 4, 5, 6]
    assert torch.equal(curve.value, cp.decay_curve(sample, [1, 2, 3, 4, 5], [0.3], [2]).value)


def test_fresh_examples_are_averaged():
    sample, fresh = synthetic(12), synthetic(5, seed=1)
    ks, sigmas, dims = [1, 6, 12], [0.1, 1.0], [1, 2]
    curve = cp.decay_curve(sample, ks, sigmas, dims, fresh=fresh)
    for (row, k), (column, dim), (depth, sigma) in itertools.product(*map(enumerate, (ks, dims, sigmas))):
        increments = [cp.increment(sample[:k], fresh[j]).truncate(dim) for j in range(5)]
        moments = [cp.gaussian_moment(inc, sigma=sigma) for inc in increments]
        for part in ("value", "level", "slope", "curvature", "shape"):
            mean = sum(getattr(m, part) for m in moments) / 5
            assert abs(float(getattr(curve, part)[row, column, depth]) / mean - 1) < 1e-10
        spread = torch.tensor([m.value for m in moments], dtype=torch.float64).std() / 5**0.5
        assert torch.allclose(curve.stderr[row, column, depth], spread, rtol=1e-8)
        spread = torch.tensor([m.shape for m in moments], dtype=torch.float64).std() / 5**0.5
        assert torch.allclose(curve.shape_stderr[row, column, depth], spread, rtol=1e-8)
        assert torch.allclose(curve.delta1[row], torch.stack([inc.level.abs() for inc in increments]).mean(), **EXACT)


def test_one_fresh_example_has_no_standard_error():
    curve = cp.decay_curve(synthetic(4), [2], 0.1, fresh=synthetic(1, seed=1))
    assert bool(curve.stderr.isnan().all())
    assert bool(curve.shape_stderr.isnan().all())


def test_expectation_over_all_orderings_is_arithmetic():
    """``E GM(k+1) = tr Sigma / (k (k+1))`` exactly, with the unbiased covariance of the features."""
    sample, sigma = synthetic(5), 0.7
    orderings = list(itertools.permutations(range(5)))
    curves = torch.stack([cp.decay_curve(sample[list(order)], sigma=sigma).value[:, 0, 0] for order in orderings])
    dispersion = float(features(sample, sigma).var(0).sum())
    k = torch.arange(1, 5, dtype=torch.float64)
    assert len(orderings) == 120
    assert torch.allclose(curves.mean(0), dispersion / (k * (k + 1)), **EXACT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": [5]}, "expected prefix lengths from 1 to 4"),
        ({"ks": [0]}, "expected prefix lengths from 1 to 4"),
        ({"sigma": [0.1, -1.0]}, "expected positive and finite"),
        ({"dims": [3]}, "expected dimensions from 1 to 2"),
        ({"dims": []}, "expected dimensions from 1 to 2"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        cp.decay_curve(synthetic(5), **options)
