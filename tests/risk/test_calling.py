"""A model is called as its user would call it, whatever the caller's context, and left as it was."""

import random
import subprocess
import sys

import numpy
import pytest
import torch
from torch import nn

import curvprobe as cp
from curvprobe.risk import displaced
from tests import cases
from tests.cases import close, state_of

CE = cp.losses.cross_entropy


def test_parallel_wrappers_are_taken_off():
    case = cases.make("mlp")
    wrapped = cp.EmpiricalRisk(nn.DataParallel(case.model), case.loss, case.data, params=["0.*"])
    assert wrapped.param_names == ["0.weight", "0.bias"]
    assert torch.allclose(wrapped.gradient(), case.risk(params=["0.*"]).gradient(), rtol=1e-10)


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


# ---- nothing is left changed ---------------------------------------------------------------------------------------


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
        with pytest.raises((ending, cp.CannotProbeError)) as raised:  # an error of the loss is explained
            cp.EmpiricalRisk(model, trip, data)
        assert ending in (type(raised.value), type(raised.value.__cause__))
        assert state_of(model) == before


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "not selected"])
def test_a_forward_pass_that_writes_into_weights(frozen):
    """``nn.Embedding(max_norm=...)`` shortens the rows that it looks up, in place."""
    model = nn.Sequential(nn.Embedding(7, 4, max_norm=0.5), nn.Linear(4, 7)).double()
    model[0].requires_grad_(not frozen)
    before = state_of(model)
    cp.EmpiricalRisk(model, cp.losses.causal_lm, torch.arange(7).repeat(3, 1), params=["1.*"]).gradient()
    assert state_of(model) == before


def test_the_first_use_of_a_name_leaves_the_generators_alone():
    """Names are loaded at their first use, which may come after the caller has seeded."""
    code = """
import random, numpy, torch
import curvprobe as cp
random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
for name in cp.__all__:
    getattr(cp, name)
after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
print([a == b for a, b in zip(after, before)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[True, True, True]\n"


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
        risk.probed.fast_paths.give_up(displaced.TOGETHER)
    law = cp.IsotropicProbe(0.1)
    cp.direct_monte_carlo(risk, risk.on((torch.ones(4, 3), torch.ones(4, 2)))[:1], law, num_probes=4)
    cp.project(risk, cp.random_subspace(risk, 2))
    _ = cp.hessian(risk) @ torch.ones(risk.num_params, dtype=torch.float64)
    after = vars(model[0])
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert after["mine"] is mine
