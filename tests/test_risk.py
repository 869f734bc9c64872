import copy
import math
import random
import re

import numpy
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import curvprobe as cp
from tests import cases, reference

CE = cp.losses.cross_entropy


def close(value, expected) -> bool:
    value, expected = (torch.as_tensor(v).detach() for v in (value, expected))
    return value.dtype == expected.dtype and torch.allclose(value, expected, rtol=1e-10, atol=1e-13)


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


def test_a_list_of_flags_is_a_mask_or_refused():
    risk = cases.make("mlp").risk()
    try:
        rows = risk[[False, False, True, True, False, False]].losses()
    except (TypeError, ValueError):
        return
    assert torch.equal(rows, risk.losses()[2:4])


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


class Gate(nn.Module):
    """A mixture of two experts: some examples do not touch the first."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        out, gate = x.new_zeros(len(x), 3), x[:, 0] > 0
        for expert, rows in ((self.first, gate), (self.second, ~gate)):
            if rows.any():
                out = out.index_put((rows,), expert(x[rows]))
        return out


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


# ---- the caller's context ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
@pytest.mark.parametrize("built_inside", [False, True])
def test_the_callers_context_does_not_matter(context, built_inside):
    case = cases.make("mlp")
    case.model.float()  # autocast leaves float64 alone
    risk = case.risk()
    subspace = cp.random_subspace(risk, 2)

    def results(risk):
        product, sample = cp.hessian(risk) @ torch.ones(risk.num_params), cp.project(risk, subspace)
        return [risk.losses().float(), risk.gradient(), product, sample.hessian.float()]

    with context():
        inside = results(case.risk() if built_inside else risk[:])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(inside, results(risk), strict=True))


@pytest.mark.parametrize("name", ["layer_norm", "weighted"])
@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_the_gradient_at_the_solution_is_computed_once(name, microbatch_size):
    passes = []
    case, fresh = cases.make(name), cases.make(name).risk()
    case.model.register_forward_hook(lambda *_: passes.append(1))
    risk = cp.EmpiricalRisk(case.model, case.loss, case.data, microbatch_size=microbatch_size)
    cp.hessian(risk) @ torch.ones(risk.num_params).double()
    before = len(passes)
    gradient = risk.gradient()
    first = len(passes) - before
    assert first == (0 if microbatch_size is None else math.ceil(len(risk) / 2))
    gradient.zero_()  # a copy
    torch.testing.assert_close(risk.gradient(), fresh.gradient())
    torch.testing.assert_close(risk.losses(), fresh.losses())
    assert len(passes) == before + first
    torch.testing.assert_close(risk[:3].gradient(), fresh[:3].gradient())
    assert not torch.allclose(risk[:3].gradient(), risk.gradient())
    others = cp.EmpiricalRisk(case.model, case.loss, case.candidates)
    torch.testing.assert_close(risk.on(case.candidates).gradient(), others.gradient())


def test_an_eigenspace_tells_the_gradient_to_its_risk():
    passes = []
    case = cases.make("mlp")
    case.model.register_forward_hook(lambda *_: passes.append(1))
    risk = cp.EmpiricalRisk(case.model, case.loss, case.data)
    cp.top_eigenspace(risk, dim=2)
    before = len(passes)
    risk.gradient()
    assert len(passes) == before


def test_what_is_known_in_float32_is_not_taken_for_float64():
    case = cases.make("mlp")
    risk = cp.EmpiricalRisk(case.model.float(), case.loss, case.data)
    single, losses = risk.gradient(), risk.losses()
    double = risk.in_double()
    assert double.gradient().dtype == torch.float64
    assert not torch.equal(double.losses(), losses)
    torch.testing.assert_close(double.gradient().float(), single, rtol=1e-4, atol=1e-6)


# ---- memory --------------------------------------------------------------------------------------------------------


class Ledger(saved_tensors_hooks):
    """Counts the bytes that autograd holds at one time, and their peak."""

    def __init__(self):
        self.now = self.peak = self.total = 0
        ledger = self

        class Held:
            def __init__(self, tensor):
                self.tensor, self.size = tensor.detach(), tensor.numel() * tensor.element_size()
                ledger.now += self.size
                ledger.total += self.size
                ledger.peak = max(ledger.peak, ledger.now)

            def __del__(self):
                ledger.now -= self.size

        super().__init__(Held, lambda held: held.tensor)


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


def wide(width: int, **options) -> cp.EmpiricalRisk:
    model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))
    return cp.EmpiricalRisk(model, cp.losses.mse, (torch.ones(9, 2), torch.ones(9)), **options)


def test_the_automatic_microbatch_follows_the_size_of_an_example():
    budget = 2**30
    small, large = (wide(width, memory_budget=budget) for width in (8, 4096))
    assert large.footprint.activation >= 4096 * 4
    assert large.footprint.example > 2 * large.footprint.activation
    for risk in (small, large):
        assert risk.microbatch_size * risk.footprint.example <= budget // 2
        assert (risk.microbatch_size + 1) * risk.footprint.example > budget // 2 - 6 * 4 * risk.num_params
    assert small.microbatch_size > 50 * large.microbatch_size


def test_the_microbatch_follows_the_budget():
    sizes = [wide(4096, memory_budget=b).microbatch_size for b in (2**22, 2**23, 2**28)]
    assert sizes == sorted(set(sizes))
    given = wide(4096, memory_budget=2**23, microbatch_size=numpy.int64(7))
    assert (given.microbatch_size, given.memory_budget, given.given_memory_budget) == (7, 2**23, 2**23)
    assert given.with_room(0).microbatch_size == 7


def test_the_default_budget_is_a_power_of_two(monkeypatch):
    monkeypatch.setattr("curvprobe.risk.default_budget", lambda device: 2**28)
    risk = wide(64)
    assert (risk.memory_budget, risk.given_memory_budget) == (2**28, None)
    assert risk.microbatch_size == wide(64, memory_budget=2**28).microbatch_size


def test_the_least_budget_is_enough_and_one_byte_less_is_refused():
    with pytest.raises(ValueError, match="for one example") as refused:
        wide(64, memory_budget=1000)
    least = int(re.search(r"needs at least (\d+)", str(refused.value))[1])
    risk = wide(64, memory_budget=least)
    assert (cp.hessian(risk) @ torch.ones(risk.num_params)).isfinite().all()
    with pytest.raises(ValueError, match=f"needs at least {least} for one example"):
        wide(64, memory_budget=least - 1)


def test_less_room_means_smaller_microbatches_and_the_same_risk():
    risk = wide(64, memory_budget=2**24)
    sizes = [risk.with_room(room).microbatch_size for room in (2**30, 2**23, 2**22, 2**21, 0)]
    assert sizes[0] == sizes[1] == risk.microbatch_size
    assert sizes[1:] == sorted(set(sizes[1:]), reverse=True)
    assert sizes[-1] == 1
    assert risk.with_room(0).key() == risk.key()
    assert risk.with_room(0).value() == pytest.approx(risk.value(), rel=1e-6)


def test_selections_and_other_examples_keep_the_budget():
    risk = wide(64, memory_budget=2**22)
    other = risk.on((torch.ones(3, 2), torch.ones(3)))
    assert risk[:2].memory_budget == other.memory_budget == other.given_memory_budget == 2**22
    assert risk[:2].microbatch_size == other.microbatch_size == risk.microbatch_size


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf"), "1GiB", True, 0.5, [2**30]])
def test_budgets_that_make_no_sense(budget):
    with pytest.raises((ValueError, TypeError), match=r"memory_budget is .*; expected a positive number of bytes"):
        wide(8, memory_budget=budget)


def test_numpy_and_float_budgets_are_numbers():
    assert wide(8, memory_budget=numpy.int64(2**24)).memory_budget == 2**24
    assert wide(8, memory_budget=1e8).memory_budget == 10**8


# ---- nothing is left changed ---------------------------------------------------------------------------------------


def bits(tensor: torch.Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def state_of(model: nn.Module) -> dict:
    """Everything about a model and the process that the package must leave alone, bit by bit."""
    cuda, legacy = torch.backends.cuda, numpy.random.get_state()  # noqa: NPY002
    return {
        "tensors": [(n, id(t), bits(t)) for n, t in [*model.named_parameters(), *model.named_buffers()]],
        "gradients": [(n, p.requires_grad, id(p.grad), bits(p.grad)) for n, p in model.named_parameters()],
        "training": [(name, module.training) for name, module in model.named_modules()],
        "torch": bits(torch.get_rng_state()),
        "numpy": (legacy[1].tobytes(), *legacy[2:]),
        "python": random.getstate(),
        "attention": (cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled()),
        "fast paths": (cuda.cudnn_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
    }


class Watched(nn.Module):
    """Counts its calls in a buffer that its output depends on, and has layers that must stay in eval mode."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.last(self.drop(self.norm(self.first(x)).tanh())) / self.calls


