"""State that a model keeps by itself, autocast that it turns on, and gradients that are not the derivative."""

from collections import Counter, deque

import pytest
import torch
from torch import nn

import curvprobe as cp
from tests.cases import block_of


class Logged(nn.Linear):
    """Keeps what passes through it, in every kind of container."""

    def __init__(self) -> None:
        super().__init__(3, 2, dtype=torch.float64)
        self.log, self.last, self.seen, self.queue = [], {}, set(), deque(maxlen=3)
        self.nested = {"rows": [[]], "count": Counter()}
        self.calls, self.total = torch.zeros(()), torch.zeros(3)

    def forward(self, x):
        out = super().forward(x)
        self.log.append(out)
        self.last["out"] = out
        self.seen.add(len(x))
        self.queue.append(out)
        self.nested["rows"][0].append(len(x))
        self.nested["count"]["passes"] += 1
        self.calls += 1
        self.total[0] += float(x.sum())
        return out.tanh()


def test_what_a_model_keeps_in_containers_and_plain_tensors_is_put_back():
    model = Logged()
    model.log.append("before")
    model.queue.extend("ab")
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (block_of(6, 3), block_of(6, 2)))
    cp.project(risk, cp.top_eigenspace(risk, dim=2))
    cp.direct_monte_carlo(risk, risk[:1], cp.IsotropicProbe(0.1), num_probes=4)
    assert (model.log, list(model.queue), model.last, model.seen) == (["before"], ["a", "b"], {}, set())
    assert model.nested == {"rows": [[]], "count": Counter()}
    assert int(model.calls) == 0
    assert not bool(model.total.any())


def test_a_large_plain_tensor_that_changes_in_place_is_refused_by_name():
    class Large(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2, dtype=torch.float64)
            self.cache = torch.zeros(2**20 + 1)

        def forward(self, x):
            self.cache[0] += 1
            return super().forward(x)

    with pytest.raises(cp.CannotProbeError, match=r"changes Large\.cache in place.*buffer"):
        cp.EmpiricalRisk(Large(), cp.losses.mse, (block_of(6, 3), block_of(6, 2)))


