import math

import pytest
import torch
from torch import nn

import curvprobe as cp
from curvprobe.criteria.verdicts import QuadraticValidity
from curvprobe.numerics.noise import normal_vector
from curvprobe.probing.validity import subspace_validity
from tests import cases, reference

GRID = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]


def linear_regression() -> tuple[cp.EmpiricalRisk, cp.EmpiricalRisk]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(3, 2).double()
        x, y = torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[:6], y[:6]))
    return risk, risk.on((x[6:], y[6:]))


def network(name: str = "mlp") -> tuple[cp.EmpiricalRisk, cp.EmpiricalRisk]:
    case = cases.make(name)
    return case.risk(), case.risk().on(case.candidates)


@pytest.mark.parametrize("mode", ["isotropic", "subspace"])
def test_a_quadratic_loss_is_valid_everywhere(mode):
    risk, new = linear_regression()
    subspace = cp.random_subspace(risk, 3) if mode == "subspace" else None
    validity = cp.quadratic_validity(risk, GRID, subspace=subspace, new=new, num_probes=4)
    assert validity.verdicts == ("valid",) * 6
    assert validity.validated_sigma == 10.0
    assert float(validity.loss_error.max()) < 1e-8
    assert float(validity.increment_error.max()) < 1e-8


@pytest.mark.parametrize("with_new", [True, False])
@pytest.mark.parametrize("mode", ["isotropic", "subspace"])
def test_error_of_a_network_grows_with_sigma(mode, with_new):
    risk, new = network("layer_norm")
    subspace = cp.top_eigenspace(risk, dim=3) if mode == "subspace" else None
    validity = cp.quadratic_validity(risk, GRID, subspace=subspace, new=new if with_new else None)
    error = validity.error
    assert error is (validity.increment_error if with_new else validity.loss_error)
    assert bool((error[:5].diff() > 0).all())
    # Of third order in sigma, against a change of first order: a hundredfold for every tenfold sigma.
    assert 30 < float(error[2] / error[1]) < 300
    assert validity.verdicts[0] == "valid"
    assert validity.verdicts[-1] == "invalid"
    assert 1e-3 <= validity.validated_sigma < 10


def test_errors_from_scratch_along_the_same_directions():
    risk, new = network("weighted")
    U = cp.random_subspace(risk, 2)
    validity = cp.quadratic_validity(risk, [0.3], subspace=U, new=new, num_probes=5, seed=4)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 0.3
    old, fresh = cp.project(risk, U), cp.project(new, U)
    true, model = [], []
    for row in z:
        moved = U.basis @ row
        change = risk.value(moved) - risk.value()
        guess = float(old.mean().gradient[0] @ row + row @ old.mean().hessian[0] @ row / 2)
        true.append([change, *(new[j].value(moved) - new[j].value() - change for j in range(3))])
        model.append([guess])
        for j in range(3):
            model[-1].append(float(fresh.gradient[j] @ row + row @ fresh.hessian[j] @ row / 2) - guess)
    true, model = torch.tensor(true, dtype=torch.float64), torch.tensor(model, dtype=torch.float64)
    loss_error = (true - model)[:, 0].norm() / true[:, 0].norm()
    increment_error = (true - model)[:, 1:].norm() / true[:, 1:].norm()
    assert torch.allclose(validity.loss_error, loss_error[None], rtol=1e-8)
    assert torch.allclose(validity.increment_error, increment_error[None], rtol=1e-8)


def test_isotropic_directions_use_the_full_hessian():
    case = cases.make("layer_norm")
    risk = case.risk()
    validity = cp.quadratic_validity(risk, [0.1], num_probes=4, seed=2)
    generator, place = torch.Generator().manual_seed(2), {"dtype": torch.float64, "device": "cpu"}
    directions = torch.stack([normal_vector(generator, risk.num_params, **place) for _ in range(4)], dim=1)
    value = reference.risk_value(case.model, case.loss, case.batches())
    params = reference.trainable(case.model)
    g, H = reference.gradient(value, params).detach(), reference.dense_hessian(value, params)
    true = torch.tensor([risk.value(0.1 * d) - risk.value() for d in directions.T], dtype=torch.float64)
    model = 0.1 * directions.T @ g + 0.005 * (directions * (H @ directions)).sum(0)
    assert torch.allclose(validity.loss_error, ((true - model).norm() / true.norm())[None], rtol=1e-8)