class Trip:
    """A loss that disturbs every generator of random numbers, and raises from a chosen call on."""

    def __init__(self):
        self.calls, self.last, self.error = 0, 10**9, None

    def __call__(self, outputs, batch):
        self.calls += 1
        for seed in (torch.manual_seed, numpy.random.seed, random.seed):
            seed(self.calls)
        if self.calls > self.last:
            raise self.error
        return CE(outputs, batch)


class StumbleError(Exception):
    """Raised by the loss."""


@pytest.fixture
def watched():
    """A model in an unusual state, and a maker of risks on it."""
    torch.manual_seed(3)
    model, trip, case = Watched().double(), Trip(), cases.make("mlp")
    model.first.bias.requires_grad_(False)
    model.last.weight.grad = torch.ones_like(model.last.weight)

    def make():
        model.eval()
        trip.calls, trip.last = 0, 10**9
        risk = cp.EmpiricalRisk(model, trip, case.data, microbatch_size=2)
        new = risk.on(case.candidates)
        model.train()
        model.drop.eval()
        return risk, new

    torch.backends.cuda.enable_flash_sdp(False)
    yield model, trip, make
    torch.backends.cuda.enable_flash_sdp(True)


def law(risk):
    return cp.SubspaceProbe(cp.random_subspace(risk, 2), 0.1)


