"""What goes wrong when a model first meets its data: chained, with what came and what to do; and what nobody takes."""

import warnings

import pytest
import torch
from torch import nn

import curvprobe as cp
from tests import cases


def made(model, loss, data, **options):
    return cp.EmpiricalRisk(model, loss, data, **options)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Timed(nn.Module):
    """Two inputs, the second of which may be left out."""

    def __init__(self, required: bool = False) -> None:
        super().__init__()
        self.net, self.time, self.required = nn.Linear(3, 1).double(), nn.Linear(1, 1).double(), required

    def forward(self, x, t=None):
        return self.net(x) if t is None else self.net(x) + self.time(t)


class Required(Timed):
    def forward(self, x, t):
        return self.net(x) + self.time(t)


X, T, Y = noise(6, 3), noise(6, 1, seed=1), noise(6, 1, seed=2)


def test_a_third_entry_that_nobody_takes_is_refused_and_the_dict_form_named():
    with pytest.raises(cp.CannotProbeError, match=r"takes entry 2 of the batch .* dict .* forward="):
        made(Timed(), cp.losses.mse, (X, T, Y))
    with pytest.raises(cp.CannotProbeError, match="takes entry 1 of the batch"):
        made(Timed(), lambda o, b: (o - b[2]).square().mean(1), (X, T, Y))


def test_a_misspelt_entry_is_refused_by_name():
    data = {"x": X, "time": T, "labels": Y}
    with pytest.raises(cp.CannotProbeError, match="takes entry 'time' of the batch"):
        made(Timed(), cp.losses.mse, data)


def test_entries_that_the_loss_takes_are_welcome():
    weights = noise(6, seed=3).square() + 0.1

    def weighted(outputs, batch):
        _, y, w = batch
        return (outputs - y).square().mean(1) * w, w

    risk = made(nn.Linear(3, 1).double(), weighted, (X, Y, weights))
    assert torch.equal(risk.weights, weights)
    named = {"x": X, "t": T, "labels": Y, "w": weights}
    model = Timed()
    by_name = made(model, lambda o, b: ((o - b["labels"]).square().mean(1) * b["w"], b["w"]), named)
    by_hand = (model(X, T) - Y).square().mean(1).detach()
    assert torch.allclose(by_name.losses(), by_hand, rtol=1e-12)


WHOLE = {
    "**batch": lambda b: dict(**b),
    "dict(batch)": dict,
    "{**batch}": lambda b: {**b},
    "batch.copy()": lambda b: b.copy(),
    "batch | other": lambda b: b | {},
    "other | batch": lambda b: {} | b,
    "setdefault": lambda b: {name: b.setdefault(name) for name in ("x", "t", "labels")},
    "items": lambda b: dict(b.items()),
    "comprehension": lambda b: {name: b[name] for name in b},
}
"""Ways to take every entry of a batch."""


@pytest.mark.parametrize("way", WHOLE.values(), ids=WHOLE)
def test_entries_may_be_taken_all_at_once(way):
    def forward(model, batch):
        entries = way(batch)
        return model(entries["x"], entries["t"])

    data = {"x": X, "t": T, "labels": Y}
    made(Timed(), lambda o, b: (o - b["labels"]).square().mean(1), data, forward=forward)
    made(Timed(), lambda o, b: (o - way(b)["labels"]).square().mean(1), data)


def test_naming_entries_does_not_take_them():
    with pytest.raises(cp.CannotProbeError, match="takes entry 'extra' of the batch"):
        made(Timed(), lambda o, b: o.mean(1) * len(list(b)), {"x": X, "t": T, "extra": Y})


def test_entries_by_attribute_are_explained():
    with pytest.raises(cp.CannotProbeError, match=r"given as a plain dict: write batch\['name'\]"):
        made(Timed(), lambda o, b: (o - b.labels).mean(1), {"x": X, "t": T, "labels": Y})


def test_a_required_second_input_is_explained():
    for data in ((X, T, Y), [((X[i], T[i]), Y[i]) for i in range(6)]):
        with pytest.raises(
            cp.CannotProbeError, match=r"missing 1 required positional argument.*dict.*forward="
        ) as raised:
            made(Required(), lambda o, b: o.mean(1), data)
        assert isinstance(raised.value.__cause__, TypeError)


def test_a_call_of_ones_own_takes_the_batch_as_it_is():
    model = Required()
    risk = made(
        model, lambda o, b: (o - b[2]).square().mean(1), (X, T, Y), forward=lambda m, batch: m(batch[0], t=batch[1])
    )
    assert torch.allclose(risk.losses(), (model(X, T) - Y).square().mean(1).detach(), rtol=1e-12)
    named = made(model, cp.losses.mse, {"x": X, "t": T, "labels": Y})
    assert torch.allclose(risk.gradient(), named.gradient(), rtol=1e-12)
    spaces = [cp.top_eigenspace(one, dim=2, tol=1e-10).eigenvalues for one in (risk, named)]
    assert torch.allclose(*spaces, rtol=1e-9)


