"""Shares of the full-space signal where they are known: everything, nothing, a planted spike, an isotropic toy."""

import math

import pytest
import torch
from torch import nn

import curvprobe as cp
from tests import cases

N = 60


def quadratic(spike: float, k: int = 300, m: int = 60) -> tuple[cp.EmpiricalRisk, cp.EmpiricalRisk]:
    """Least squares on Gaussian inputs, the first of which has ``1 + spike`` times the standard deviation."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(k + m, N, generator=draw, dtype=torch.float64)
    x[:, 0] *= 1 + spike
    y = x.sum(1, keepdim=True) / 8 + torch.randn(k + m, 1, generator=draw, dtype=torch.float64)
    model = nn.Linear(N, 1, bias=False).double()
    model.weight.data = torch.linalg.lstsq(x[:k], y[:k]).solution.T.contiguous()
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[:k], y[:k]))
    return risk, risk.on((x[k:], y[k:]))


def test_on_an_isotropic_toy_the_top_captures_no_more_than_random():
    """The population's Hessian is a multiple of the identity: the sample's top directions are noise."""
    risk, candidates = quadratic(0.0)
    curve = cp.concentration_curve(risk, candidates, sigma=1e-2, dim=8, dims=[2, 8])
    top = curve.shape[curve.names.index("hessian")]
    random = curve.shape[curve.names.index("random")]
    error = curve.shape_stderr[curve.names.index("hessian")]
    assert bool(((top - random).abs() < 3 * error).all())
    assert bool(((top - curve.null).abs() < 3 * error).all())


def test_a_planted_spike_is_found():
    risk, candidates = quadratic(9.0)
    curve = cp.concentration_curve(risk, candidates, sigma=1e-2, dim=4, dims=[1, 4])
    share = dict(zip(curve.names, curve.shape.tolist(), strict=True))
    assert share["hessian"][0] > 0.5
    assert share["random"][0] < 0.2
    assert share["bottom"][0] < 0.05
    best = share["best possible"]
    assert all(best[0] >= other[0] - 1e-3 for other in share.values())
    assert "hessian" in str(curve)


@pytest.mark.parametrize("name", ["mlp", "weighted"])
def test_everything_is_everything(name):
    case = cases.make(name)
    risk = case.risk()
    candidates = risk.on(case.candidates)
    whole = {"all": cp.Subspace.from_basis(torch.eye(risk.num_params, dtype=torch.float64))}
    curve = cp.concentration_curve(risk, candidates, sigma=0.05, subspaces=whole, dims=[1, risk.num_params])
    for share, error in ((curve.shape, curve.shape_stderr), (curve.criterion, curve.criterion_stderr)):
        assert abs(float(share[0, 1]) - 1) < 4 * float(error[0, 1])
        assert float(error[0, 1]) < 0.05
    assert float(curve.criterion[0, 0]) > float(curve.shape[0, 0])


def test_errors_are_the_scatter_over_candidates():
    risk, _ = quadratic(9.0)
    spaces = {"top": cp.top_eigenspace(risk, dim=1)}
    shares, errors = [], []
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed + 1)
        x = torch.randn(40, N, generator=draw, dtype=torch.float64)
        x[:, 0] *= 10
        y = x.sum(1, keepdim=True) / 8 + torch.randn(40, 1, generator=draw, dtype=torch.float64)
        curve = cp.concentration_curve(risk, risk.on((x, y)), sigma=1e-2, subspaces=spaces, dims=[1])
        shares.append(float(curve.shape))
        errors.append(float(curve.shape_stderr))
    scatter = torch.tensor(shares).std()
    assert float(torch.tensor(errors).square().mean().sqrt()) == pytest.approx(float(scatter), rel=0.35)


def test_what_makes_no_sense_is_refused():
    risk, candidates = quadratic(0.0, k=20, m=5)
    for options, message in (
        ({"subspaces": {}}, "subspaces is empty"),
        ({"subspaces": {"one": cp.random_subspace(risk, 1)}, "dims": [2]}, "from 1 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            cp.concentration_curve(risk, candidates, sigma=0.1, **options)


def test_a_shorter_subspace_ends_earlier():
    risk, candidates = quadratic(0.0, k=20, m=5)
    spaces = {"one": cp.random_subspace(risk, 1), "three": cp.random_subspace(risk, 3)}
    curve = cp.concentration_curve(risk, candidates, sigma=0.1, subspaces=spaces)
    assert curve.dims.tolist() == [1, 2, 3]
    assert curve.certified.tolist() == [1, 3]
    assert "certified" not in str(curve)
    assert [math.isnan(v) for v in curve.shape[0].tolist()] == [False, True, True]


def test_directions_that_are_not_certified_are_said_so():
    risk, candidates = quadratic(9.0, k=100, m=10)
    with pytest.warns(cp.ConvergenceWarning):
        half_done = cp.top_eigenspace(risk, dim=6, max_matvecs=8, tol=1e-6)
    curve = cp.concentration_curve(risk, candidates, sigma=0.01, subspaces={"top": half_done}, num_probes=4)
    certified = int(half_done.converged.sum())
    assert curve.certified.tolist() == [certified]
    assert certified < 6
    assert f"({certified} directions certified)" in str(curve)
