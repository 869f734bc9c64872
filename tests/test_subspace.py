import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.subspace.eigenspace import plan_memory
from tests import cases, reference


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
    assert subspace.origin == "hessian"
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
    assert subspace.origin == "ggn"


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


def test_truncate_keeps_the_leading_part():
    subspace = cp.top_eigenspace(cases.make("mlp").risk(), dim=5, tol=1e-8)
    cut = subspace.truncate(2)
    assert (cut.dim, cut.num_params) == (2, 31)
    assert torch.equal(cut.basis, subspace.basis[:, :2])
    assert torch.equal(cut.eigenvalues, subspace.eigenvalues[:2])
    assert torch.equal(cut.residuals, subspace.residuals[:2])
    assert torch.equal(cut.converged, subspace.converged[:2])
    assert cut.next_eigenvalue == float(subspace.eigenvalues[2])
    assert cut.risk_key == subspace.risk_key
    assert subspace.truncate(5) is subspace
    for dim in (0, 6):
        with pytest.raises(ValueError, match=f"dim is {dim}"):
            subspace.truncate(dim)


def test_from_basis_takes_orthonormal_columns_only():
    basis = torch.linalg.qr(torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    subspace = cp.Subspace.from_basis(basis)
    assert torch.equal(subspace.basis, basis)
    assert (subspace.origin, subspace.eigenvalues, subspace.dim) == ("given", None, 3)
    with pytest.raises(ValueError, match="not orthonormal"):
        cp.Subspace.from_basis(basis * 1.01)
    with pytest.raises(ValueError, match="expected \\(N, D\\)"):
        cp.Subspace.from_basis(basis.T)
    with pytest.raises(TypeError, match="floating-point tensor of shape"):
        cp.Subspace.from_basis(basis[:, 0])


def test_random_subspace_is_orthonormal_and_seeded():
    risk = cases.make("mlp").risk()
    first, again, other = (cp.random_subspace(risk, 6, seed=seed) for seed in (1, 1, 2))
    assert torch.allclose(first.basis.T @ first.basis, torch.eye(6, dtype=torch.float64), atol=1e-12)
    assert torch.equal(first.basis, again.basis)
    assert float((projector(first.basis) - projector(other.basis)).norm()) > 1
    with pytest.raises(ValueError, match="dim is 32"):
        cp.random_subspace(risk, 32)


def test_random_subspace_is_uniform():
    """The mean projector of a uniform D-dimensional subspace of R^N is (D/N) I."""
    risk = cases.make("mlp").risk()
    mean = sum(projector(cp.random_subspace(risk, 3, seed=seed).basis) for seed in range(400)) / 400
    assert torch.allclose(mean, 3 / 31 * torch.eye(31, dtype=torch.float64), atol=0.05)


def test_gradient_subspace_spans_the_gradients(case):
    risk = case.risk()
    subspace = cp.gradient_subspace(risk[:3])
    params = reference.trainable(case.model)
    values, _ = reference.example_losses(case.model, case.loss, case.batches()[:3])
    gradients = torch.stack([reference.gradient(v, params).detach() for v in values], dim=1)
    assert subspace.dim == 3
    assert torch.allclose(subspace.basis.T @ subspace.basis, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(projector(subspace.basis) @ gradients, gradients, rtol=1e-10, atol=1e-12)


def test_dependent_gradients_are_left_out():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 1, bias=False).double()
        x = torch.randn(3, 4, dtype=torch.float64)
    inputs = torch.stack([x[0], x[0], x[1], x[0] + x[1]])
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (inputs, torch.full((4, 1), 9.0, dtype=torch.float64)))
    subspace = cp.gradient_subspace(risk)
    assert subspace.dim == 2
    assert torch.allclose(projector(subspace.basis) @ x[:2].T, x[:2].T, rtol=1e-10)
    assert float((projector(subspace.basis) @ x[2] - x[2]).norm()) > 0.1


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_independent_gradients_of_unequal_size_are_kept(scale):
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x = torch.diag(torch.tensor([1.0, scale, 1.0], dtype=torch.float64))
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, torch.ones(3, 1, dtype=torch.float64)))
    assert cp.gradient_subspace(risk).dim == 3


