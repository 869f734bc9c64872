"""Every order p under every law by every estimator, against brute force: the cells of the table in docs/numbers.md."""

import json
import math

import pytest
import torch

import curvprobe as cp
from curvprobe.probing.joining import Joining
from curvprobe.probing.monte_carlo import probe_increments
from curvprobe.runtime.plain import to_json

ORDERS = (1.0, 1.5, 2.0, 4.0)
SIGMA = 0.4
MANY = 8_000


@pytest.fixture(scope="module")
def problem():
    """A linear regression: its loss is its own quadratic model, and so all estimators have one target."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1).double()
        x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64)
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[:7], y[:7]))
    return risk, risk.on((x[7:], y[7:])), cp.top_eigenspace(risk, dim=3, tol=1e-8)


def law_of(name, space):
    return {
        "point": cp.PointProbe(),
        "subspace": cp.SubspaceProbe(space, SIGMA),
        "isotropic": cp.IsotropicProbe(SIGMA),
        "laplace": cp.LaplaceProbe(space, k=7),
        "normalised": cp.NormalizedProbe(SIGMA),
    }[name]


@pytest.fixture(scope="module")
def brute(problem):
    """True increments at many draws of every law."""
    risk, new, space = problem
    joining = Joining(risk, new)
    names = ("subspace", "isotropic", "laplace", "normalised")
    return {name: probe_increments(joining, law_of(name, space), MANY, 9) for name in names}


def target(brute, problem, name, p):
    """The criterion and its standard error."""
    if name == "point":
        return abs(Joining(*problem[:2]).increment_at()) ** p, 0.0
    powers = brute[name].abs() ** p
    return float(powers.mean()), float(powers.view(-1, 2).mean(1).std()) / math.sqrt(MANY / 2)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("name", ["point", "subspace", "isotropic", "laplace", "normalised"])
@pytest.mark.parametrize("estimator", ["closed", "direct", "quadratic", "controlled"])
def test_cell(problem, brute, name, p, estimator):
    risk, new, space = problem
    law = law_of(name, space)
    value, error = target(brute, problem, name, p)
    gaussian, full = name in ("subspace", "laplace"), name in ("isotropic", "normalised")
    if estimator == "closed":
        if full and p != 2:
            with pytest.raises(ValueError, match="for p = 2 only"):
                cp.closed_form(risk, new, law, p=p)
            return
        found = cp.closed_form(risk, new, law, p=p, num_probes=64)
    elif estimator == "direct":
        found = cp.direct_monte_carlo(risk, new, law, num_probes=4000, p=p)
    elif estimator == "quadratic":
        if not gaussian:
            return
        model = cp.increment(cp.project(risk, space), cp.project(new, space))
        found = cp.quadratic_monte_carlo(model, sigma=law.scale, num_probes=4000, p=p)
    else:
        if name == "point":
            with pytest.raises(TypeError, match="not Gaussian"):
                cp.controlled_monte_carlo(risk, new, law, p=p)
            return
        if full and p != 2:
            with pytest.raises(ValueError, match="for p = 2 only"):
                cp.controlled_monte_carlo(risk, new, law, p=p)
            return
        found = cp.controlled_monte_carlo(risk, new, law, num_probes=64, p=p)
        assert gaussian <= (found.stderr < 1e-10 * found.value)  # the loss is quadratic
    assert found.p == p
    assert abs(found.value - value) <= 5 * math.hypot(error, found.stderr) + 1e-9 * value


@pytest.mark.parametrize("name", ["subspace", "laplace"])
def test_the_largest_within_a_ball(problem, brute, name):
    """p = infinity: no draw within the ball exceeds it, and some come near."""
    risk, new, space = problem
    law = law_of(name, space)
    model = cp.increment(cp.project(risk, space), cp.project(new, space))
    scale = law.scale
    scaled = cp.QuadraticIncrement(model.level, model.slope * scale, model.curvature * scale[:, None] * scale)
    found = cp.worst_case(scaled, 2.0)
    z = law.coordinates(MANY, 9) / scale
    inside = brute[name][z.norm(dim=1) <= 2.0].abs()
    assert 0.7 * found.value < float(inside.max()) <= found.value * (1 + 1e-9)


@pytest.mark.parametrize("p", [math.inf, 0.5, math.nan])
def test_orders_that_make_no_sense_are_refused(problem, p):
    risk, new, space = problem
    law = cp.SubspaceProbe(space, SIGMA)
    sample, fresh = cp.project(risk, space), cp.project(new, space)
    for work in (
        lambda: cp.direct_monte_carlo(risk, new, law, p=p),
        lambda: cp.controlled_monte_carlo(risk, new, law, p=p),
        lambda: cp.closed_form(risk, new, law, p=p),
        lambda: cp.quadratic_monte_carlo(cp.increment(sample, fresh), sigma=SIGMA, p=p),
        lambda: cp.expected_criterion(sample, fresh, SIGMA, p=p),
        lambda: cp.decay_curve(sample, [3], SIGMA, fresh=fresh, p=p),
        lambda: cp.analyze(risk, new, dim=2, p=p),
    ):
        with pytest.raises(ValueError, match="worst_case"):
            work()


@pytest.mark.parametrize("p", [1.0, 3.0, 4.0])
def test_the_expectation_and_the_curve_are_means_of_single_moments(problem, p):
    risk, new, space = problem
    sample, fresh = cp.project(risk, space), cp.project(new, space)
    singles = [cp.gaussian_moment(cp.increment(sample, fresh[j]), sigma=SIGMA, p=p).value for j in range(2)]
    expected = cp.expected_criterion(sample, fresh, SIGMA, p=p)
    assert expected.contributions.tolist() == pytest.approx(singles, rel=1e-9)
    assert expected.rms == pytest.approx((sum(singles) / 2) ** (1 / p))
    curve = cp.decay_curve(sample, [7], SIGMA, [3], fresh=fresh, p=p)
    assert float(curve.value) == pytest.approx(sum(singles) / 2, rel=1e-9)
    assert cp.DecayCurve.from_json(json.loads(to_json(curve.to_json()))).p == p
    others = [[i for i in range(7) if i != j] for j in range(7)]
    alone = [
        cp.gaussian_moment(cp.increment(sample[rest], sample[j]), sigma=SIGMA, p=p).value
        for j, rest in enumerate(others)
    ]
    pool = cp.expected_criterion(sample, None, SIGMA, p=p)
    assert pool.contributions.tolist() == pytest.approx(alone, rel=1e-9)
    with pytest.raises(ValueError, match="one that joins"):
        cp.expected_criterion(sample, fresh, SIGMA, 2, p=p)


def test_an_analysis_of_another_order(problem, tmp_path):
    risk, new, _ = problem
    found = cp.analyze(risk, new, dim=2, sigma=0.1, p=1, out=tmp_path)
    assert found.isotropic_controlled is None
    assert found.doubling is None
    assert found.closed_form.p == found.direct.p == found.controlled.p == found.expected.p == 1
    assert found.controlled.value == pytest.approx(found.closed_form.value, rel=1e-9)  # the loss is quadratic
    assert found.expected.value == pytest.approx(float(found.expected.contributions.mean()))
    assert "order 1, D = 2, closed form" in found.table()
    assert "(loss units to the power 1; roots in loss units)" in found.table()
    assert "isotropic closed form" not in found.table()
    again = cp.load(tmp_path)
    assert (again.p, str(again)) == (1.0, str(found))
