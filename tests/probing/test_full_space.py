"""The full-space closed form against dense Hessians, and Monte Carlo against it."""

import math

import pytest
import torch
from torch import nn

import curvprobe as cp
from curvprobe.numerics.traces import trace_moments
from curvprobe.probing.full_space import quadratic_model_at
from curvprobe.probing.joining import Joining
from tests import cases, reference


def dense(case: cases.Case, batches) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Loss, gradient and Hessian of the mean loss of batches."""
    params = reference.trainable(case.model)
    value = reference.risk_value(case.model, case.loss, batches)
    H = reference.dense_hessian(value, params)
    return float(value.detach()), reference.gradient(value, params).detach(), H


def dense_increment(case: cases.Case, joined) -> tuple[float, torch.Tensor, torch.Tensor]:
    old, new = case.batches(), joined
    weights = [sum(reference.example_losses(case.model, case.loss, part)[1]) for part in (old, new)]
    factor = weights[1] / sum(weights)
    before, after = dense(case, old), dense(case, new)
    return tuple(factor * (b - a) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["mlp", "layer_norm", "attention", "weighted", "tied"])
@pytest.mark.parametrize("scaled", [False, True])
def test_unbiased_for_the_dense_answer(name, scaled):
    case = cases.make(name)
    risk = case.risk()
    new = risk.on(case.candidates)
    sigma = 0.3
    scale = torch.full((risk.num_params,), sigma, dtype=torch.float64)
    if scaled:
        scale = sigma * torch.linspace(0, 2, risk.num_params, dtype=torch.float64)
    a, b, A = dense_increment(case, case.batches(case.candidates))
    truth = reference.gaussian_moment(a, scale * b, scale[:, None] * A * scale, 1.0)
    found = [
        cp.full_space_moment(risk, new, sigma=scale if scaled else sigma, num_probes=12, seed=s) for s in range(60)
    ]
    values = torch.tensor([one.value for one in found], dtype=torch.float64)
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(60) + 1e-9 * truth
    assert found[0].slope == pytest.approx(float((scale * b).square().sum()), rel=1e-10)
    assert found[0].level + found[0].slope + found[0].curvature == pytest.approx(found[0].value, rel=1e-12)


def test_the_quadratic_model_at_displacements_is_the_dense_one(monkeypatch):
    case = cases.make("mlp")
    risk = case.risk()
    joining = Joining(risk, risk.on(case.candidates))
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, risk.num_params, generator=draw, dtype=torch.float64)
    asked, gap = [], Joining.hessian_gap

    def counted(self):
        product = gap(self)
        return lambda displacement: (asked.append(1), product(displacement))[1]

    monkeypatch.setattr(Joining, "hessian_gap", counted)
    displacements = [first, -first, second, 2 * second]
    found = quadratic_model_at(joining, iter(displacements), 4)
    a, b, A = dense_increment(case, case.batches(case.candidates))
    truth = [float(a + b @ d + d @ A @ d / 2) for d in displacements]
    assert found.tolist() == pytest.approx(truth, rel=1e-10)
    assert found.dtype == torch.float64
    assert len(asked) == 3  # the mirror image curves alike


def wide_mlp() -> cases.Case:
    """Ten thousand parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 200), nn.Tanh(), nn.Linear(200, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(24, 16, generator=draw, dtype=torch.float64)
    y = torch.randint(0, 3, (24,), generator=draw)
    return cases.Case(model, cp.losses.cross_entropy, (x[:20], y[:20]), (x[20:], y[20:]))


def test_ten_thousand_parameters_within_the_interval():
    """The dense answer by products with all unit vectors, in blocks."""
    case = wide_mlp()
    risk = case.risk()
    assert risk.num_params > 9_000
    new = risk.on(case.candidates)[:1]
    factor = 1 / 21
    trace = frobenius = 0.0
    H, H_new, sigma = cp.hessian(risk), cp.hessian(new), 0.05
    for start in range(0, risk.num_params, 500):
        stop = min(start + 500, risk.num_params)
        block = torch.zeros(risk.num_params, stop - start, dtype=torch.float64)
        block[torch.arange(start, stop), torch.arange(stop - start)] = 1.0
        columns = factor * (H_new @ block - H @ block)
        trace += float(columns[start:stop].diagonal().sum())
        frobenius += float(columns.square().sum())
    level = factor * (new.value() - risk.value()) + sigma**2 * trace / 2
    slope = factor**2 * float((new.gradient() - risk.gradient()).square().sum())
    truth = level**2 + sigma**2 * slope + sigma**4 * frobenius / 2
    found = [cp.full_space_moment(risk, new, sigma=sigma, num_probes=30, seed=seed) for seed in range(20)]
    assert sum(abs(one.value - truth) < 2.26 * one.stderr for one in found) >= 17  # ten probes beside the sketch
    values = torch.tensor([one.value for one in found], dtype=torch.float64)
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(20)
    assert float(values.std()) < 0.2 * truth


@pytest.mark.parametrize("name", ["mlp", "weighted"])
def test_every_candidate_and_their_mean(name):
    case = cases.make(name)
    risk = case.risk()
    candidates = risk.on(case.candidates)
    sigma = 0.3
    truth = [
        reference.gaussian_moment(*dense_increment(case, [batch]), sigma) for batch in case.batches(case.candidates)
    ]
    found = [cp.full_space_parts(risk, candidates, sigma=sigma, num_probes=8, seed=s) for s in range(60)]
    values = torch.stack([one.value for one in found])
    error = (values.mean(0) - torch.tensor(truth, dtype=torch.float64)).abs()
    assert bool((error < 4 * values.std(0) / math.sqrt(60)).all())
    means = torch.tensor([one.expected.value for one in found], dtype=torch.float64)
    shared = torch.stack([one.value_terms for one in found]).std(1) / math.sqrt(8)
    assert float(shared.square().mean().sqrt()) == pytest.approx(float(means.std()), rel=0.25)
    assert found[0].expected.stderr > float(shared[0])


@pytest.mark.parametrize("law", [cp.IsotropicProbe(0.02), cp.NormalizedProbe(0.05), cp.NormalizedProbe(0.05, "filter")])
def test_controlled_monte_carlo_in_all_parameters_has_the_smaller_error(law):
    case = cases.make("mlp")
    risk = case.risk()
    new = risk.on(case.candidates)[:1]
    direct = cp.direct_monte_carlo(risk, new, law, num_probes=4000, seed=7)
    controlled = cp.controlled_monte_carlo(risk, new, law, num_probes=64)
    plain = cp.direct_monte_carlo(risk, new, law, num_probes=64)
    assert controlled.stderr < plain.stderr / 10
    assert abs(controlled.value - direct.value) < 4 * math.hypot(direct.stderr, controlled.stderr)
    closed = cp.closed_form(risk, new, law, num_probes=64)
    assert closed.value == pytest.approx(controlled.value, rel=0.02)


def test_what_makes_no_sense_is_refused():
    case = cases.make("mlp")
    risk = case.risk()
    new = risk.on(case.candidates)
    with pytest.raises(ValueError, match="num_products is 3"):
        cp.full_space_moment(risk, new, sigma=0.1, num_probes=3)
    with pytest.raises(ValueError, match="num_probes is 3"):
        cp.full_space_parts(risk, new, sigma=0.1, num_probes=3)
    with pytest.raises(ValueError, match="not negative"):
        cp.full_space_moment(risk, new, sigma=torch.ones(3))
    with pytest.raises(TypeError, match="no closed form"):
        cp.closed_form(risk, new, Uniform())


class Uniform:
    """A law of a user's own, in ten lines."""

    def displacements(self, risk, num_probes, seed):
        draw = torch.Generator().manual_seed(seed)
        for _ in range(num_probes):
            yield (torch.rand(risk.num_params, generator=draw, dtype=risk.dtype) - 0.5).to(risk.device)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_a_law_of_ones_own_with_any_power(p):
    case = cases.make("mlp")
    risk = case.risk()
    estimate = cp.direct_monte_carlo(risk, risk.on(case.candidates), Uniform(), num_probes=16, p=p)
    assert estimate.value > 0
    assert estimate.p == p


class InSubspace:
    """Gaussian in a subspace, by no class of the package's."""

    def __init__(self, subspace, sigma):
        self.law = cp.SubspaceProbe(subspace, sigma)
        self.subspace, self.scale = subspace, self.law.scale

    def coordinates(self, num_probes, seed):
        return self.law.coordinates(num_probes, seed)

    def displacements(self, risk, num_probes, seed):
        return self.law.displacements(risk, num_probes, seed)


class InAllParameters:
    """Gaussian in all parameters, by no class of the package's."""

    def deviation(self, risk):
        return torch.linspace(0, 0.02, risk.num_params, dtype=risk.dtype)

    def displacements(self, risk, num_probes, seed):
        for noise in cp.IsotropicProbe(1.0).displacements(risk, num_probes, seed):
            yield self.deviation(risk) * noise


def test_gaussian_laws_of_ones_own_have_a_closed_form_and_a_control():
    case = cases.make("mlp")
    risk = case.risk()
    new = risk.on(case.candidates)[:1]
    space = cp.top_eigenspace(risk, dim=2)
    theirs, ours = InSubspace(space, 0.02), cp.SubspaceProbe(space, 0.02)
    for function in (cp.closed_form, cp.controlled_monte_carlo):
        assert function(risk, new, theirs) == function(risk, new, ours)
    law = InAllParameters()
    controlled, direct = (
        function(risk, new, law, num_probes=64) for function in (cp.controlled_monte_carlo, cp.direct_monte_carlo)
    )
    assert controlled.stderr < direct.stderr / 10
    assert controlled.value == pytest.approx(cp.closed_form(risk, new, law, num_probes=64).value, rel=0.02)


@pytest.mark.parametrize("budget", [2**30, 20_000])
def test_a_small_budget_holds_fewer_probes_and_changes_no_number(budget):
    case = cases.make("mlp")
    risk = case.risk(memory_budget=budget, microbatch_size=2)
    held = risk.budget.probes_held()
    assert held == (8 if budget == 2**30 else 20_000 // 2 // (8 * 8 * risk.num_params))
    assert 1 <= held <= 8
    found = cp.full_space_parts(risk, risk.on(case.candidates), sigma=0.1, num_probes=8)
    usual = cp.full_space_parts(case.risk(), case.risk().on(case.candidates), sigma=0.1, num_probes=8)
    assert torch.allclose(found.value, usual.value, rtol=1e-10, atol=0)


def jackknifed(risk, new, sigma, products, seed):
    """Standard error by leaving out each of the probes in turn, the whole formula anew."""
    factor = float(new.total_weight / (risk.total_weight + new.total_weight))
    level = factor * (new.value() - risk.value())

    def gap(block):
        return sigma**2 * factor * (cp.hessian(new) @ block - cp.hessian(risk) @ block)

    moments = trace_moments(gap, risk.num_params, num_products=products, seed=seed, dtype=torch.float64)
    traces, squares = moments.trace_terms, moments.frobenius_terms

    def value(rows):
        noise = float(traces[rows].var()) / len(rows)
        return (level + float(traces[rows].mean()) / 2) ** 2 - noise / 4 + float(squares[rows].mean()) / 2

    every = list(range(len(traces)))
    pseudo = torch.tensor(
        [len(every) * value(every) - (len(every) - 1) * value([i for i in every if i != j]) for j in every]
    )
    return float(pseudo.double().std()) / math.sqrt(len(every))


def test_the_moment_is_the_sum_of_its_parts_and_its_error_their_scatter():
    """Against the whole Hessian of a small network: value, every part, and the standard error over seeds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()
        x, y = torch.randn(20, 3, dtype=torch.float64), torch.randint(2, (20,))
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x[:15], y[:15]))
    new = risk.on((x[15:16], y[15:16]))
    whole = cp.Subspace.from_basis(torch.eye(risk.num_params, dtype=torch.float64))
    exact = cp.gaussian_moment(cp.increment(cp.project(risk, whole), cp.project(new, whole)), sigma=1.5)
    found = [cp.full_space_moment(risk, new, sigma=1.5, num_probes=8, seed=s) for s in range(120)]
    for one in found[:5]:
        assert one.value == pytest.approx(one.level + one.slope + one.curvature, rel=1e-12)
        assert one.shape == pytest.approx(one.slope + one.curvature, rel=1e-12)
        assert one.slope == pytest.approx(exact.slope, rel=1e-9)
    values = torch.tensor([one.value for one in found])
    curvatures = torch.tensor([one.curvature for one in found])
    for drawn, truth in ((values, exact.value), (curvatures, exact.curvature)):
        assert abs(float(drawn.mean()) - truth) < 4.5 * float(drawn.std()) / math.sqrt(len(drawn))
    assert exact.curvature > 0.05 * exact.value
    assert found[0].stderr == pytest.approx(jackknifed(risk, new, 1.5, 8, 0), rel=1e-6)
    stated = math.sqrt(sum(one.stderr**2 for one in found) / len(found))
    # The jackknife of a squared mean that is mostly noise states up to the root of two too much.
    assert 0.9 * float(values.std()) < stated < 1.6 * float(values.std())
