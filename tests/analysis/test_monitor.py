"""A monitor: its numbers, its warm starts and budgets, and that training with it is training without it."""

import copy
import math

import pytest
import torch
from torch import nn

import curvprobe as cp


def data(n=48, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=draw)
    return x, torch.randint(0, 3, (n,), generator=draw)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 3))


def train(steps, monitor=None, every=1, batch=16):
    """Weights, buffers, optimizer state and generator state after some steps."""
    model, (x, y) = network(), data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    torch.manual_seed(1)
    for step in range(1, steps + 1):
        rows = torch.randperm(len(x))[:batch]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        if monitor is not None and monitor.due(step):
            monitor(model, step=step)
    gradients = [p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    return model.state_dict(), optimizer.state_dict(), torch.get_rng_state(), gradients, modes


def same(one, other):
    """Whether nests of tensors and plain values are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_training_is_what_it_would_be_without():
    x, y = data(seed=2)
    monitor = cp.Monitor(
        cp.losses.cross_entropy, data(), (x, y), dim=2, every=3, negative=True, trace_products=4, max_seconds=60.0
    )
    assert same(train(12), train(12, monitor))
    assert [seen["step"] for seen in monitor.history] == [3.0, 6.0, 9.0, 12.0]


def test_the_numbers_are_those_of_the_parts():
    model, (x, y), new = network(), data(), data(seed=2)
    monitor = cp.Monitor(cp.losses.cross_entropy, (x, y), new, dim=2, sigma=0.02, negative=True, tol=1e-4)
    found = {name.removeprefix("curvprobe/"): value for name, value in monitor(model.train()).items()}
    assert model.training
    risk = cp.EmpiricalRisk(copy.deepcopy(model).eval(), cp.losses.cross_entropy, (x, y))
    space = cp.top_eigenspace(risk, dim=2, tol=1e-4)
    assert found["loss"] == pytest.approx(risk.value(), rel=1e-6)
    assert found["gradient_norm"] == pytest.approx(float(risk.gradient().norm()), rel=1e-5)
    for i in range(2):
        assert found[f"eigenvalue_{i + 1}"] == pytest.approx(float(space.eigenvalues[i]), rel=1e-5)
    lowest = cp.top_eigenspace(risk, dim=1, which="smallest", tol=1e-4)
    assert found["eigenvalue_lowest"] == pytest.approx(float(lowest.eigenvalues[0]), rel=1e-4)
    expected = cp.expected_criterion(cp.project(risk, space), cp.project(risk.on(new), space), 0.02)
    assert found["rms"] == pytest.approx(expected.rms, rel=1e-3)
    assert found["shape_rms"] == pytest.approx(expected.shape_rms, rel=1e-2)
    assert found["rms_low"] == pytest.approx(expected.rms_interval[0], rel=1e-2)
    assert found["candidates_loss"] == pytest.approx(risk.on(new).value(), rel=1e-6)
    assert found["residual_max"] < 1e-4
    assert found["budget_reached"] == 0.0
    assert "overlap_with_last" not in found
    assert "trace" not in found
    assert monitor.history == [{f"curvprobe/{name}": value for name, value in found.items()}]


def test_the_trace_has_its_error():
    model, sample = network(), data()
    found = cp.Monitor(cp.losses.cross_entropy, sample, trace_products=40)(model)
    risk = cp.EmpiricalRisk(model.eval(), cp.losses.cross_entropy, sample)
    exact = float((cp.hessian(risk) @ torch.eye(risk.num_params)).trace())
    off = abs(found["curvprobe/trace"] - exact)
    assert off < 4 * found["curvprobe/trace_stderr"]


def test_later_calls_see_the_new_weights_and_start_from_the_last_eigenspace():
    model, sample = network().eval(), data()
    monitor = cp.Monitor(cp.losses.cross_entropy, sample, dim=2, tol=1e-3)
    first = monitor(model)
    again = monitor(model)
    assert again["curvprobe/overlap_with_last"] == pytest.approx(1.0, abs=1e-5)
    assert again["curvprobe/num_matvecs"] < first["curvprobe/num_matvecs"]
    with torch.no_grad():
        model[4].weight.mul_(1.5)
        model[1].running_mean.add_(0.5)  # a buffer
    moved = monitor(model)
    fresh = cp.Monitor(cp.losses.cross_entropy, sample, dim=2, tol=1e-3)(model)
    for name in ("loss", "gradient_norm", "eigenvalue_1", "eigenvalue_2"):
        assert moved[f"curvprobe/{name}"] == pytest.approx(fresh[f"curvprobe/{name}"], rel=1e-3)
        assert moved[f"curvprobe/{name}"] != pytest.approx(first[f"curvprobe/{name}"], rel=1e-3)
    assert moved["curvprobe/overlap_with_last"] < 0.9999


class Bowl(nn.Module):
    """A quadratic loss whose curvatures are a buffer."""

    def __init__(self, seed):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.zeros(500, dtype=torch.float64))
        self.register_buffer("curvatures", torch.rand(500, dtype=torch.float64, generator=draw))
        self.curvatures[0] = 10.0

    def forward(self, x):
        return (self.curvatures * (self.w - x).square()).sum(1) / 2


@pytest.mark.parametrize("other", [10.5, 12.0, 20.0])
def test_an_eigenvector_that_overtakes_the_last_one_is_seen(other):
    """The last one stays an eigenvector to rounding, and would be found again by all that looks at it alone."""
    x = torch.randn(4, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for seed in range(5):
        model, monitor = Bowl(seed), cp.Monitor(lambda outputs, _: outputs, x)
        assert monitor(model)["curvprobe/eigenvalue_1"] == pytest.approx(10.0, rel=1e-2)
        model.curvatures[20] = other
        assert monitor(model)["curvprobe/eigenvalue_1"] == pytest.approx(other, rel=1e-2)


def test_another_model_begins_anew():
    sample, monitor = data(), cp.Monitor(cp.losses.cross_entropy, data())
    monitor(network())
    torch.manual_seed(3)
    other = nn.Sequential(nn.Linear(6, 3))
    found = monitor(other)
    risk = cp.EmpiricalRisk(other, cp.losses.cross_entropy, sample)
    assert found["curvprobe/loss"] == pytest.approx(risk.value())
    assert "curvprobe/overlap_with_last" not in found


def test_a_budget_ends_the_search_and_says_so():
    found = cp.Monitor(cp.losses.cross_entropy, data(), dim=5, tol=1e-9, max_matvecs=7)(network())
    assert found["curvprobe/budget_reached"] == 1.0
    assert found["curvprobe/num_matvecs"] <= 7
    assert found["curvprobe/residual_max"] > 1e-9
    assert math.isfinite(found["curvprobe/eigenvalue_5"])
    hurried = cp.Monitor(cp.losses.cross_entropy, data(), dim=2, tol=1e-9, max_seconds=1e-6)(network())
    assert hurried["curvprobe/num_matvecs"] <= 2 + 2 + 1
    assert hurried["curvprobe/budget_reached"] == 1.0
    skipped = cp.Monitor(
        cp.losses.cross_entropy, data(), dim=2, tol=1e-9, max_matvecs=6, negative=True, trace_products=4
    )(network())
    assert "curvprobe/trace" not in skipped
    assert skipped["curvprobe/num_matvecs"] <= 6


def test_a_training_that_has_diverged_is_not_ended_by_being_watched():
    model, monitor = network(), cp.Monitor(cp.losses.cross_entropy, data())
    before = monitor(model)["curvprobe/eigenvalue_1"]
    kept = model[4].weight.detach().clone()
    with torch.no_grad():
        model[4].weight.fill_(torch.nan)
    found = monitor(model)
    assert found.pop("curvprobe/seconds") > 0
    assert found == {"curvprobe/not_finite": 1.0}
    with torch.no_grad():
        model[4].weight.copy_(kept)
    assert monitor(model)["curvprobe/eigenvalue_1"] == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 0}, "every is 0"),
        ({"dim": 1.5}, "dim is 1.5"),
        ({"max_matvecs": 2}, "max_matvecs is 2; expected a whole number of at least 3"),
        ({"max_seconds": 0.0}, "max_seconds is 0.0"),
        ({"trace_products": 2}, "trace_products is 2; expected 0, or at least 4"),
        ({"sigma": -1.0}, "sigma"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(options, said):
    with pytest.raises(cp.ArgumentError, match=said):
        cp.Monitor(cp.losses.cross_entropy, data(), **options)


def test_a_model_that_cannot_be_probed_is_left_in_its_mode():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            return self.linear(x - x.mean(0))

    model = Mixing().train()
    with pytest.raises(cp.CannotProbeError):
        cp.Monitor(cp.losses.cross_entropy, data())(model)
    assert model.training
    assert model.linear.training


ITEMS = [{"input_ids": torch.ones(length, dtype=torch.long)} for length in (3, 5, 4)]
UNREADABLE = {
    "a loss of torch": (nn.CrossEntropyLoss(), (torch.ones(4, 2), torch.ones(4)), {}, "reduces over the batch"),
    "a loader": (cp.losses.mse, torch.utils.data.DataLoader(ITEMS), {}, "data is a DataLoader"),
    "candidates": (cp.losses.mse, (torch.ones(4, 2), torch.ones(4)), {"candidates": iter(ITEMS)}, "map-style"),
    "items of many lengths": (cp.losses.causal_lm, ITEMS, {}, "collate_fn"),
}


@pytest.mark.parametrize(("loss", "data", "options", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_no_call_could_take_is_refused_before_the_training(loss, data, options, message):
    before = torch.get_rng_state()
    with pytest.raises((ValueError, TypeError), match=message):
        cp.Monitor(loss, data, **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_making_a_monitor_moves_no_generator():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, at):
            return torch.rand(2), torch.rand(1)

    before = torch.get_rng_state()
    cp.Monitor(cp.losses.mse, Noisy())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("candidates", [6, 300])
def test_no_upper_end_is_logged_where_there_is_none(candidates):
    model, (x, y) = nn.Linear(2, 1), (torch.randn(6 + candidates, 2), torch.randn(6 + candidates, 1))
    seen = cp.Monitor(cp.losses.mse, (x[:6], y[:6]), (x[6:], y[6:]))(model)
    assert ("curvprobe/rms_high" in seen) == (candidates >= 250)
    assert seen.get("curvprobe/rms_high", seen["curvprobe/rms"]) >= seen["curvprobe/rms"] > seen["curvprobe/rms_low"]
    assert all(math.isfinite(value) for value in seen.values())
