"""The traps of theory.md section 9: the naive way is wrong, and by how much; the package is right."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

import curvprobe as cp
from curvprobe.runtime.digest import overlap
from tests import cases, reference
from tests.cases import Ledger, symmetric


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def orthonormal(n: int, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(n, dim, generator=generator, dtype=torch.float64)).Q


def linear_data(n: int, width: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, width, generator=generator, dtype=torch.float64), torch.randint(3, (n,), generator=generator)


def test_trap_1_power_iteration_that_deflates_with_a_norm():
    spectrum = [10.0, -9.0, 8.0, 7.0, *(0.01 * i for i in range(20))]
    matrix, found, vectors = symmetric(spectrum), [], []
    for _ in range(4):
        v = torch.ones(24, dtype=torch.float64)
        for _ in range(500):
            product = matrix @ v - sum(size * (u @ v) * u for size, u in zip(found, vectors, strict=True))
            v = product / product.norm()
        found.append(float(product.norm()))
        vectors.append(v)
    assert torch.allclose(torch.tensor(found), torch.tensor([10.0, 9.0, 18.0, 36.0]), rtol=1e-2)
    assert abs(float(vectors[2] @ vectors[3])) > 0.99

    pairs = cp.lanczos(lambda b: matrix @ b, 24, dim=4, which="magnitude", tol=1e-10, dtype=torch.float64)
    assert torch.allclose(pairs.eigenvalues, torch.tensor([10.0, -9.0, 8.0, 7.0], dtype=torch.float64), rtol=1e-9)
    assert torch.allclose(pairs.vectors.T @ pairs.vectors, torch.eye(4, dtype=torch.float64), atol=1e-12)


def test_trap_2_two_hessians_on_different_rows():
    data = linear_data(65)
    case = cases.Case(cases.make("mlp").model, cp.losses.cross_entropy, data, data)
    U, params, batches = orthonormal(31, 3), reference.trainable(case.model), case.batches()

    def projected(rows: list[int]) -> Tensor:
        value = reference.risk_value(case.model, case.loss, [batches[i] for i in rows])
        return U.T @ reference.dense_hessian(value, params) @ U

    risk, subspace = case.risk(), cp.Subspace.from_basis(U)
    naive_errors = []
    for k in (8, 64):
        exact = projected(list(range(k + 1))) - projected(list(range(k)))
        rows = torch.randperm(k + 1, generator=torch.Generator().manual_seed(k)).tolist()
        naive = projected(rows[:4]) - projected([i for i in rows[4:] if i < k][:4])
        naive_errors.append(error(naive, exact))
        B = cp.increment(cp.project(risk[:k], subspace), cp.project(risk[k], subspace)).curvature
        assert error(B, exact) < 1e-8
    assert naive_errors[0] > 1
    assert naive_errors[1] > naive_errors[0]  # relative to an increment that shrinks with k, it does not decay


def test_trap_3_float32_difference_of_two_means():
    data = linear_data(10_001)
    exact_risk, single_risk = (
        cp.EmpiricalRisk(cases.make("mlp").model.to(dtype), cp.losses.cross_entropy, data)
        for dtype in (torch.float64, torch.float32)
    )
    k = 10_000
    losses = exact_risk.losses()
    exact = float(losses.mean() - losses[:k].mean())
    single = single_risk.losses().float()
    naive = float(single.mean() - single[:k].mean())
    assert abs(naive / exact - 1) > 1e-3
    found = cp.delta1(single_risk[:k], single_risk[k]).value
    assert abs(found / abs(exact) - 1) < 1e-5

    weights = cases.make("mlp").model.bfloat16()
    moved = [p + 1e-4 * torch.ones_like(p) for p in weights.parameters()]
    stuck = torch.cat([(a == b).flatten() for a, b in zip(moved, weights.parameters(), strict=True)]).double().mean()
    assert float(stuck) > 0.8
    risk = cp.EmpiricalRisk(weights, cp.losses.cross_entropy, data)
    step = torch.full((31,), 1e-4)
    assert risk.dtype == torch.float32
    slope = float(step.double() @ risk.gradient().double())
    assert abs((risk.value(step) - risk.value()) / slope - 1) < 0.05


def test_trap_4_a_new_example_that_training_has_seen():
    """An interpolating fit hides how much a truly new example would move the loss."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(8, width, generator=generator, dtype=torch.float64) for width in (6, 1))
    model = nn.Linear(6, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x[:6], y[:6]).solution.T)
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[:6], y[:6]))
    pool = (torch.cat([x[6:], x[2:3]]), torch.cat([y[6:], y[2:3]]))  # the last is a copy of training example 2
    assert not any(row is pool[0][2] for row in x[:6])  # identity sees nothing
    leaked, honest = cp.delta1(risk, risk.on(pool)[2]).value, cp.delta1(risk, risk.on(pool)[0]).value
    assert leaked < 1e-12 * honest

    subspace = cp.random_subspace(risk, 1)
    sample, fresh = cp.project(risk, subspace), cp.project(risk.on(pool), subspace)
    assert overlap(sample.digests, fresh.digests) == [2]
    as_dataset = risk.on([(a, b) for a, b in zip(*pool, strict=True)])
    assert overlap(risk.digests(), as_dataset.digests()) == [2]


