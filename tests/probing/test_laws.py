from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import curvprobe as cp
from tests import cases

MANY = 20_000


def subspace_of(risk: cp.EmpiricalRisk, dim: int = 3) -> cp.Subspace:
    return cp.random_subspace(risk, dim, seed=5)


def eigenspace(values: list[float], n: int = 6) -> cp.Eigenspace:
    exact = torch.zeros(len(values), dtype=torch.float64)
    return cp.Eigenspace(
        basis=torch.eye(n, dtype=torch.float64)[:, : len(values)],
        eigenvalues=torch.tensor(values, dtype=torch.float64),
        residuals=exact,
        converged=exact == 0,
        matrix="hessian",
        risk_key="",
        num_matvecs=0,
        num_search_matvecs=0,
    )


def draws(law: cp.Probe, risk: cp.EmpiricalRisk, num_probes: int, seed: int = 0) -> Tensor:
    return torch.stack(list(law.displacements(risk, num_probes, seed)))


def assert_gaussian(z: Tensor, scale: Tensor) -> None:
    """Mean, covariance and kurtosis of draws (S, D) in pairs within five standard errors of N(0, diag(scale^2))."""
    unit, count = z.double() / scale, len(z) // 2
    assert float(unit.mean(0).abs().max()) < 5 / count**0.5
    second = unit.T @ unit / len(z) - torch.eye(z.shape[1], dtype=torch.float64)
    assert float(second.abs().max()) < 5 * (2 / count) ** 0.5
    assert float((unit**4).mean(0).sub(3).abs().max()) < 5 * (96 / count) ** 0.5


@pytest.mark.parametrize("sigma", [0.3, torch.tensor([0.1, 2.0, 30.0])])
def test_coordinates_of_a_subspace_law(sigma):
    law = cp.SubspaceProbe(subspace_of(cases.make("mlp").risk()), sigma)
    z = law.coordinates(MANY, seed=0)
    assert z.shape == (MANY, 3)
    assert z.dtype == torch.float64
    assert_gaussian(z, torch.as_tensor(sigma).double().expand(3))


def test_displacements_lie_in_the_subspace_at_these_coordinates():
    risk = cases.make("mlp").risk()
    subspace = cp.top_eigenspace(risk, dim=3)
    laws = [cp.SubspaceProbe(subspace, torch.tensor([0.1, 0.2, 0.5])), cp.LaplaceProbe(subspace, len(risk), 0.1)]
    for law in laws:
        moved, z = draws(law, risk, 10, seed=3), law.coordinates(10, seed=3)
        assert torch.allclose(moved @ subspace.basis, z, rtol=1e-10, atol=1e-12)
        assert torch.allclose(moved, z @ subspace.basis.T, rtol=1e-10, atol=1e-12)


def test_scale_of_the_laplace_law():
    law = cp.LaplaceProbe(eigenspace([4.0, 1.0, -0.5]), k=25, damping=1.0)
    expected = torch.tensor([1 / (25 * 5) ** 0.5, 1 / (25 * 2) ** 0.5, 1 / (25 * 0.5) ** 0.5], dtype=torch.float64)
    assert torch.allclose(law.scale, expected, rtol=1e-12)
    assert_gaussian(law.coordinates(MANY, seed=0), expected)


def test_laplace_law_that_has_no_scale():
    with pytest.raises(ValueError, match="raise damping or lower the dimension"):
        cp.LaplaceProbe(eigenspace([4.0, -0.5]), k=10)
    with pytest.raises(ValueError, match="the subspace is no eigenspace; a Laplace law needs the eigenvalues"):
        cp.LaplaceProbe(subspace_of(cases.make("mlp").risk()), k=10)


def test_undamped_laplace_law_does_not_depend_on_the_scale_of_parameters():
    """Halving every parameter's unit multiplies eigenvalues by 4 and halves the displacement."""
    first, second = cp.LaplaceProbe(eigenspace([4.0, 1.0]), k=5), cp.LaplaceProbe(eigenspace([16.0, 4.0]), k=5)
    assert torch.allclose(first.coordinates(7, 0), 2 * second.coordinates(7, 0), rtol=1e-12)


def test_isotropic_law():
    risk = cases.make("mlp").risk()
    assert_gaussian(draws(cp.IsotropicProbe(0.2), risk, 5000), torch.full((31,), 0.2, dtype=torch.float64))


def test_normalized_law_is_relative_to_each_tensor():
    case = cases.make("mlp")
    with torch.no_grad():
        case.model[0].weight.mul_(100.0)
        case.model[2].bias.zero_()
    risk = case.risk()
    moved = draws(cp.NormalizedProbe(0.1), risk, 5000)
    at = 0
    for p in case.model.parameters():
        part = moved[:, at : at + p.numel()]
        size = float(p.detach().square().mean().sqrt())
        at += p.numel()
        if size == 0:
            assert torch.equal(part, torch.zeros_like(part))
        else:
            assert_gaussian(part, torch.full((p.numel(),), 0.1 * size, dtype=torch.float64))
    assert at == 31


