"""The solver on the curvature of a risk, against ARPACK and dense ``eigh``, within its memory."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

import curvprobe as cp
from curvprobe.subspace.eigenspace import plan_memory
from tests import cases, reference
from tests.subspace.counted import counted


def scipy_eigenspace(case: cases.Case, dim: int, which: str) -> tuple[Tensor, Tensor]:
    """By ARPACK on a double-backward product of its own."""
    params = reference.trainable(case.model)
    flat = reference.gradient(reference.risk_value(case.model, case.loss, case.batches()), params, create_graph=True)

    def matvec(v):
        return reference.gradient(flat @ torch.as_tensor(v).flatten(), params).numpy()

    n = len(flat)
    operator = LinearOperator((n, n), matvec=matvec, dtype="float64")
    values, vectors = eigsh(operator, k=dim, which=which, tol=1e-12)
    order = torch.as_tensor(values).argsort(descending=which == "LA")
    return torch.as_tensor(values)[order], torch.as_tensor(vectors)[:, order]


def projector(U: Tensor) -> Tensor:
    return U @ U.T


@pytest.mark.parametrize(
    ("name", "which", "scipy_which"),
    [("layer_norm", "algebraic", "LA"), ("weighted", "smallest", "SA"), ("mlp", "magnitude", "LM")],
)
def test_top_eigenspace_is_that_of_scipy(name, which, scipy_which):
    case = cases.make(name)
    subspace = cp.top_eigenspace(case.risk(), dim=3, which=which, tol=1e-10)
    values, vectors = scipy_eigenspace(case, 3, scipy_which)
    order = values.abs().argsort(descending=True) if which == "magnitude" else slice(None)
    assert torch.allclose(subspace.eigenvalues, values[order], rtol=1e-8, atol=1e-10)
    assert torch.allclose(projector(subspace.basis), projector(vectors), atol=1e-7)
    assert bool(subspace.converged.all())
    assert subspace.matrix == "hessian"
    assert subspace.risk_key == case.risk().key()


def test_smallest_finds_the_negative_curvature():
    risk = cases.make("attention").risk()
    dense = torch.linalg.eigvalsh(cp.hessian(risk) @ torch.eye(risk.num_params, dtype=torch.float64))
    subspace = cp.top_eigenspace(risk, dim=4, which="smallest", tol=1e-10)
    assert torch.allclose(subspace.eigenvalues, dense[:4], rtol=1e-8, atol=1e-10)
    assert float(subspace.eigenvalues[0]) < -0.01
    assert abs(subspace.next_eigenvalue - float(dense[4])) < 0.02 * float(dense.abs().max())


def test_eigenspace_of_the_ggn():
    risk = cases.make("layer_norm").risk()
    G = cp.ggn(risk) @ torch.eye(risk.num_params, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(G)
    subspace = cp.top_eigenspace(risk, dim=4, curvature="ggn", tol=1e-10)
    assert torch.allclose(subspace.eigenvalues, values.flip(0)[:4], rtol=1e-8)
    assert torch.allclose(projector(subspace.basis), projector(vectors[:, -4:]), atol=1e-7)
    assert subspace.matrix == "ggn"


def test_residuals_are_relative_to_the_first_eigenvalue():
    risk = cases.make("mlp").risk()
    subspace = cp.top_eigenspace(risk, dim=4, tol=1e-2)
    U, values = subspace.basis, subspace.eigenvalues
    true = (cp.hessian(risk) @ U - U * values).norm(dim=0) / values[0]
    assert torch.allclose(subspace.residuals, true, rtol=1e-6, atol=1e-14)


def test_budget_that_is_too_small_warns():
    risk = cases.make("attention").risk()
    with pytest.warns(cp.ConvergenceWarning, match="eigenpairs converged"):
        subspace = cp.top_eigenspace(risk, dim=8, tol=1e-10, max_matvecs=20)
    assert subspace.num_matvecs <= 20
    assert not bool(subspace.converged.all())


def test_same_seed_same_bits():
    risk = cases.make("mlp").risk()
    first, again, other = (cp.top_eigenspace(risk, dim=3, tol=1e-10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.basis, again.basis)
    assert torch.equal(first.eigenvalues, again.eigenvalues)
    assert torch.allclose(projector(first.basis), projector(other.basis), atol=1e-8)


def test_float32_model_gives_a_float32_basis_and_float64_eigenvalues():
    double = cases.make("mlp")
    exact = cp.top_eigenspace(double.risk(), dim=3, tol=1e-10)
    case = cases.make("mlp")
    single = cp.EmpiricalRisk(case.model.float(), case.loss, case.data)
    subspace = cp.top_eigenspace(single, dim=3, tol=1e-4)
    assert subspace.basis.dtype == torch.float32
    assert subspace.eigenvalues.dtype == torch.float64
    assert torch.allclose(subspace.eigenvalues, exact.eigenvalues, rtol=1e-5)
    assert torch.allclose(projector(subspace.basis.double()), projector(exact.basis), atol=1e-3)


@pytest.mark.parametrize("name", ["which", "curvature"])
def test_unknown_options(name):
    with pytest.raises(ValueError, match=f"{name} is 'biggest'"):
        cp.top_eigenspace(cases.make("mlp").risk(), dim=2, **{name: "biggest"})


def test_model_and_generators_are_left_as_they_were():
    case = cases.make("batch_norm")
    state = {name: value.clone() for name, value in case.model.state_dict().items()}
    generator = torch.get_rng_state()
    risk = case.risk()
    cp.top_eigenspace(risk, dim=2)
    cp.random_subspace(risk, 2)
    cp.gradient_subspace(risk[:2])
    assert all(torch.equal(value, case.model.state_dict()[name]) for name, value in state.items())
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_top_eigenspace_is_that_of_scipy_over_curvlinops():
    """On a model without LayerNorm, where it is right (trap 9)."""
    curvlinops = pytest.importorskip("curvlinops")
    case = cases.make("convolution")
    params = reference.trainable(case.model)
    other = curvlinops.HessianLinearOperator(case.model, torch.nn.CrossEntropyLoss(), params, [case.data])
    expected, vectors = eigsh(other.to_scipy(), k=4, which="LA", tol=1e-12)
    subspace = cp.top_eigenspace(case.risk(), dim=4, tol=1e-9)
    assert torch.allclose(subspace.eigenvalues, torch.as_tensor(expected[::-1].copy()), rtol=1e-8)
    theirs = torch.as_tensor(vectors.copy())
    assert torch.allclose(subspace.basis @ subspace.basis.T, theirs @ theirs.T, atol=1e-7)


# ---- starts, checkpoints and the memory budget ---------------------------------------------------------------------


def test_a_start_saves_products_and_gives_the_same_space():
    risk = cases.make("layer_norm").risk()
    cold = cp.top_eigenspace(risk, dim=3, tol=1e-6)
    warm = cp.top_eigenspace(risk, dim=3, tol=1e-6, start=cold)
    near = cp.top_eigenspace(risk, dim=3, tol=1e-6, start=cp.top_eigenspace(risk[:-1], dim=3))
    wide = cp.top_eigenspace(risk, dim=2, tol=1e-6, start=cp.random_subspace(risk, 20))
    assert warm.num_matvecs < cold.num_matvecs
    assert torch.allclose(warm.eigenvalues, cold.eigenvalues, rtol=1e-8)
    assert torch.allclose(projector(near.basis), projector(cold.basis), atol=1e-4)
    assert torch.allclose(wide.eigenvalues, cold.eigenvalues[:2], rtol=1e-8)


def test_starts_that_make_no_sense():
    risk = cases.make("mlp").risk()
    for start in (cp.random_subspace(cases.make("layer_norm").risk(), 2), torch.eye(31, 2).double(), "cold"):
        with pytest.raises(ValueError, match=r"(?s)start is .*; expected a Subspace of 31 parameters"):
            cp.top_eigenspace(risk, dim=2, start=start)


def test_an_eigenspace_that_ran_out_of_budget_goes_on(tmp_path):
    file = tmp_path / "state"
    risk, loss = counted(cases.make("attention"), microbatch_size=2)  # smaller than the sample: every product passes it
    whole = cp.top_eigenspace(risk, dim=4, tol=1e-8)
    with pytest.warns(cp.ConvergenceWarning):
        first = cp.top_eigenspace(risk, dim=4, tol=1e-8, max_matvecs=16, checkpoint=file)
    for change in ({"dim": 5}, {"curvature": "ggn"}, {"seed": 1}, {"which": "smallest"}):
        with pytest.warns(cp.ConvergenceWarning):
            other = cp.top_eigenspace(risk, tol=1e-8, max_matvecs=12, checkpoint=file, **{"dim": 4, **change})
        assert other.num_matvecs <= 12  # its own, not those of the first
        with pytest.warns(cp.ConvergenceWarning):
            cp.top_eigenspace(risk, dim=4, tol=1e-8, max_matvecs=16, checkpoint=file)
    before = loss.calls
    pairs = cp.top_eigenspace(risk, dim=4, tol=1e-8, checkpoint=file)
    products = (loss.calls - before) / math.ceil(len(risk) / 2)
    assert pairs.num_matvecs == first.num_matvecs + products <= whole.num_matvecs + 12
    assert torch.allclose(pairs.eigenvalues, whole.eigenvalues, rtol=1e-10)
    assert not file.exists()


def test_a_checkpoint_of_other_weights_is_not_used(tmp_path):
    case, file = cases.make("mlp"), tmp_path / "state"
    with pytest.warns(cp.ConvergenceWarning):
        cp.top_eigenspace(case.risk(), dim=4, tol=1e-8, max_matvecs=10, checkpoint=str(file))
    with torch.no_grad():
        case.model[0].weight.mul_(1.5)
    fresh = cp.top_eigenspace(case.risk(), dim=4, tol=1e-8)
    moved = cp.top_eigenspace(case.risk(), dim=4, tol=1e-8, checkpoint=str(file))
    assert torch.equal(moved.basis, fresh.basis)
    assert moved.num_matvecs == fresh.num_matvecs


def within(risk: cp.EmpiricalRisk, total: int, **changes) -> cp.EmpiricalRisk:
    """The same risk with so many bytes for its work."""
    budget = replace(risk.budget, total=total, **{"stated": True, **changes})
    return cp.EmpiricalRisk.of(risk.probed, risk.sample, budget, most=risk.microbatch_size)


def test_the_basis_shrinks_and_then_the_budget_is_refused():
    risk = cases.make("weighted").risk()
    vector, least = risk.num_params * 8, risk.footprint.least
    assert plan_memory(risk, 8)[1] == 22
    lean = (18 + 8 + 5) * vector + least
    usual = (22 + 8 + 5) * vector + least
    for budget, size in ((usual, 22), (usual - 1, 18), (lean, 18)):
        slim, basis_size, device = plan_memory(within(risk, budget), 8)
        assert (basis_size, device.type) == (size, "cpu")
        assert slim.microbatch_size * risk.footprint.example <= max(risk.footprint.example, budget - size * vector)
    with pytest.raises(ValueError, match=f"8 eigenvectors of 42 parameters need at least {lean}"):
        cp.top_eigenspace(within(risk, lean - 1), dim=8)
    # What happens to be free is no limit that was asked for.
    slim, basis_size, _ = plan_memory(within(risk, lean - 1, stated=False), 8)
    assert (basis_size, slim.microbatch_size) == (18, 1)


@pytest.mark.parametrize(("kind", "itemsize"), [("float64", 8), ("float32", 4), ("float32 in double", 8)])
def test_the_vectors_of_a_float64_model_count_eight_bytes_a_number(kind, itemsize):
    case = cases.make("weighted")
    if kind != "float64":
        case.model.float()
    risk = case.risk().in_double() if kind == "float32 in double" else case.risk()
    usual = (22 + 8 + 5) * 42 * itemsize + risk.footprint.least
    assert risk.footprint.vector == 42 * itemsize
    assert plan_memory(within(risk, usual), 8)[1] == 22
    assert plan_memory(within(risk, usual - 1), 8)[1] == 18


def test_the_eigenspace_within_a_small_budget_is_the_same():
    risk = cases.make("weighted").risk()
    whole = cp.top_eigenspace(risk, dim=4, tol=1e-8)
    vectors = (4 + 12 + 4 + 5) * risk.num_params * 8
    narrow = within(risk, vectors + risk.footprint.least + risk.footprint.example)
    small = cp.top_eigenspace(narrow, dim=4, tol=1e-8)
    assert plan_memory(narrow, 4)[0].microbatch_size == 2 < len(risk) <= narrow.microbatch_size
    assert torch.allclose(projector(small.basis), projector(whole.basis), atol=1e-7)


def test_a_basis_that_an_accelerator_has_no_room_for_lies_in_host_memory():
    made, elsewhere = cases.make("mlp").risk(), torch.device("meta")
    probed = replace(made.probed, state=replace(made.probed.state, device=elsewhere))
    budget = replace(made.budget, total=made.footprint.least, stated=True, device=elsewhere)
    risk = cp.EmpiricalRisk.of(probed, made.sample, budget)
    slim, basis_size, device = plan_memory(risk, 3)
    assert (slim, basis_size, device.type) == (risk, None, "cpu")
    roomy = cp.EmpiricalRisk.of(probed, made.sample, replace(budget, total=2**30))
    assert plan_memory(roomy, 3)[1:] == (15, elsewhere)


@pytest.mark.parametrize("dim", [0, -1, 32, 2.0, "3"])
def test_dims_that_make_no_sense_are_refused_by_the_solver(dim):
    with pytest.raises(ValueError, match="dim is"):
        cp.top_eigenspace(cases.make("mlp").risk(), dim=dim)
