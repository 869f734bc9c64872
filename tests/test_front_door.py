"""What people give in the place of a risk, of a target or of a loss, as public reports tell of it."""

import pytest
from torch import nn

import curvprobe as cp
from tests.test_misuse import CE, X, Y, make, mlp, sample, subspace

TAKES_A_RISK = {
    "analyze": lambda m: cp.analyze(m, (X, Y)),
    "examine": cp.examine,
    "top_eigenspace": lambda m: cp.top_eigenspace(m, dim=2),
    "deformation_subspace": cp.deformation_subspace,
    "random_subspace": lambda m: cp.random_subspace(m, 2),
    "gradient_subspace": cp.gradient_subspace,
    "gradient_norms": cp.gradient_norms,
    "hessian": cp.hessian,
    "ggn": cp.ggn,
    "project": lambda m: cp.project(m, subspace()),
    "mean_projection": lambda m: cp.mean_projection(m, subspace()),
    "stationarity": lambda m: cp.stationarity(m, subspace(), sample()),
    "quadratic_validity": lambda m: cp.quadratic_validity(m, [0.1]),
    "concentration_curve": lambda m: cp.concentration_curve(m, m, sigma=0.1),
    "compare_laws": lambda m: cp.compare_laws(m, m, {}),
    "full_space_parts": lambda m: cp.full_space_parts(m, m, sigma=0.1),
    "full_space_moment": lambda m: cp.full_space_moment(m, m, sigma=0.1),
    "delta1": lambda m: cp.delta1(m, m),
    "delta2": lambda m: cp.delta2(m, m, sigma=0.1),
    "delta2_subspace": lambda m: cp.delta2_subspace(m, m, subspace(), sigma=0.1),
    "direct_monte_carlo": lambda m: cp.direct_monte_carlo(m, m, cp.IsotropicProbe(0.1)),
    "controlled_monte_carlo": lambda m: cp.controlled_monte_carlo(m, m, cp.IsotropicProbe(0.1)),
    "closed_form": lambda m: cp.closed_form(m, m, cp.IsotropicProbe(0.1)),
}


@pytest.mark.parametrize("name", TAKES_A_RISK)
def test_a_model_in_the_place_of_a_risk_is_told_apart(name):
    with pytest.raises(
        cp.ArgumentError, match=r"risk is a Sequential; expected .*curvprobe\.EmpiricalRisk\(model, loss"
    ):
        TAKES_A_RISK[name](mlp())


@pytest.mark.parametrize("name", ["labels", "targets", "label", "target"])
def test_the_target_goes_by_any_of_its_names(name):
    class Named(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    model = Named(X.shape[1], 3).double()
    risk = make(model, data={"x": X, name: Y})
    assert risk.value() == make(model).value()


def test_a_loss_that_returns_nothing_is_told_where_that_comes_from():
    with pytest.raises(cp.CannotProbeError, match=r"returned None \(a function without return, or the \.loss of"):
        make(mlp(), lambda outputs, batch: None)
    with pytest.raises(cp.CannotProbeError, match=r"\.loss of a Hugging Face model.*model_loss"):
        make(mlp(), lambda outputs, batch: CE(outputs, batch).mean())