def test_point_law_stays():
    risk = cases.make("mlp").risk()
    assert torch.equal(draws(cp.PointProbe(), risk, 3), torch.zeros(3, 31, dtype=torch.float64))


@pytest.mark.parametrize("name", ["subspace", "laplace", "isotropic", "normalized"])
def test_draws_are_seeded_and_leave_the_global_generator_alone(name):
    risk = cases.make("mlp").risk()
    subspace = cp.top_eigenspace(risk, dim=2)
    law = {
        "subspace": cp.SubspaceProbe(subspace, 0.1),
        "laplace": cp.LaplaceProbe(subspace, 6),
        "isotropic": cp.IsotropicProbe(0.1),
        "normalized": cp.NormalizedProbe(0.1),
    }[name]
    before = torch.get_rng_state()
    first, again, other = (draws(law, risk, 4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.unique(first[:, 0]).numel() == 4
    assert isinstance(law, cp.Probe)


def test_law_in_another_number_of_parameters():
    law = cp.SubspaceProbe(eigenspace([1.0]), 0.1)
    with pytest.raises(ValueError, match="lives in 6 parameters and the risk has 31"):
        draws(law, cases.make("mlp").risk(), 2)


@pytest.mark.parametrize(
    "law", [cp.IsotropicProbe, cp.NormalizedProbe, lambda s: cp.SubspaceProbe(eigenspace([1.0]), s)]
)
@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_sigma_that_is_no_standard_deviation(law, sigma):
    with pytest.raises(ValueError, match="expected positive and finite, in parameter units"):
        law(sigma)


def test_sigma_of_the_wrong_shape():
    with pytest.raises(ValueError, match="sigma has shape \\(3,\\)"):
        cp.SubspaceProbe(eigenspace([1.0, 0.5]), torch.ones(3))
    with pytest.raises(TypeError, match="sigma is 'wide'"):
        cp.SubspaceProbe(eigenspace([1.0]), "wide")


class Corners:
    """A user's law: plus or minus sigma in the first parameter."""

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def displacements(self, risk: cp.EmpiricalRisk, num_probes: int, seed: int) -> Iterator[Tensor]:
        for s in range(num_probes):
            corner = torch.zeros(risk.num_params, dtype=risk.dtype)
            corner[0] = self.sigma * (-1) ** (s + seed)
            yield corner


def test_a_law_of_the_users_own():
    case = cases.make("mlp")
    risk = case.risk()
    new = risk.on(case.candidates)[:1]
    estimate = cp.direct_monte_carlo(risk, new, Corners(0.3), num_probes=10)
    corner = torch.zeros(31, dtype=torch.float64)
    corner[0] = 0.3
    squares = [((new.value(s * corner) - risk.value(s * corner)) / 7) ** 2 for s in (1, -1)]
    assert abs(estimate.value / (sum(squares) / 2) - 1) < 1e-10
    assert isinstance(Corners(0.3), cp.Probe)
    with pytest.raises(TypeError, match="the law is a Corners"):
        cp.controlled_monte_carlo(risk, new, Corners(0.3))


def test_rescaled_layers_move_isotropic_results_and_not_those_of_a_laplace_law():
    """One layer of a ReLU network times ten and the next divided by ten: the same function of the inputs."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3)).double()
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(200, 4, generator=draw, dtype=torch.float64)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    found = {}
    for name, factor in (("plain", 1.0), ("rescaled", 10.0)):
        other = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3)).double()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            other[0].weight *= factor
            other[0].bias *= factor
            other[2].weight /= factor
        # Without the second layer's weights, for the rescaling itself is a direction without any curvature, as is a
        # shift of all logits; in all other directions, which are scaled differently.
        risk = cp.EmpiricalRisk(other, cp.losses.cross_entropy, (x[:180], y[:180]), params=["0.*", "2.bias"])
        new = risk.on((x[180:], y[180:]))
        space = cp.top_eigenspace(risk, dim=17, curvature="ggn", tol=1e-10)
        laws = {"laplace": cp.LaplaceProbe(space, k=180), "isotropic": cp.IsotropicProbe(0.1)}
        found[name] = {law: cp.closed_form(risk, new, one, num_probes=200).shape for law, one in laws.items()}
    assert found["rescaled"]["laplace"] == pytest.approx(found["plain"]["laplace"], rel=1e-6)
    assert found["rescaled"]["isotropic"] < found["plain"]["isotropic"] / 2


def test_filters_are_scaled_each_by_its_own_size():
    case = cases.make("convolution")
    risk = case.risk()
    deviation = risk.probed.split(cp.NormalizedProbe(0.5, "filter").deviation(risk))
    name, weight = next((n, p) for n, p in case.model.named_parameters() if p.dim() == 4)
    expected = 0.5 * weight[1].square().mean().sqrt()
    assert torch.allclose(deviation[name][1], expected.expand_as(weight[1]))
    with pytest.raises(ValueError, match="by is 'layer'"):
        cp.NormalizedProbe(0.5, "layer")