class Mixed(nn.Module):
    """Turns autocast on by itself, as a model that was prepared for mixed precision does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.context = net, torch.autocast("cpu", dtype=torch.bfloat16)

    def forward(self, x):
        with self.context, torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).float()


def test_autocast_within_a_model_is_off_here_and_on_again_afterwards():
    x, y = block_of(8, 3).float(), torch.arange(8) % 2
    net = nn.Linear(3, 2)
    model = Mixed(net)
    rough = model(x).detach()
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x, y))
    plain = cp.EmpiricalRisk(net, cp.losses.cross_entropy, (x, y))
    assert torch.equal(risk.losses(), plain.losses())
    assert torch.equal(risk.gradient(), plain.gradient())
    assert torch.equal(model(x), rough)
    assert not torch.equal(rough, net(x))


class Text(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed, self.out = nn.Embedding(5, 3, **options).double(), nn.Linear(3, 2).double()

    def forward(self, tokens):
        return self.out(self.embed(tokens).tanh().mean(1))


TOKENS, LABELS = torch.tensor([[1, 1, 2], [3, 4, 1], [2, 2, 2], [4, 1, 3]]), torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize("option", ["scale_grad_by_freq", "sparse"])
def test_an_embedding_hands_out_the_derivative_whatever_it_is_set_to(option):
    odd, plain = Text(**{option: True}), Text()
    risks = [cp.EmpiricalRisk(m, cp.losses.cross_entropy, (TOKENS, LABELS)) for m in (odd, plain)]
    assert torch.allclose(*(risk.gradient() for risk in risks), rtol=1e-12)
    block = block_of(risks[0].num_params, 2)
    assert torch.allclose(*(cp.hessian(risk) @ block for risk in risks), rtol=1e-10, atol=1e-13)
    assert getattr(odd.embed, option) is True


def test_a_padding_row_is_a_constant():
    padded = torch.cat([torch.zeros(4, 1, dtype=torch.long), TOKENS], dim=1)
    model = Text(padding_idx=0)
    with torch.no_grad():
        model.embed.weight[0] = 0.3
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (padded, LABELS))
    loss = nn.functional.cross_entropy(model(padded), LABELS)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert torch.allclose(risk.gradient(), expected, rtol=1e-10, atol=1e-14)
    step = torch.zeros(risk.num_params, dtype=torch.float64)
    step[:3] = 1.0  # the padding row
    assert risk.value(step) == risk.value()
    assert not bool((cp.hessian(risk) @ step).any())


class Encoder(nn.Module):
    def __init__(self, embed: nn.Embedding) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, tokens):
        return self.embed(tokens).sum(1).tanh()


class Known(nn.Module):
    """A text model whose one embedding has several names, as in encoder-decoders."""

    def __init__(self, others: str) -> None:
        super().__init__()
        embed = nn.Embedding(5, 3, padding_idx=0)
        nn.init.constant_(embed.weight, 0.3)
        if others == "the same module":
            self.shared = embed
        if others == "an embedding of the same weight":
            self.shared = nn.Embedding(5, 3, padding_idx=0)
            self.shared.weight = embed.weight
        self.encoder, self.out = Encoder(embed), nn.Linear(3, 2)

    def forward(self, tokens):
        return self.out(self.encoder(tokens))


@pytest.mark.parametrize("others", ["none", "the same module", "an embedding of the same weight"])
def test_a_padding_row_is_a_constant_whatever_its_embedding_is_called(others):
    padded, model = torch.cat([torch.zeros(4, 1, dtype=torch.long), TOKENS], dim=1), Known(others).double()
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (padded, LABELS))
    loss = nn.functional.cross_entropy(model(padded), LABELS)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert torch.allclose(risk.gradient(), expected, rtol=1e-10, atol=1e-14)
    step = torch.zeros(risk.num_params, dtype=torch.float64)
    step[:3] = 1.0
    assert risk.value(step) == risk.value()
    assert not bool((cp.hessian(risk) @ step).any())


def test_a_padding_row_that_trains_through_a_function_is_refused():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3, padding_idx=0)

        def forward(self, tokens):
            return nn.functional.linear(self.embed(tokens).tanh().mean(1), self.embed.weight)

    with pytest.raises(cp.CannotProbeError, match=r"embed\.weight.*padding_idx = None"):
        cp.EmpiricalRisk(Tied(), cp.losses.cross_entropy, (TOKENS, LABELS))


def test_a_probed_embedding_that_renormalises_is_refused_and_one_that_is_not_probed_is_not():
    model = Text(max_norm=0.5)
    with pytest.raises(cp.CannotProbeError, match=r"max_norm=0\.5"):
        cp.EmpiricalRisk(model, cp.losses.cross_entropy, (TOKENS, LABELS))
    cp.EmpiricalRisk(model, cp.losses.cross_entropy, (TOKENS, LABELS), params=["out.*"])


def test_a_model_that_differentiates_in_its_inputs_works_everywhere():
    class Field(nn.Module):
        """The derivative of a potential, as in physics-informed networks and force fields."""

        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()

        def forward(self, x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]

    x, y = block_of(9, 2), block_of(9, 2).cos()
    model = Field()
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[:6], y[:6]))
    by_hand = (model(x[:6]) - y[:6]).square().mean(1).detach()
    assert torch.allclose(risk.losses(), by_hand, rtol=1e-12)
    new = risk.on((x[6:], y[6:]))
    space = cp.top_eigenspace(risk, dim=2, tol=1e-8)
    law = cp.SubspaceProbe(space, 1e-3)
    controlled = cp.controlled_monte_carlo(risk, new[:1], law, num_probes=16)
    assert controlled.value == pytest.approx(cp.closed_form(risk, new[:1], law).value, rel=1e-3)
    assert cp.quadratic_validity(risk, [1e-3], subspace=space, new=new).verdicts == ("valid",)


class Greedy(nn.Module):
    """Changes a tensor that is too large to be copied, before and beside what can be put back; may stop."""

    def __init__(self, stops: bool) -> None:
        super().__init__()
        self.inner, self.stops = nn.Linear(3, 2), stops
        self.large, self.small, self.log = torch.zeros(2_000_000), torch.zeros(2), []

    def forward(self, x):
        for tensor in (self.large, self.small):
            tensor.add_(1)
        self.log.append(1)
        if self.stops:
            raise LookupError("out of luck")
        return self.inner(x)


@pytest.mark.parametrize(
    ("stops", "message"), [(False, r"Greedy\.large in place, a plain tensor"), (True, "out of luck")]
)
def test_what_cannot_be_put_back_keeps_nothing_else_from_it_and_hides_no_error(stops, message):
    model = Greedy(stops)
    with pytest.raises(cp.CannotProbeError, match=message):
        cp.EmpiricalRisk(model, cp.losses.cross_entropy, (torch.randn(4, 3), torch.tensor([0, 1, 0, 1])))
    assert model.log == []
    assert model.small.tolist() == [0, 0]