def test_a_subspace_of_all_directions_is_isotropic():
    risk, _ = network()
    whole = cp.Subspace.from_basis(torch.eye(risk.num_params, dtype=torch.float64))
    sigmas = [1e-3, 1e-1]
    inside = cp.quadratic_validity(risk, sigmas, subspace=whole, num_probes=64)
    outside = cp.quadratic_validity(risk, sigmas, num_probes=64)
    assert torch.allclose(inside.loss_error.log(), outside.loss_error.log(), atol=0.7)


def test_projections_at_hand_give_the_same():
    risk, new = network()
    subspace = cp.random_subspace(risk, 3)
    options = {"new": new, "threshold": 0.02}
    whole = cp.quadratic_validity(risk, GRID, subspace=subspace, num_probes=4, seed=1, **options)
    mean, fresh = cp.mean_projection(risk, subspace), cp.project(new, subspace)
    z = cp.SubspaceProbe(subspace, 1.0).coordinates(4, 1)
    parts = subspace_validity(risk, GRID, subspace, mean, z, fresh=fresh, **options)
    assert torch.equal(whole.increment_error, parts.increment_error)
    assert whole.verdicts == parts.verdicts
    assert (parts.threshold, parts.num_probes.tolist()) == (0.02, [4] * len(GRID))
    assert whole.threshold == 0.02


def test_sigmas_are_sorted():
    risk, _ = network()
    first = cp.quadratic_validity(risk, [0.1, 1e-3, 1.0], num_probes=3)
    second = cp.quadratic_validity(risk, [1e-3, 0.1, 1.0], num_probes=3)
    assert first.sigmas.tolist() == [1e-3, 0.1, 1.0]
    assert torch.equal(first.loss_error, second.loss_error)


def test_float32_rounding_is_seen_at_small_sigma():
    case = cases.make("mlp")
    risk = cp.EmpiricalRisk(case.model.float(), case.loss, case.data)
    validity = cp.quadratic_validity(risk, [1e-8, 1e-3], num_probes=4)
    assert validity.verdicts == ("invalid", "valid")
    assert validity.validated_sigma == 1e-3


def test_a_loss_that_overflows_is_invalid():
    model = nn.Linear(1, 1, bias=False).double()
    risk = cp.EmpiricalRisk(model, lambda outputs, batch: outputs[:, 0].exp(), torch.ones(2, 1).double())
    validity = cp.quadratic_validity(risk, [1e-4, 1e4], num_probes=6)
    assert validity.verdicts == ("valid", "invalid")
    assert validity.error[1] == math.inf
    assert validity.validated_sigma == 1e-4


# ---- verdicts --------------------------------------------------------------------------------------------------


def judged(*verdicts: str, error: list[float] | None = None) -> QuadraticValidity:
    size = {"valid": 0.01, "marginal": 0.1, "invalid": 0.9}
    errors = torch.tensor(error or [size[v] for v in verdicts], dtype=torch.float64)
    sigmas = torch.tensor([10.0 ** (i - 4) for i in range(len(verdicts))], dtype=torch.float64)
    draws = torch.full((len(verdicts),), 8)
    return QuadraticValidity(sigmas, errors, None, 0.05, verdicts, draws, 0 * sigmas, sigmas, 1.0)


def test_thresholds_of_the_verdicts():
    risk, _ = network()
    exact = cp.quadratic_validity(risk, [0.1], num_probes=4)
    error = float(exact.error[0])
    for factor, verdict in ((1.01, "valid"), (0.99, "marginal"), (0.26, "marginal"), (0.24, "invalid")):
        found = cp.quadratic_validity(risk, [0.1], num_probes=4, threshold=factor * error)
        assert found.verdicts == (verdict,)


@pytest.mark.parametrize(
    ("sigmas", "options", "message"),
    [
        ([], {}, "sigmas is empty"),
        ([0.1, 0.0], {}, "expected positive and finite"),
        ([0.1], {"num_probes": 1}, "num_probes is 1"),
        ([0.1], {"threshold": 0.0}, "threshold is 0.0"),
        ([0.1], {"threshold": 1.0}, "threshold is 1.0"),
    ],
)
def test_arguments_that_make_no_sense(sigmas, options, message):
    with pytest.raises(ValueError, match=message):
        cp.quadratic_validity(network()[0], sigmas, **options)


