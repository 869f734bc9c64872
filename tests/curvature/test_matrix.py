"""Products against dense Hessians built row by row, and against central differences of the gradient."""

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import curvprobe as cp
from tests import cases, reference
from tests.cases import EXACT, Ledger, block_of


def dense_hessian(case: cases.Case, data=None) -> Tensor:
    value = reference.risk_value(case.model, case.loss, case.batches(data))
    return reference.dense_hessian(value, reference.trainable(case.model))


@sdpa_kernel(SDPBackend.MATH)
def dense_ggn(case: cases.Case) -> Tensor:
    """Sum of ``J^T (Hessian of the loss in the outputs) J`` over examples, by loops of reverse mode."""
    params = reference.trainable(case.model)
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for batch in case.batches():
        inputs = {k: v for k, v in batch.items() if k != "labels"} if isinstance(batch, dict) else None
        outputs = case.model(**inputs) if inputs else case.model(batch if isinstance(batch, Tensor) else batch[0])
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs
        flat = logits.flatten()
        jacobian = torch.stack([reference.gradient(entry, params) for entry in flat])
        free = flat.detach().requires_grad_()
        result = case.loss(free.view(logits.shape), batch)
        loss_sum, weight = result if isinstance(result, tuple) else (result, torch.ones(1))
        total = total + jacobian.T @ reference.dense_hessian(loss_sum.sum(), [free]) @ jacobian
        weights += float(weight.sum())
    return total / weights


def test_hessian_is_the_dense_one(case):
    risk = case.risk()
    V = block_of(risk.num_params, 3)
    H = cp.hessian(risk)
    dense = dense_hessian(case)
    assert H.shape == dense.shape
    assert torch.allclose(H @ V, dense @ V, **EXACT)
    assert torch.allclose(H @ V[:, 0], dense @ V[:, 0], **EXACT)


def test_hessian_is_the_derivative_of_the_gradient(case):
    risk = case.risk()
    vector = block_of(risk.num_params, 1)[:, 0]
    product = cp.hessian(risk) @ vector
    differences = reference.finite_difference_product(case.model, case.loss, case.batches(), vector)
    assert float((product - differences).norm() / differences.norm()) < 1e-6


def test_ggn_is_the_dense_one(case):
    risk = case.risk()
    V = block_of(risk.num_params, 3)
    G, dense = cp.ggn(risk), dense_ggn(case)
    assert torch.allclose(G @ V, dense @ V, **EXACT)
    assert torch.allclose(G @ V[:, 1], dense @ V[:, 1], **EXACT)


@pytest.mark.parametrize("name", ["mlp", "layer_norm", "weighted"])
def test_ggn_is_positive_semidefinite_and_the_hessian_is_not(name):
    risk = cases.make(name).risk()
    identity = torch.eye(risk.num_params, dtype=torch.float64)
    G, H = cp.ggn(risk) @ identity, cp.hessian(risk) @ identity
    largest = float(torch.linalg.eigvalsh(G)[-1])
    assert torch.allclose(G, G.T, **EXACT)
    assert torch.allclose(H, H.T, **EXACT)
    assert float(torch.linalg.eigvalsh(G)[0]) > -1e-10 * largest
    assert float(torch.linalg.eigvalsh(H)[0]) < -1e-4 * largest


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
@pytest.mark.parametrize("name", ["layer_norm", "weighted", "attention"])
def test_microbatches_do_not_matter(name, matrix):
    case = cases.make(name)
    V = block_of(case.risk().num_params, 2)
    whole = matrix(case.risk(microbatch_size=100)) @ V
    for size in (1, 2):
        assert torch.allclose(matrix(case.risk(microbatch_size=size)) @ V, whole, **EXACT)


