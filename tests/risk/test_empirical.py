"""Values, gradients and selections against plain loops over examples; what they take of memory."""

import copy

import numpy
import pytest
import torch
from torch import nn

import curvprobe as cp
from tests import cases, reference
from tests.cases import Gate, Ledger, block_of, close

CE = cp.losses.cross_entropy


def reference_of(case, batches) -> tuple[float, torch.Tensor]:
    value = reference.risk_value(case.model, case.loss, batches)
    return value.item(), reference.gradient(value, reference.trainable(case.model))


def agrees(risk: cp.EmpiricalRisk, expected: tuple[float, torch.Tensor]) -> bool:
    return risk.value() == pytest.approx(expected[0], rel=1e-10) and close(risk.gradient(), expected[1])


# ---- values against plain loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("microbatch_size", [1, 2, 4, None])
def test_risk_equals_the_loop_over_examples(case, microbatch_size):
    risk = case.risk(microbatch_size=microbatch_size)
    values, weights = reference.example_losses(case.model, case.loss, case.batches())
    assert close(risk.losses(), torch.stack(values).double())
    assert risk.weights.tolist() == weights
    assert agrees(risk, reference_of(case, case.batches()))


@pytest.mark.parametrize("microbatch_size", [1, 2])
def test_curvature_does_not_depend_on_the_microbatch(case, microbatch_size):
    small, whole = case.risk(microbatch_size=microbatch_size), case.risk()
    vector = torch.randn(whole.num_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(cp.hessian(small) @ vector, cp.hessian(whole) @ vector, rtol=1e-10, atol=1e-12)


def test_the_mean_is_over_tokens_not_over_batches():
    case = cases.make("weighted")
    risk = case.risk(microbatch_size=2)
    batch_means = [risk[start : start + 2].value() for start in (0, 2, 4)]
    expected = float((risk.weights @ risk.losses()) / 17)
    assert risk.value() == pytest.approx(expected, rel=1e-12)
    assert abs(sum(batch_means) / 3 - expected) > 1e-4
    assert abs(float(risk.losses().mean()) - expected) > 1e-4


@pytest.mark.parametrize("cached", [False, True])
def test_selections(case, cached):
    risk, batches = case.risk(microbatch_size=2), case.batches()
    if cached:
        risk.value()
    mask = torch.zeros(len(risk), dtype=torch.bool)
    mask[[1, 4]] = True
    selections = [
        (slice(3), [0, 1, 2]),
        (slice(None, None, -2), list(range(len(risk)))[::-2]),
        ([3, 1], [3, 1]),
        (mask, [1, 4]),
        (torch.tensor([4, 0]), [4, 0]),
        (2, [2]),
        (-1, [len(risk) - 1]),
        (numpy.int64(1), [1]),
    ]
    for selection, rows in selections:
        assert len(risk[selection]) == len(rows)
        assert agrees(risk[selection], reference_of(case, [batches[i] for i in rows]))
    assert close(risk[[4, 2, 0]][[2, 0]].losses(), risk.losses()[[0, 4]])


def test_a_list_of_flags_is_a_mask():
    risk = cases.make("mlp").risk()
    assert torch.equal(risk[[False, False, True, True, False, False]].losses(), risk.losses()[2:4])


def test_iterating_over_a_risk_gives_its_examples_and_ends():
    """Python asks for positions until one does not exist, and takes an IndexError for the end."""
    risk = cases.make("weighted").risk()
    assert [one.value() for one in risk] == pytest.approx(risk.losses().tolist(), rel=1e-12)


OUTSIDE = [6, -7, [0, 6], slice(2, 2), [], torch.zeros(6).bool(), torch.ones(4).bool()]


@pytest.mark.parametrize("selection", [*OUTSIDE, "1", 1.5, None, torch.tensor([1.5])])
def test_selections_that_make_no_sense(selection):
    with pytest.raises((IndexError, ValueError, TypeError), match="example"):
        cases.make("mlp").risk()[selection]


def test_other_examples(case):
    risk = case.risk(microbatch_size=2)
    risk.value()
    other = risk.on(case.candidates)
    assert len(other) == 3
    assert other.param_names == risk.param_names
    assert agrees(other, reference_of(case, case.batches(case.candidates)))
    assert agrees(risk, reference_of(case, case.batches()))


@pytest.mark.parametrize("microbatch_size", [1, None])
def test_displaced_losses_are_those_of_a_displaced_model(case, microbatch_size):
    risk = case.risk(microbatch_size=microbatch_size)
    step = 0.1 * torch.randn(risk.num_params, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moved, at = copy.deepcopy(case.model), 0
    with torch.no_grad():
        for p in reference.trainable(moved):
            p += step[at : at + p.numel()].view(p.shape)
            at += p.numel()
    values, _ = reference.example_losses(moved, case.loss, case.batches())
    assert close(risk.losses(step), torch.stack(values).double())
    assert risk.value(step) == pytest.approx(reference.risk_value(moved, case.loss, case.batches()).item(), rel=1e-10)
    assert agrees(risk, reference_of(case, case.batches()))


@pytest.mark.parametrize("microbatch_size", [1, None])
@pytest.mark.parametrize("together", [False, True], ids=["gradient", "projection"])
def test_examples_that_do_not_touch_the_probed_parameters(microbatch_size, together):
    x, y = cases.make("mlp").data
    torch.manual_seed(0)
    case = cases.Case(Gate().double(), CE, (x, y), None)
    assert 0 < int((x[:, 0] > 0).sum()) < 6
    risk = case.risk(params=["first.*"], microbatch_size=microbatch_size)
    expected = reference_of(case, case.batches())[1][:12]
    if together:
        sample = cp.project(risk, cp.Subspace.from_basis(torch.eye(12, dtype=torch.float64)))
        assert close(sample.gradient.mean(0), expected)
        assert sample.gradient[x[:, 0] <= 0].abs().sum() == 0
    else:
        assert close(risk.gradient(), expected)


class Pooled(nn.Module):
    """Torch's encoder: in eval mode and without gradients it takes a fast path, with other values at the padding."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(4, 3)

    def forward(self, x, padding):
        return self.head(self.encoder(x, src_key_padding_mask=padding).sum(1))


@pytest.mark.parametrize("curvature", [None, cp.hessian, cp.ggn], ids=["risk", "hessian", "ggn"])
def test_encoders_of_torch(curvature):
    torch.manual_seed(0)
    model = Pooled().double().eval()
    x, labels = torch.randn(4, 5, 4, dtype=torch.float64), torch.randint(3, (4,))
    padding = torch.arange(5)[None] >= torch.tensor([5, 3, 4, 2])[:, None]
    case = cases.Case(model, CE, {"x": x, "padding": padding, "labels": labels}, None)
    if curvature is None:
        assert agrees(case.risk(), reference_of(case, case.batches()))
    else:
        vectors = torch.randn(case.risk().num_params, 2, generator=torch.Generator().manual_seed(0)).double()
        form = vectors.T @ (curvature(case.risk()) @ vectors)
        assert close(form, form.T)


# ---- memory --------------------------------------------------------------------------------------------------------


def measure(num_examples: int, microbatch_size: int, operation) -> Ledger:
    x = torch.linspace(-1, 1, 3 * num_examples, dtype=torch.float64).view(-1, 3)
    case = cases.make("layer_norm")
    risk = cp.EmpiricalRisk(case.model, CE, (x, (x[:, 0] > 0).long()), microbatch_size=microbatch_size)
    operation(risk)  # the checks of the first use come before the measurement
    ledger = Ledger()
    with ledger:
        operation(risk)
    return ledger


@pytest.mark.parametrize(
    "operation",
    [
        lambda risk: risk.gradient(torch.zeros(risk.num_params)),
        lambda risk: cp.hessian(risk) @ torch.ones(risk.num_params, 2).double(),
    ],
    ids=["gradient", "hessian"],
)
def test_memory_does_not_grow_with_the_number_of_examples(operation):
    few, many, larger = (measure(*sizes, operation) for sizes in ((8, 2), (64, 2), (64, 16)))
    assert few.peak == many.peak > 0
    assert many.total == 8 * few.total
    assert larger.peak > 3 * many.peak
    assert few.now == many.now == larger.now == 0


def test_losses_that_were_let_through_are_not_remembered():
    """A label that does not count, of an example that the first look does not try."""
    x, y = block_of(200, 3), torch.arange(200) % 3
    y[5] = -100
    risk = cp.EmpiricalRisk(nn.Linear(3, 3).double(), cp.losses.cross_entropy, (x, y))
    assert int(risk.losses(finite=False).isnan().sum()) == 1
    for again in (risk.value, risk[5].losses):
        with pytest.raises(ValueError, match="is nan"):
            again()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_regression_in_large_units_has_the_same_losses_in_every_pass(dtype):
    """Predictions of 3e5 that fit some examples to a few units: float32 rounds them by 0.03, otherwise alone."""
    n, draw = 3000, torch.Generator().manual_seed(0)
    x, noise = torch.randn(n, 20, generator=draw), torch.randn(n, 1, generator=draw)
    price = 3e5 + 1e5 * (x[:, :1] * x[:, 1:2]).tanh() + 2e4 * noise
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 1))
    with torch.no_grad():  # the last layer by least squares
        hidden = torch.cat([model[:2](x), torch.ones(n, 1)], 1).double()
        weight = torch.linalg.lstsq(hidden, price.double()).solution.float()
        model[2].weight.copy_(weight[:-1].T), model[2].bias.copy_(weight[-1])
    risk = cp.EmpiricalRisk(model.to(dtype), cp.losses.mse, (x, price))
    risk.value()
    assert float(cp.gradient_norms(risk).max()) > 0
    for start in range(0, n, 100):
        risk[start : start + 100].gradient()