def test_seeded_and_the_model_left_as_it_was():
    case = cases.make("batch_norm")
    state = {name: value.clone() for name, value in case.model.state_dict().items()}
    generator = torch.get_rng_state()
    first, again, other = (cp.quadratic_validity(case.risk(), [0.1], num_probes=3, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.error, again.error)
    assert not torch.equal(first.error, other.error)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, case.model.state_dict()[name]) for name, value in state.items())
    assert all(p.grad is None for p in case.model.parameters())


def test_the_precision_floor_is_where_rounding_takes_over():
    def judged(*verdicts: str) -> cp.QuadraticValidity:
        errors = torch.tensor([{"valid": 0.01, "marginal": 0.1, "invalid": 0.9}[v] for v in verdicts])
        sigmas = torch.tensor([1e-4, 1e-3, 1e-2, 1e-1], dtype=torch.float64)
        draws = torch.full((4,), 2)
        return cp.QuadraticValidity(sigmas, errors.double(), None, 0.05, verdicts, draws, 0 * sigmas, sigmas, 1.0)

    assert judged("invalid", "marginal", "valid", "invalid").precision_floor == pytest.approx(1e-2)
    assert judged("invalid", "valid", "valid", "invalid").precision_floor == pytest.approx(1e-3)
    assert judged("valid", "valid", "valid", "invalid").precision_floor is None
    assert judged("invalid", "invalid", "marginal", "invalid").precision_floor is None


def test_rounding_hides_a_change_that_is_small_beside_the_loss():
    def seen(change: list[float], loss: float, dtype: torch.dtype) -> float | None:
        sigmas = torch.tensor([1e-3, 1e-2, 1e-1], dtype=torch.float64)
        zero, change = torch.zeros(3, dtype=torch.float64), torch.tensor(change, dtype=torch.float64)
        draws = torch.full((3,), 8)
        found = QuadraticValidity(sigmas, zero, None, 0.05, ("valid",) * 3, draws, zero, change, loss)
        return found.rounding_floor(dtype)

    # Half the distance of neighbouring bfloat16 numbers is 1 / 256: of a loss of 1 it is 5 % of a change of 0.08.
    assert seen([1e-4, 0.077, 0.079], 1.0, torch.bfloat16) == pytest.approx(1e-1)
    assert seen([1e-4, 0.077, 0.079], 0.1, torch.bfloat16) == pytest.approx(1e-2)
    assert seen([1e-4, 0.077, 0.079], 1.0, torch.float32) == pytest.approx(1e-3)
    assert seen([1e-4, 0.077, 0.079], 2.0, torch.bfloat16) is None


def test_the_change_is_that_of_the_increments_along_the_draws(case):
    risk = case.risk()
    new, subspace = risk.on(case.candidates), cp.random_subspace(risk, 3)
    found = cp.quadratic_validity(risk, [1e-2], subspace=subspace, new=new, num_probes=4, seed=3)
    z = cp.SubspaceProbe(subspace, 1e-2).coordinates(4, 3)  # the draws of Monte Carlo
    moved = [
        [one.value(subspace.basis @ c) - one.value() for one in (risk, *(new[[j]] for j in range(len(new))))] for c in z
    ]
    moved = torch.tensor(moved, dtype=torch.float64)
    expected = (moved[:, 1:] - moved[:, :1]).square().mean().sqrt()
    assert float(found.change[0]) == pytest.approx(float(expected), rel=1e-8)
    assert found.loss == pytest.approx(risk.value(), rel=1e-12)


def test_the_standard_error_is_the_scatter_over_draws():
    risk, new = network()
    subspace = cp.random_subspace(risk, 3)
    found = [
        cp.quadratic_validity(risk, [0.3], subspace=subspace, new=new, num_probes=64, seed=seed) for seed in range(60)
    ]
    errors = torch.stack([one.error for one in found])
    said = torch.stack([one.stderr for one in found]).square().mean(0).sqrt()
    assert 0.7 < float(errors.std(0) / said) < 1.4
    assert found[0].stderr_at(0.3) == float(found[0].stderr[0])
