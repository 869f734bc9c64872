import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.criteria.estimators import corrected, independent, power_excess
from curvprobe.numerics.intervals import freedom
from tests import cases, reference


def draw_increment(dim: int = 4, seed: int = 0, level: float = 0.7) -> cp.QuadraticIncrement:
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(dim, generator=generator, dtype=torch.float64)
    B = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return cp.QuadraticIncrement(torch.tensor(level), c, B + B.T)


def quadratic_problem() -> tuple[cp.EmpiricalRisk, cp.EmpiricalRisk]:
    """Linear regression: the loss is its own quadratic model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 2).double()
        x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[:7], y[:7]))
    return risk, risk.on((x[7:], y[7:]))


def surrogate(risk: cp.EmpiricalRisk, new: cp.EmpiricalRisk, subspace: cp.Subspace) -> cp.QuadraticIncrement:
    return cp.increment(cp.project(risk, subspace), cp.project(new, subspace))


def naive_increments(case: cases.Case, batches: list, law: cp.Probe, count: int, seed: int) -> Tensor:
    """``L_{k+b} - L_k`` as a difference of two means at displaced copies of the model."""
    found = []
    for displacement in law.displacements(case.risk(), count, seed):
        moved, at = copy.deepcopy(case.model), 0
        with torch.no_grad():
            for p in moved.parameters():
                p += displacement[at : at + p.numel()].view(p.shape)
                at += p.numel()
            both = [reference.risk_value(moved, case.loss, part) for part in (batches, case.batches())]
        found.append(both[0] - both[1])
    return torch.stack(found)


# ---- closed form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1e-3, 0.5, 3.0])
@pytest.mark.parametrize("level", [-2.0, 0.0, 0.7])
def test_gaussian_moment_is_the_expanded_formula(sigma, level):
    inc = draw_increment(level=level)
    estimate = cp.gaussian_moment(inc, sigma=sigma)
    expanded = reference.gaussian_moment(float(inc.level), inc.slope, inc.curvature, sigma)
    assert abs(estimate.value / expanded - 1) < 1e-10
    assert (estimate.stderr, estimate.num_probes, estimate.p) == (0.0, 0, 2.0)
    assert (
        abs(estimate.shape / (sigma**2 * (inc.slope @ inc.slope) + sigma**4 / 2 * inc.curvature.square().sum()) - 1)
        < 1e-10
    )


def test_gaussian_moment_with_a_sigma_for_each_direction():
    inc, sigma = draw_increment(), torch.tensor([0.1, 1.0, 0.5, 2.0], dtype=torch.float64)
    S = torch.diag(sigma)
    expanded = reference.gaussian_moment(float(inc.level), S @ inc.slope, S @ inc.curvature @ S, 1.0)
    assert abs(cp.gaussian_moment(inc, sigma=sigma).value / expanded - 1) < 1e-10
    same = cp.gaussian_moment(inc, sigma=torch.full((4,), 0.3)).value
    assert abs(cp.gaussian_moment(inc, sigma=0.3).value / same - 1) < 1e-6


def test_level_part_is_the_mean_increment_and_may_vanish():
    inc = cp.QuadraticIncrement(torch.tensor(-2.0), torch.tensor([1.0, 2.0]), torch.diag(torch.tensor([3.0, 1.0])))
    estimate = cp.gaussian_moment(inc, sigma=1.0)
    assert (estimate.level, estimate.slope, estimate.curvature, estimate.value) == (0.0, 5.0, 5.0, 10.0)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(dim=st.integers(1, 6), seed=st.integers(0, 1000), level=st.floats(-1e3, 1e3), sigma=st.floats(1e-6, 1e3))
def test_gaussian_moment_is_a_sum_of_squares_that_no_rotation_changes(dim, seed, level, sigma):
    inc = draw_increment(dim, seed, level)
    estimate = cp.gaussian_moment(inc, sigma=sigma)
    parts = (estimate.level, estimate.slope, estimate.curvature)
    assert all(part >= 0 for part in parts)
    assert math.isclose(estimate.value, sum(parts), rel_tol=1e-12)
    assert math.isclose(estimate.shape, estimate.slope + estimate.curvature, rel_tol=1e-12)
    assert math.isclose(estimate.rms**2, estimate.value, rel_tol=1e-12)
    generator = torch.Generator().manual_seed(seed + 1)
    R = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    rotated = cp.gaussian_moment(
        cp.QuadraticIncrement(inc.level, R.T @ inc.slope, R.T @ inc.curvature @ R), sigma=sigma
    )
    assert math.isclose(rotated.value, estimate.value, rel_tol=1e-9)
    assert math.isclose(rotated.shape, estimate.shape, rel_tol=1e-9)


# ---- Monte Carlo on the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.1, 1.0, torch.tensor([0.1, 1.0, 0.5, 2.0])])
def test_quadratic_monte_carlo_is_within_its_error(sigma):
    inc = draw_increment()
    exact = cp.gaussian_moment(inc, sigma=sigma)
    estimate = cp.quadratic_monte_carlo(inc, sigma=sigma, num_probes=20_000, seed=1)
    assert abs(estimate.value - exact.value) < 4 * estimate.stderr < 0.2 * exact.value
    assert abs(estimate.shape / exact.shape - 1) < 0.2
    assert estimate.num_probes == 20_000


def test_standard_error_covers_as_often_as_it_says():
    inc = draw_increment(level=2.0)
    exact, hits = cp.gaussian_moment(inc, sigma=0.3).value, 0
    for seed in range(300):
        estimate = cp.quadratic_monte_carlo(inc, sigma=0.3, num_probes=400, seed=seed)
        hits += abs(estimate.value - exact) < 1.96 * estimate.stderr
    assert 0.90 < hits / 300 < 0.98


@pytest.mark.parametrize(("p", "absolute_moment"), [(1, (2 / math.pi) ** 0.5), (3, 2 * (2 / math.pi) ** 0.5), (4, 3.0)])
def test_other_powers(p, absolute_moment):
    """A purely linear increment is Gaussian, whose absolute moments are known."""
    inc = cp.QuadraticIncrement(torch.tensor(0.0), torch.tensor([3.0, 4.0]), torch.zeros(2, 2))
    estimate = cp.quadratic_monte_carlo(inc, sigma=0.2, num_probes=20_000, p=p)
    assert abs(estimate.value - absolute_moment) < 4 * estimate.stderr < 0.2 * absolute_moment
    assert estimate.p == p
    assert abs(estimate.rms**p / estimate.value - 1) < 1e-10


# ---- Monte Carlo on the true loss ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["layer_norm", "weighted"])
def test_direct_monte_carlo_is_the_moment_of_true_differences(name, count):
    case = cases.make(name)
    risk = case.risk()
    new = risk.on(case.candidates)[:count]
    law = cp.SubspaceProbe(cp.random_subspace(risk, 3), 0.1)
    true = naive_increments(case, case.batches() + case.batches(case.candidates)[:count], law, 5, seed=2)
    for p in (1, 2, 3):
        estimate = cp.direct_monte_carlo(risk, new, law, num_probes=5, seed=2, p=p)
        powers = true.abs() ** p
        assert abs(estimate.value / float(powers.mean()) - 1) < 1e-8
        assert abs(estimate.stderr / float(powers.std() / 5**0.5) - 1) < 1e-8
        assert abs(estimate.shape / float(true.var()) - 1) < 1e-8
        assert (estimate.p, estimate.num_probes) == (p, 5)


def test_direct_and_quadratic_share_their_draws():
    risk, new = quadratic_problem()
    subspace = cp.random_subspace(risk, 3)
    inc = surrogate(risk, new, subspace)
    for p in (1, 2):
        options = {"num_probes": 20, "seed": 7, "p": p}
        direct = cp.direct_monte_carlo(risk, new, cp.SubspaceProbe(subspace, 0.4), **options)
        quadratic = cp.quadratic_monte_carlo(inc, sigma=0.4, **options)
        assert abs(direct.value / quadratic.value - 1) < 1e-10
        assert abs(direct.stderr / quadratic.stderr - 1) < 1e-8


def test_direct_monte_carlo_of_a_quadratic_loss_meets_the_closed_form():
    risk, new = quadratic_problem()
    subspace = cp.random_subspace(risk, 3)
    exact = cp.gaussian_moment(surrogate(risk, new, subspace), sigma=0.3)
    estimate = cp.direct_monte_carlo(risk, new, cp.SubspaceProbe(subspace, 0.3), num_probes=500)
    assert abs(estimate.value - exact.value) < 4 * estimate.stderr < exact.value


@pytest.mark.parametrize("sigma", [0.3, torch.tensor([0.1, 0.3, 1.0])])
def test_controlled_monte_carlo_of_a_quadratic_loss_is_the_closed_form(sigma):
    risk, new = quadratic_problem()
    subspace = cp.top_eigenspace(risk, dim=3, tol=1e-10)
    exact = cp.gaussian_moment(surrogate(risk, new, subspace), sigma=sigma).value
    estimate = cp.controlled_monte_carlo(risk, new, cp.SubspaceProbe(subspace, sigma), num_probes=8)
    assert abs(estimate.value / exact - 1) < 1e-8
    assert estimate.stderr < 1e-8 * exact


def test_controlled_monte_carlo_under_the_laplace_law():
    risk, new = quadratic_problem()
    subspace = cp.top_eigenspace(risk, dim=3, tol=1e-10)
    law = cp.LaplaceProbe(subspace, len(risk), damping=0.1)
    exact = cp.gaussian_moment(surrogate(risk, new, subspace), sigma=law.scale).value
    assert abs(cp.controlled_monte_carlo(risk, new, law, num_probes=4).value / exact - 1) < 1e-8


def test_control_cuts_the_variance_where_the_model_is_good():
    case = cases.make("mlp")
    risk = case.risk()
    new = risk.on(case.candidates)[:1]
    law = cp.SubspaceProbe(cp.top_eigenspace(risk, dim=4), 1e-3)
    direct = cp.direct_monte_carlo(risk, new, law, num_probes=30)
    controlled = cp.controlled_monte_carlo(risk, new, law, num_probes=30)
    assert controlled.stderr**2 < direct.stderr**2 / 1000
    assert abs(direct.value - controlled.value) < 4 * direct.stderr


def test_control_is_unbiased_where_the_model_is_bad():
    case = cases.make("mlp")
    risk = case.risk()
    new = risk.on(case.candidates)[:1]
    subspace = cp.top_eigenspace(risk, dim=4)
    law = cp.SubspaceProbe(subspace, 1.0)
    direct = cp.direct_monte_carlo(risk, new, law, num_probes=500, seed=1)
    controlled = cp.controlled_monte_carlo(risk, new, law, num_probes=500, seed=2)
    assert abs(direct.value - controlled.value) < 4 * math.hypot(direct.stderr, controlled.stderr)
    moment = cp.gaussian_moment(surrogate(risk, new, subspace), sigma=1.0)
    assert abs(controlled.value - moment.value) > 4 * controlled.stderr  # it measures how wrong the model is


@pytest.mark.parametrize("p", [1, 2, 3])
def test_point_law_is_exact(p):
    case = cases.make("weighted")
    risk = case.risk()
    new = risk.on(case.candidates)
    estimate = cp.direct_monte_carlo(risk, new, cp.PointProbe(), p=p)
    batches = case.batches() + case.batches(case.candidates)
    after, before = (reference.risk_value(case.model, case.loss, part) for part in (batches, case.batches()))
    assert abs(estimate.value / abs(float((after - before).detach())) ** p - 1) < 1e-8
    assert (estimate.stderr, estimate.shape, estimate.p) == (0.0, 0.0, p)


def test_same_seed_same_numbers():
    risk, new = quadratic_problem()
    law = cp.SubspaceProbe(cp.random_subspace(risk, 2), 0.3)
    generator = torch.get_rng_state()
    for estimator in (cp.direct_monte_carlo, cp.controlled_monte_carlo):
        first, again, other = (estimator(risk, new, law, num_probes=4, seed=seed) for seed in (1, 1, 2))
        assert first == again != other
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_negative_controlled_estimate_has_no_root():
    assert math.isnan(cp.Estimate(-4.0, 1.0).rms)
    assert cp.Estimate(4.0, 1.0).rms == 2.0


@pytest.mark.parametrize(("options", "message"), [({"num_probes": 1}, "num_probes is 1"), ({"p": 0.5}, "p is 0.5")])
def test_arguments_that_make_no_sense(options, message):
    risk, new = quadratic_problem()
    with pytest.raises(ValueError, match=message):
        cp.quadratic_monte_carlo(draw_increment(), sigma=1.0, **options)
    with pytest.raises(ValueError, match=message):
        cp.direct_monte_carlo(risk, new, cp.IsotropicProbe(1.0), **options)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, torch.ones(3)])
def test_sigma_that_makes_no_sense(sigma):
    for estimator in (cp.gaussian_moment, cp.quadratic_monte_carlo):
        with pytest.raises(ValueError, match="sigma"):
            estimator(draw_increment(), sigma=sigma)


def test_several_increments_are_refused():
    several = cp.QuadraticIncrement(torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="expected a single one"):
        cp.gaussian_moment(several, sigma=1.0)


def test_new_examples_of_another_model_are_refused():
    _, new = quadratic_problem()
    with pytest.raises(ValueError, match=r"make it with risk\.on"):
        cp.direct_monte_carlo(cases.make("mlp").risk(), new, cp.IsotropicProbe(0.1))


def test_a_probe_where_the_loss_is_not_finite_says_so():
    model = nn.Linear(1, 1, bias=False).double()
    risk = cp.EmpiricalRisk(model, lambda outputs, batch: outputs[:, 0].exp(), torch.ones(2, 1).double())
    with pytest.raises(ValueError, match="at the displaced parameters; take a smaller sigma"):
        cp.direct_monte_carlo(risk, risk, cp.IsotropicProbe(1e5))


def test_what_another_order_in_closed_form_says():
    inc = cp.QuadraticIncrement(torch.tensor(1.0), torch.tensor([0.5, 0.2]), torch.tensor([[0.3, 0.1], [0.1, -0.2]]))
    found, second = cp.gaussian_moment(inc, sigma=0.7, p=3.0), cp.gaussian_moment(inc, sigma=0.7)
    assert (found.stderr, found.p, found.num_probes) == (0.0, 3.0, 0)
    assert found.shape == pytest.approx(second.slope + second.curvature, rel=1e-12)
    assert cp.quadratic_monte_carlo(inc, sigma=0.7) == cp.quadratic_monte_carlo(inc, sigma=0.7, num_probes=64, seed=0)
    assert cp.quadratic_monte_carlo(inc, sigma=0.7, num_probes=2).num_probes == 2
    with pytest.raises(cp.ArgumentError, match="num_probes is 1"):
        cp.quadratic_monte_carlo(inc, sigma=0.7, num_probes=1)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_the_excess_of_powers(p):
    """Far apart and close together, of either sign, and from nothing."""
    true = torch.tensor([1.0, -1.0, 3.0, 0.1, 0.0, 2.0, 0.4, 1.0 + 1e-9], dtype=torch.float64)
    model = torch.tensor([1.2, 1.2, 1.0, -2.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    found = power_excess(true, model, p)
    naive = true.abs() ** p - model.abs() ** p
    torch.testing.assert_close(found[:-1], naive[:-1], rtol=1e-12, atol=1e-14)
    assert float(found[-1]) == pytest.approx(p * 1e-9, rel=1e-6)


def test_what_a_corrected_estimate_says_of_itself():
    """The two errors by Welch and Satterthwaite: of the excess with its own freedom, of the traces with theirs."""
    true = torch.tensor([1.0, 2.0, -1.0, 3.0, 0.5, -2.0, 1.5, 1.0], dtype=torch.float64)
    model = torch.tensor([1.1, 1.8, -1.2, 2.5, 0.7, -2.2, 1.4, 1.3], dtype=torch.float64)
    terms = independent(power_excess(true, model, 2.0))
    own = float(terms.std()) / 2
    plain = corrected(cp.Estimate(5.0, 0.0), true, model)
    assert (plain.stderr, plain.freedom) == (pytest.approx(own), max(1.0, freedom(terms)))
    both = corrected(cp.Estimate(5.0, 0.3, freedom=7.0), true, model)
    stderr = (own**2 + 0.3**2) ** 0.5
    assert both.stderr == pytest.approx(stderr)
    assert both.freedom == pytest.approx(max(1.0, stderr**4 / (own**4 / freedom(terms) + 0.3**4 / 7)))
    assert both.value == pytest.approx(5.0 + float((true.square() - model.square()).mean()))
    assert (both.num_probes, both.p) == (8, 2.0)
    assert corrected(cp.Estimate(5.0, 0.0, p=3.0), true, model).p == 3.0