class Detector(nn.Module):
    """Images of unlike size and their targets go in, a dict of losses comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 4).double()

    def forward(self, images, targets):
        boxes = [self.net(image.flatten(1).mean(1)) for image in images]
        apart = [(b - t["box"]).square().mean() for b, t in zip(boxes, targets, strict=True)]
        return {"boxes": torch.stack(apart)}


def test_a_detector_that_returns_its_losses_works_through_the_hook():
    items = [(noise(3, 4 + i % 3, 5, seed=i), {"box": noise(4, seed=10 + i)}) for i in range(5)]
    model = Detector()
    risk = made(
        model,
        lambda outputs, _: sum(outputs.values()),
        items,
        collate_fn=lambda rows: tuple(zip(*rows, strict=True)),
        forward=lambda m, batch: m(*batch),
    )
    alone = [model([image], [target])["boxes"].item() for image, target in items]
    assert risk.losses().tolist() == pytest.approx(alone, rel=1e-12)
    assert cp.project(risk, cp.random_subspace(risk, 2)).gradient.shape == (5, 2)


def test_an_error_of_the_users_own_code_says_what_was_being_done_and_what_to_do():
    with pytest.raises(cp.CannotProbeError, match=r"inputs are integers \(torch\.int64\).*x\.float") as raised:
        made(nn.Linear(3, 1).double(), cp.losses.mse, (torch.ones(4, 3, dtype=torch.long), Y[:4]))
    assert isinstance(raised.value.__cause__, RuntimeError)

    def broken(outputs, batch):
        raise KeyError("temperature")

    with pytest.raises(cp.CannotProbeError, match=r"float64 \(1, 3\).*KeyError: 'temperature'; call the model"):
        made(nn.Linear(3, 1).double(), broken, (X, Y))


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, X[:2])])
def test_torchscript_is_refused_by_name(make):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # of one kind or another, by newer versions of torch
        scripted = make(nn.Sequential(nn.Linear(3, 1).double(), nn.Tanh()))
    with pytest.raises(cp.CannotProbeError, match="TorchScript"):
        made(scripted, cp.losses.mse, (X, Y))


# ---- parameters by other roads


def test_a_penalty_over_the_models_parameters_is_differentiated():
    case = cases.make("mlp")

    def penalised(outputs, batch):
        return cp.losses.cross_entropy(outputs, batch) + 0.1 * sum(p.square().sum() for p in case.model.parameters())

    plain, risk = case.risk(), made(case.model, penalised, case.data)
    at = torch.cat([p.detach().flatten() for p in case.model.parameters()])
    assert torch.allclose(risk.gradient(), plain.gradient() + 0.2 * at, rtol=1e-10, atol=1e-12)
    probe = noise(risk.num_params, 2)
    assert torch.allclose(cp.hessian(risk) @ probe, cp.hessian(plain) @ probe + 0.2 * probe, rtol=1e-9, atol=1e-11)
    space = cp.random_subspace(risk, 3)
    bent = cp.project(plain, space).hessian + 0.2 * torch.eye(3, dtype=torch.float64)
    assert torch.allclose(cp.project(risk, space).hessian, bent, rtol=1e-9, atol=1e-11)
    step = 0.1 * noise(risk.num_params)
    moved = plain.value(step) + 0.1 * float((at + step).square().sum())
    assert risk.value(step) == pytest.approx(moved, rel=1e-10)
    with pytest.raises(cp.CannotProbeError, match=r"other than through its outputs.*use the Hessian"):
        cp.ggn(risk) @ probe


@pytest.mark.parametrize("raises", [True, False], ids=["raises", "is nan"])
def test_a_model_that_cannot_be_evaluated_far_from_the_solution_is_accepted(raises):
    """A parameter that is a probability: a tenth more of it is none."""

    class Chance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.probability = nn.Parameter(torch.tensor([0.95], dtype=torch.float64))

        def forward(self, x):
            if raises:
                torch.distributions.Bernoulli(probs=self.probability, validate_args=True)
            return x[:, :1] * (1 - self.probability).log()

    risk = made(Chance(), cp.losses.mse, (X, Y))
    assert torch.allclose(cp.hessian(risk) @ torch.ones(1, dtype=torch.float64), reference_curvature())


def reference_curvature() -> torch.Tensor:
    p = torch.tensor(0.95, dtype=torch.float64, requires_grad=True)
    value = (X[:, :1] * (1 - p).log() - Y).square().mean()
    (slope,) = torch.autograd.grad(value, p, create_graph=True)
    return torch.autograd.grad(slope, p)[0][None]


def test_a_parameter_that_the_loss_holds_itself_is_refused_by_name():
    case = cases.make("mlp")
    held = case.model[2].weight

    def penalised(outputs, batch):
        return cp.losses.cross_entropy(outputs, batch) + held.square().sum()

    with pytest.raises(cp.CannotProbeError, match=r"reaches the parameters 2\.weight by a reference of its own"):
        made(case.model, penalised, case.data)


def test_a_module_that_a_model_uses_twice_is_left_as_it_was():
    shared = nn.Linear(3, 3, bias=False).double()
    model, weight = nn.Sequential(shared, nn.Tanh(), shared), shared.weight
    risk = made(model, cp.losses.mse, (X, noise(6, 3, seed=4)))
    (expected,) = torch.autograd.grad((model(X) - noise(6, 3, seed=4)).square().mean(), [weight])
    assert shared.weight is weight
    assert torch.allclose(risk.gradient(), expected.flatten(), rtol=1e-10)
    assert shared.weight is weight