def test_trap_5_mean_of_batch_means():
    data = linear_data(10)
    model = cases.make("mlp").model
    with torch.no_grad():
        losses = nn.functional.cross_entropy(model(data[0]), data[1], reduction="none")
    batch_means = [losses[i : i + 4].mean() for i in (0, 4, 8)]  # the last batch has two examples
    exact = float(losses.sum() / 10)
    assert abs(float(sum(batch_means) / 3) / exact - 1) > 1e-3
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, data, microbatch_size=4)
    assert abs(risk.value() / exact - 1) < 1e-12

    case = cases.make("weighted")
    values, tokens = reference.example_losses(case.model, case.loss, case.batches())
    exact = float(sum(v.detach() * t for v, t in zip(values, tokens, strict=True)) / sum(tokens))
    assert abs(float(sum(v.detach() for v in values) / 5) / exact - 1) > 1e-3
    assert abs(case.risk(microbatch_size=2).value() / exact - 1) < 1e-12


def test_trap_6_fused_attention_has_no_double_backward():
    case = cases.make("attention")
    v = orthonormal(108, 1)[:, 0]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        loss_sum, weight = case.loss(case.model(case.data), case.data)
        flat = reference.gradient(loss_sum.sum() / weight.sum(), reference.trainable(case.model), create_graph=True)
        with pytest.raises((RuntimeError, NotImplementedError), match=r"derivative for .*flash_attention"):
            reference.gradient(flat @ v, reference.trainable(case.model))

        product = cp.hessian(case.risk()) @ v
        assert torch.backends.cuda.flash_sdp_enabled()
        assert not torch.backends.cuda.math_sdp_enabled()
    differences = reference.finite_difference_product(case.model, case.loss, case.batches(), v)
    assert error(product, differences) < 1e-6


class Shifting(Dataset):
    """Random augmentation: brings something else at every reading."""

    def __init__(self) -> None:
        self.readings = 0

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        self.readings += 1
        return torch.full((3,), float(self.readings), dtype=torch.float64), torch.tensor(i % 3)