OPERATIONS = {
    "value": lambda risk, new: risk.value(),
    "gradient": lambda risk, new: risk.gradient(),
    "hessian": lambda risk, new: cp.hessian(risk) @ torch.ones(risk.num_params, 2).double(),
    "ggn": lambda risk, new: cp.ggn(risk) @ torch.ones(risk.num_params).double(),
    "project": lambda risk, new: cp.project(risk, cp.random_subspace(risk, 2)).hessian,
    "top_eigenspace": lambda risk, new: cp.top_eigenspace(risk, dim=2).eigenvalues,
    "direct": lambda risk, new: cp.direct_monte_carlo(risk, new, cp.IsotropicProbe(0.1), num_probes=3).value,
    "controlled": lambda risk, new: cp.controlled_monte_carlo(risk, new, law(risk), num_probes=3).value,
    "validity": lambda risk, new: cp.quadratic_validity(risk, [0.1], new=new, num_probes=2).loss_error,
}


@pytest.mark.parametrize("ending", [None, StumbleError, KeyboardInterrupt], ids=["success", "error", "interrupt"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_nothing_is_left_changed(watched, operation, ending):
    model, trip, make = watched
    risk, new = make()
    before, start = state_of(model), trip.calls
    result = operation(risk, new)
    assert state_of(model) == before
    count = trip.calls - start
    assert count >= 3
    for call in () if ending is None else {0, 1, count // 2, count - 1}:
        risk, new = make()
        trip.last, trip.error = trip.calls + call, ending()
        before = state_of(model)
        with pytest.raises(ending):
            operation(risk, new)
        assert state_of(model) == before
        trip.last = 10**9
        assert close(operation(risk, new), result)


@pytest.mark.parametrize("ending", [StumbleError, KeyboardInterrupt])
def test_making_a_risk_leaves_nothing_changed(watched, ending):
    model, trip, make = watched
    make()
    count, trip.error = trip.calls, ending()
    model.eval()
    before, data = state_of(model), cases.make("mlp").data
    for call in range(count // 2):
        trip.calls, trip.last = 0, call
        with pytest.raises(ending):
            cp.EmpiricalRisk(model, trip, data)
        assert state_of(model) == before


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "not selected"])
def test_a_forward_pass_that_writes_into_weights(frozen):
    """``nn.Embedding(max_norm=...)`` shortens the rows that it looks up, in place."""
    model = nn.Sequential(nn.Embedding(7, 4, max_norm=0.5), nn.Linear(4, 7)).double()
    model[0].requires_grad_(not frozen)
    before = state_of(model)
    cp.EmpiricalRisk(model, cp.losses.causal_lm, torch.arange(7).repeat(3, 1), params=["1.*"]).gradient()
    assert state_of(model) == before


# ---- what a model keeps in its attributes --------------------------------------------------------------------------


class Remembering(nn.Linear):
    """Keeps its last output, and a mask that is made when its size changes, as a cache would."""

    def forward(self, x):
        if getattr(self, "mask", torch.empty(0)).shape != x.shape[:1]:
            self.mask = x.new_ones(len(x))
        self.last = super().forward(x).tanh() * self.mask[:, None]
        return self.last


@pytest.mark.parametrize("together", [True, False])
def test_what_modules_keep_is_put_back(together):
    model = nn.Sequential(Remembering(3, 2)).double()
    model[0].mine = mine = [1]
    model(torch.ones(5, 3).double())
    before = dict(vars(model[0]))
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.ones(6, 3), torch.zeros(6, 2)))
    if not together:
        risk.checked.add("points one by one")
    law = cp.IsotropicProbe(0.1)
    cp.direct_monte_carlo(risk, risk.on((torch.ones(4, 3), torch.ones(4, 2)))[:1], law, num_probes=4)
    cp.project(risk, cp.random_subspace(risk, 2))
    _ = cp.hessian(risk) @ torch.ones(risk.num_params, dtype=torch.float64)
    after = vars(model[0])
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert after["mine"] is mine


def test_longer_examples_come_in_smaller_microbatches():
    model = nn.Sequential(nn.Embedding(7, 8), nn.Tanh(), nn.Linear(8, 7))
    tokens = torch.zeros(5, 4, dtype=torch.long)
    risk = cp.EmpiricalRisk(model, cp.losses.causal_lm, tokens, memory_budget=2**24)
    longer = risk.on(torch.zeros(5, 400, dtype=torch.long))
    assert longer.microbatch_size < risk.microbatch_size / 20
    assert risk.on(tokens + 1).microbatch_size == risk.microbatch_size
