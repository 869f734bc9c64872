"""The paper's procedure: its pieces against dense code, and how it is compared with ours."""

import pytest
import torch

import curvprobe as cp
from curvprobe.experiments import comparison
from curvprobe.experiments import paper_procedure as procedure
from tests import cases, reference

HESSIANS: dict[str, list[torch.Tensor]] = {}
"""Of the cases by name: row by row they take a second, and a case is the same every time."""


@pytest.fixture(params=["mlp", "attention"])
def plain(request):
    """A tiny model as the paper's side sees it, the k and the k + 1 examples, and their dense Hessians."""
    case = cases.make(request.param)
    mean = procedure.MeanLoss(case.model, case.loss)
    before = case.data
    after = procedure.join(before, procedure.take(case.candidates, slice(0, 1)))
    if request.param not in HESSIANS:
        HESSIANS[request.param] = [dense_hessian(case, before), dense_hessian(case, after)]
    return mean, before, after, HESSIANS[request.param]


def dense_hessian(case, data):
    value = reference.risk_value(case.model, case.loss, case.batches(data))
    return reference.dense_hessian(value, reference.trainable(case.model))


def orthonormal(n, dim):
    draws = torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(draws).Q


def test_products_and_gradients_are_those_of_the_mean_loss(plain):
    mean, before, _, (H, _) = plain
    vector = orthonormal(len(H), 1)[:, 0]
    assert torch.allclose(mean.hessian_product(before, vector), H @ vector, rtol=1e-10, atol=1e-12)
    risk = cp.EmpiricalRisk(mean.module, mean.loss, before)
    assert mean(before).item() == pytest.approx(risk.value(), rel=1e-10)
    assert torch.allclose(mean.gradient(before), risk.gradient(), rtol=1e-10, atol=1e-12)


def test_a_batch_in_several_passes_has_the_same_mean(plain, monkeypatch):
    mean, before, _, (H, _) = plain
    vector = orthonormal(len(H), 1)[:, 0]
    value, gradient, product = mean(before), mean.gradient(before), mean.hessian_product(before, vector)
    monkeypatch.setattr(procedure, "ROWS", 3)
    assert len(procedure.passes(before)) > 1
    assert mean(before).item() == pytest.approx(value.item(), rel=1e-12)
    assert torch.allclose(mean.gradient(before), gradient, rtol=1e-10, atol=1e-14)
    assert torch.allclose(mean.hessian_product(before, vector), product, rtol=1e-10, atol=1e-14)


def test_power_iteration_without_signs_takes_the_norm_for_an_eigenvalue(plain):
    mean, before, _, _ = plain
    signed, unsigned = (
        procedure.power_iteration(mean, before, 1, iterations=100, tolerance=0.0, signed=s) for s in (True, False)
    )
    assert float(unsigned.eigenvalues[0]) == pytest.approx(abs(float(signed.eigenvalues[0])), rel=1e-6)
    assert bool((procedure.power_iteration(mean, before, 4, signed=False).eigenvalues >= 0).all())


def test_separate_hessians_are_on_rows_of_their_own(plain, monkeypatch):
    mean, before, after, (H, _) = plain
    drawn = []
    monkeypatch.setattr(
        procedure, "projected_hessian", lambda m, batch, U: drawn.append(batch) or torch.zeros(U.shape[1], U.shape[1])
    )
    procedure.coefficients_on_subsets(mean, orthonormal(len(H), 2), before, after, rows=2, seed=5)
    first = torch.randperm(procedure.num_rows(before), generator=torch.Generator().manual_seed(5))[:2]
    old = drawn[1] if isinstance(drawn[1], torch.Tensor) else drawn[1][0]
    iterated = procedure.take(before, first)
    iterated = iterated if isinstance(iterated, torch.Tensor) else iterated[0]
    assert old.shape == iterated.shape
    assert not torch.equal(old, iterated)  # not those that a power iteration of the same seed was given


def test_power_iteration_finds_the_leading_eigenpairs(plain):
    mean, before, _, (H, _) = plain
    pairs = procedure.power_iteration(mean, before, 2, iterations=250, tolerance=0.0)
    exact = torch.linalg.eigvalsh(H)
    exact = exact[exact.abs().argsort(descending=True)][:2]
    assert torch.allclose(pairs.eigenvalues, exact, rtol=1e-6)
    assert torch.allclose(H @ pairs.basis, pairs.basis * exact, atol=1e-4 * float(exact[0].abs()))
    assert pairs.num_matvecs == 500