def test_gradients_that_span_nothing():
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.eye(2).double(), torch.zeros(2, 1).double()))
    with pytest.raises(ValueError, match="gradients are zero"):
        cp.gradient_subspace(risk)
    with pytest.raises(ValueError, match="2 parameters"):
        cp.gradient_subspace(risk.on((torch.eye(2).double()[[0, 1, 0]], torch.zeros(3, 1).double())))


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
    risk, file = cases.make("attention").risk(), tmp_path / "state"
    whole = cp.top_eigenspace(risk, dim=4, tol=1e-8)
    with pytest.warns(cp.ConvergenceWarning):
        first = cp.top_eigenspace(risk, dim=4, tol=1e-8, max_matvecs=16, checkpoint=file)
    for change in ({"dim": 5}, {"curvature": "ggn"}, {"seed": 1}, {"which": "smallest"}):
        with pytest.warns(cp.ConvergenceWarning):
            other = cp.top_eigenspace(risk, tol=1e-8, max_matvecs=12, checkpoint=file, **{"dim": 4, **change})
        assert other.num_matvecs <= 12  # its own, not those of the first
        with pytest.warns(cp.ConvergenceWarning):
            cp.top_eigenspace(risk, dim=4, tol=1e-8, max_matvecs=16, checkpoint=file)
    calls, product = [], cp.CurvatureMatrix.__matmul__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cp.CurvatureMatrix, "__matmul__", lambda H, v: calls.append(v.shape[1]) or product(H, v))
        pairs = cp.top_eigenspace(risk, dim=4, tol=1e-8, checkpoint=file)
    assert pairs.num_matvecs == first.num_matvecs + sum(calls) <= whole.num_matvecs + 12
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


def test_the_basis_shrinks_and_then_the_budget_is_refused():
    risk = cases.make("weighted").risk()
    vector, least = risk.num_params * 8, risk.footprint.least
    assert plan_memory(risk, 8)[1] == 22
    lean = (18 + 8 + 5) * vector + least
    usual = (22 + 8 + 5) * vector + least
    for budget, size in ((usual, 22), (usual - 1, 18), (lean, 18)):
        risk.memory_budget = risk.given_memory_budget = budget
        slim, basis_size, device = plan_memory(risk, 8)
        assert (basis_size, device.type) == (size, "cpu")
        assert slim.microbatch_size * risk.footprint.example <= max(risk.footprint.example, budget - size * vector)
    risk.memory_budget = risk.given_memory_budget = lean - 1
    with pytest.raises(ValueError, match=f"8 eigenvectors of 42 parameters need at least {lean}"):
        cp.top_eigenspace(risk, dim=8)
    risk.given_memory_budget = None  # what happens to be free is no limit that was asked for
    slim, basis_size, _ = plan_memory(risk, 8)
    assert (basis_size, slim.microbatch_size) == (18, 1)


def test_the_eigenspace_within_a_small_budget_is_the_same():
    whole = cp.top_eigenspace(cases.make("weighted").risk(), dim=4, tol=1e-8)
    risk = cases.make("weighted").risk()
    vectors = (4 + 12 + 4 + 5) * risk.num_params * 8
    risk.memory_budget = risk.given_memory_budget = vectors + risk.footprint.least + risk.footprint.example
    small = cp.top_eigenspace(risk, dim=4, tol=1e-8)
    assert plan_memory(risk, 4)[0].microbatch_size == 2 < len(risk) <= risk.microbatch_size
    assert torch.allclose(projector(small.basis), projector(whole.basis), atol=1e-7)


def test_a_basis_that_an_accelerator_has_no_room_for_lies_in_host_memory(monkeypatch):
    risk = cases.make("mlp").risk()
    risk.memory_budget = risk.given_memory_budget = risk.footprint.least
    monkeypatch.setattr(risk, "device", torch.device("meta"))
    slim, basis_size, device = plan_memory(risk, 3)
    assert (slim, basis_size, device.type) == (risk, None, "cpu")


@pytest.mark.parametrize("dim", [0, -1, 32, 2.0, "3"])
def test_dims_that_make_no_sense_are_refused_by_the_solver(dim):
    with pytest.raises(ValueError, match="dim is"):
        cp.top_eigenspace(cases.make("mlp").risk(), dim=dim)