def test_trap_7_noise_and_an_order_that_changes():
    data = linear_data(6)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        noisy = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).double()
        mixing = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
        assert error(noisy(data[0]), noisy(data[0])) > 0.1
        assert error(mixing(data[0][:2])[0], mixing(data[0])[0]) > 0.1
    for model in (noisy, mixing):
        model.train()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
            cp.EmpiricalRisk(model, cp.losses.cross_entropy, data)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert model.training
        model.eval()
        assert len(cp.EmpiricalRisk(model, cp.losses.cross_entropy, data)) == 6

    model = cases.make("mlp").model
    with pytest.raises(ValueError, match="expected data that stands still"):
        cp.EmpiricalRisk(model, cp.losses.cross_entropy, Shifting())
    with pytest.raises(TypeError, match="whose order and batches may change"):
        cp.EmpiricalRisk(model, cp.losses.cross_entropy, DataLoader(list(zip(*data, strict=True)), shuffle=True))


def test_trap_8_one_graph_over_all_microbatches():
    model = cases.make("mlp").model
    naive, ours = [], []
    for n in (4, 64):
        x, y = linear_data(n)
        risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x, y), microbatch_size=2)
        v = orthonormal(31, 1)[:, 0]
        summed, streamed = Ledger(), Ledger()
        with summed:
            total = sum(
                nn.functional.cross_entropy(model(x[i : i + 2]), y[i : i + 2], reduction="sum") for i in range(0, n, 2)
            )
            params = reference.trainable(model)
            expected = reference.gradient(reference.gradient(total / n, params, create_graph=True) @ v, params)
        with streamed:
            product = cp.hessian(risk) @ v
        assert error(product, expected) < 1e-10
        naive.append(summed.peak)
        ours.append(streamed.peak)
    assert naive[1] > 10 * naive[0]
    assert 0 < ours[1] <= ours[0]


def test_trap_9_torch_func_hessian_of_layer_norm():
    case = cases.make("layer_norm")
    names = [name for name, _ in case.model.named_parameters()]
    shapes = [p.shape for p in case.model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in case.model.parameters()])

    def value(at: Tensor) -> Tensor:
        pieces = at.split([shape.numel() for shape in shapes])
        state = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        outputs = torch.func.functional_call(case.model, state, (case.data[0],))
        return nn.functional.cross_entropy(outputs, case.data[1])

    v = orthonormal(len(flat), 1)[:, 0]
    differences = reference.finite_difference_product(case.model, case.loss, case.batches(), v)
    risk, subspace = case.risk(), cp.Subspace.from_basis(torch.eye(len(flat), dtype=torch.float64))
    assert error(cp.hessian(risk) @ v, differences) < 1e-6
    assert error(cp.project(risk, subspace).mean().hessian[0] @ v, differences) < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = torch.func.hessian(value)(flat) @ v
    if error(wrong, differences) < 1e-6:
        pytest.skip(f"torch {torch.__version__} has repaired torch.func.hessian on LayerNorm")
    assert error(wrong, differences) > 1e-3


def test_trap_10_residuals_relative_to_the_first_eigenvalue_alone():
    spectrum = [100.0, *(2.0 - 0.1 * i for i in range(9)), *(1 - 0.002 * i for i in range(290))]
    dim, tol, n = 10, 1e-2, len(spectrum)
    matrix = symmetric(spectrum)
    top = torch.linalg.eigh(matrix).eigenvectors[:, -dim:]

    q = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = (q / q.norm())[:, None]
    while True:
        residual = matrix @ basis[:, -1]
        residual -= basis @ (basis.T @ residual)
        residual -= basis @ (basis.T @ residual)
        values, vectors = torch.linalg.eigh(basis.T @ matrix @ basis)
        if basis.shape[1] >= dim and float((residual.norm() * vectors[-1, -dim:].abs()).max()) <= tol * float(
            values[-1]
        ):
            break
        basis = torch.cat([basis, (residual / residual.norm())[:, None]], dim=1)
    naive = basis @ vectors[:, -dim:]
    assert float((top.T @ naive).square().sum()) / dim < 0.8

    pairs = cp.lanczos(lambda b: matrix @ b, n, dim=dim, tol=tol, dtype=torch.float64)
    assert float((top.T @ pairs.vectors).square().sum()) / dim > 0.99
    assert bool(pairs.converged.all())