def test_power_iteration_stops_when_the_eigenvalue_stands_still(plain):
    mean, before, _, _ = plain
    pairs = procedure.power_iteration(mean, before, 3)
    assert 6 <= pairs.num_matvecs <= 60
    loose = procedure.power_iteration(mean, before, 3, tolerance=0.5)
    assert loose.num_matvecs < pairs.num_matvecs


def test_coefficients_on_all_rows_are_those_of_the_dense_increment(plain):
    mean, before, after, (H, H_after) = plain
    U = orthonormal(len(H), 3)
    found = procedure.coefficients(mean, U, before, after)
    exact = U.T @ (H_after - H) @ U
    assert torch.allclose(found.curvature, exact, rtol=1e-8, atol=1e-10)

    risk = cp.EmpiricalRisk(mean.module, mean.loss, before)
    new = risk.on(procedure.take(after, slice(len(risk), None)))
    subspace = cp.Subspace.from_basis(U)
    ours = cp.increment(cp.project(risk, subspace), cp.project(new, subspace))
    assert torch.allclose(found.level, ours.level, rtol=1e-8)
    assert torch.allclose(found.slope, ours.slope, rtol=1e-8, atol=1e-10)
    assert procedure.closed_form(found, 0.1) == pytest.approx(cp.gaussian_moment(ours, sigma=0.1).value, rel=1e-8)

    shortcut = procedure.coefficients_on_subsets(mean, U, before, after)
    assert (shortcut.curvature - exact).norm() > 0.5 * exact.norm()
    assert torch.equal(shortcut.slope, found.slope)


def test_monte_carlo_of_the_paper_agrees_with_ours_and_leaves_the_weights(plain):
    mean, before, after, (H, _) = plain
    U = orthonormal(len(H), 2)
    risk = cp.EmpiricalRisk(mean.module, mean.loss, before)
    new = risk.on(procedure.take(after, slice(len(risk), None)))
    law = cp.SubspaceProbe(cp.Subspace.from_basis(U), 0.01)
    z = law.coordinates(8, 0)
    weights = [p.detach().clone() for p in mean.params]
    increments = procedure.direct_increments(mean, before, after, (U @ row for row in z))
    ours = cp.direct_monte_carlo(risk, new, law, num_probes=8)
    assert float(increments.square().mean()) == pytest.approx(ours.value, rel=1e-8)
    assert all(torch.equal(p, w) for p, w in zip(mean.params, weights, strict=True))

    model = procedure.coefficients(mean, U, before, after)
    quadratic = procedure.quadratic_increments(model, z)
    assert float(quadratic.square().mean()) == pytest.approx(
        cp.quadratic_monte_carlo(quadratic_increment(model), sigma=0.01, num_probes=8).value, rel=1e-10
    )


def quadratic_increment(model):
    return cp.QuadraticIncrement(model.level, model.slope, model.curvature)


def test_times_are_medians_and_ratios_medians_of_the_repeats(monkeypatch):
    case = cases.make("mlp")
    task = cp.Task(case.model, case.loss, case.data, case.candidates)
    scripted = iter([8.0, 1.0, 9.0, 9.0, 9.0, 3.0, *(60.0, 30.0, 6.0), *(40.0, 60.0, 2.0), *(80.0, 5.0, 5.0)])
    monkeypatch.setattr(comparison, "timed", lambda _, act, *given, **named: (act(*given, **named), next(scripted)))

    sides = comparison.both_sides(task)
    stage1, risk, subspace, pairs = comparison.eigenspaces(task, sides, 2, repeats=3, seed=0)
    assert (stage1["paper"]["seconds"], stage1["ours"]["seconds"], stage1["seconds_ratio"]) == (9.0, 3.0, 3.0)
    stage2 = comparison.increments(sides, risk, subspace, pairs, repeats=3)[0]
    seconds = [stage2[side]["seconds"] for side in ("paper", "paper_four_rows", "ours")]
    assert seconds == [60.0, 30.0, 5.0]
    assert (stage2["seconds_ratio"], stage2["four_rows_seconds_ratio"]) == (16.0, 5.0)