def test_weights_of_unequal_examples_count():
    case = cases.make("weighted")
    risk = case.risk()
    V = block_of(risk.num_params, 2)
    parts = [cp.hessian(risk[i]) @ V for i in range(len(risk))]
    weights = [5, 2, 4, 1, 5]  # tokens that are predicted: one less than the length
    exact = sum(w * p for w, p in zip(weights, parts, strict=True)) / sum(weights)
    product = cp.hessian(risk) @ V
    assert torch.allclose(product, exact, **EXACT)
    assert float((sum(parts) / len(parts) - product).norm() / product.norm()) > 0.01


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_a_selection_of_parameters_gives_the_sub_block(matrix):
    case = cases.make("layer_norm")
    names = [name for name, _ in case.model.named_parameters()]
    sizes = [p.numel() for p in case.model.parameters()]
    rows = torch.cat([torch.full((s,), n.startswith(("1.", "3."))) for n, s in zip(names, sizes, strict=True)])
    dense = matrix(case.risk()) @ torch.eye(len(rows), dtype=torch.float64)
    V = block_of(int(rows.sum()), 2)
    by_pattern = matrix(case.risk(params=["1.*", "3.*"])) @ V
    assert torch.allclose(by_pattern, dense[rows][:, rows] @ V, **EXACT)

    for name, p in case.model.named_parameters():
        p.requires_grad_(name.startswith(("1.", "3.")))
    assert torch.allclose(matrix(case.risk()) @ V, by_pattern, **EXACT)


def test_ggn_of_a_linear_model_is_the_hessian():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(3, 4).double()
        x, y = torch.randn(7, 3, dtype=torch.float64), torch.randint(4, (7,))
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x, y))
    V = block_of(risk.num_params, 3)
    assert torch.allclose(cp.ggn(risk) @ V, cp.hessian(risk) @ V, **EXACT)
    assert float((cp.hessian(risk) @ V).norm()) > 0.1


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_a_loss_linear_in_the_parameters_has_no_curvature(matrix):
    model = nn.Linear(2, 1).double()
    risk = cp.EmpiricalRisk(model, lambda outputs, batch: outputs[:, 0], block_of(5, 2))
    assert torch.equal(matrix(risk) @ block_of(3, 2), torch.zeros(3, 2, dtype=torch.float64))


def test_a_loss_linear_in_some_parameters():
    """The second layer's own block of an output-linear loss is zero, its block with the first is not."""
    case = cases.make("regression")
    linear = cases.Case(case.model, lambda outputs, batch: outputs.sum(1), case.data, case.candidates)
    identity = torch.eye(22, dtype=torch.float64)
    H = cp.hessian(linear.risk()) @ identity
    assert torch.allclose(H, dense_hessian(linear), **EXACT)
    assert float(H[12:, 12:].abs().max()) == 0.0 < float(H[:12, 12:].abs().max())
    assert torch.equal(cp.ggn(linear.risk()) @ identity, torch.zeros_like(H))


def test_float32_accumulates_in_float64():
    case = cases.make("mlp")
    single = cases.Case(case.model.float(), case.loss, case.data, case.candidates)
    V = block_of(31, 2)
    product = cp.hessian(single.risk()) @ V.float()
    exact = cp.hessian(cases.make("mlp").risk()) @ V
    assert product.dtype == torch.float32
    assert torch.allclose(product.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_the_model_is_left_as_it_was(matrix):
    case = cases.make("batch_norm")
    case.model.train()
    case.model[1].eval()
    state = {name: value.clone() for name, value in case.model.state_dict().items()}
    generator = torch.get_rng_state()
    _ = matrix(case.risk()) @ block_of(39, 1)
    assert all(torch.equal(value, case.model.state_dict()[name]) for name, value in state.items())
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters())
    assert [m.training for m in case.model] == [True, False, True, True]
    assert torch.equal(torch.get_rng_state(), generator)


def test_vectors_of_the_wrong_shape():
    H = cp.hessian(cases.make("mlp").risk())
    for shape in [(30,), (2, 31), (31, 2, 1)]:
        with pytest.raises(ValueError, match="the vectors have shape"):
            _ = H @ torch.zeros(shape, dtype=torch.float64)


def test_curvlinops_agrees_without_layer_norm():
    """On LayerNorm it is wrong in torch 2.13 (trap 9)."""
    curvlinops = pytest.importorskip("curvlinops")
    case = cases.make("mlp")
    params = reference.trainable(case.model)
    other = curvlinops.HessianLinearOperator(case.model, nn.CrossEntropyLoss(), params, [case.data])
    V = block_of(31, 1)[:, 0]
    assert torch.allclose(cp.hessian(case.risk()) @ V, (other @ V).detach(), **EXACT)


# ---- the graph that is kept ----------------------------------------------------------------------------------------


def counted(**options) -> tuple[list[int], cp.EmpiricalRisk]:
    """The examples of every pass, and the risk; counted outside the model, whose own state is put back."""
    calls: list[int] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double()
    model.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (block_of(6, 3), block_of(6, 2)), **options)
    assert calls
    return calls, risk


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_a_sample_in_one_microbatch_is_evaluated_once(matrix):
    passes, risk = counted()
    H, V = matrix(risk), block_of(8, 3)
    product = H @ V
    calls = len(passes)
    assert torch.equal(H @ V, product)
    assert torch.allclose(H @ V[:, 1], product[:, 1], **EXACT)
    assert len(passes) == calls
    _ = matrix(risk) @ V
    assert passes[calls:] == [6]


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_a_larger_sample_is_evaluated_at_every_product_but_once_for_a_block(matrix):
    passes, risk = counted(microbatch_size=2)
    H = matrix(risk)
    _ = H @ block_of(8, 1)
    calls = len(passes)
    _ = H @ block_of(8, 5)
    _ = H @ block_of(8, 1)
    assert passes[calls:] == [2] * 6


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
@pytest.mark.parametrize("microbatch_size", [2, None])
def test_changes_of_the_model_do_not_reach_the_matrix(matrix, microbatch_size):
    case = cases.make("batch_norm")
    risk = case.risk(microbatch_size=microbatch_size)
    H, V = matrix(risk), block_of(risk.num_params, 2)
    product = H @ V
    with torch.no_grad():
        for tensor in [*case.model.parameters(), *case.model.buffers()]:
            tensor.add_(1)
    case.model.train()
    case.model.requires_grad_(False)
    assert torch.equal(H @ V, product)
    assert torch.equal(matrix(risk) @ V, product)


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_a_kept_graph_serves_in_every_context(matrix):
    risk = cases.make("mlp").risk()
    V = block_of(31, 2)
    expected = matrix(risk) @ V
    with torch.inference_mode():
        H = matrix(risk)
        first = H @ V.clone()
    with torch.no_grad():
        second = H @ V
    third = H @ V
    assert not third.requires_grad
    assert torch.equal(third, expected)
    assert torch.equal(second, expected)
    assert torch.equal(first, expected)


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_the_kept_graph_goes_with_the_matrix(matrix):
    risk = cases.make("layer_norm").risk()
    V = block_of(risk.num_params, 1)
    _ = matrix(risk) @ V  # checks
    alive = Ledger()
    gc.disable()
    try:
        with alive:
            H = matrix(risk)
            _ = H @ V
        held = alive.now
        _ = H @ V
        assert alive.now == held > 0
        del H
        assert alive.now == 0
        with alive:
            cp.top_eigenspace(risk, dim=2)
        assert alive.now == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_one_microbatch_has_a_graph_at_a_time(matrix):
    case = cases.make("layer_norm")
    peaks = []
    for rows in (2, 6):
        risk = case.risk(microbatch_size=2)[:rows]
        H, V = matrix(risk), block_of(risk.num_params, 3)
        _ = H @ V
        alive = Ledger()
        gc.disable()
        try:
            with alive:
                H = matrix(risk)
                _ = H @ V
        finally:
            gc.enable()
        peaks.append(alive.peak)
        assert rows == 2 or alive.now == 0
    assert peaks[0] == peaks[1] > 0


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_an_error_in_the_first_product_leaves_nothing_behind(matrix):
    risk = cases.make("mlp").risk()
    H, V = matrix(risk), block_of(31, 2)
    bad = V.clone()
    bad[0] = float("nan")
    assert not bool((H @ bad).isfinite().all())
    assert torch.equal(H @ V, matrix(risk) @ V)
