"""Examples projected together are what each is by itself, or go one by one."""

import pytest
import torch
from torch import Tensor, nn

import curvprobe as cp
from tests import cases
from tests.cases import block_of
from tests.subspace.projected import WAYS, given, naive_projection, same, taken, taking, together


class Branching(nn.Module):
    """Cannot be vmapped: asks for the value of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = cases.make("layer_norm").model

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.abs().sum().item() < 1e9 else x


def test_a_model_without_batching_rules_is_differentiated_one_by_one():
    case = cases.make("layer_norm")
    risk = taking("together", cp.EmpiricalRisk(Branching(), case.loss, case.data))
    subspace = given(risk)
    assert same(cp.project(risk, subspace), cp.project(case.risk(), subspace))
    assert together(risk) is False


def is_batched(x: Tensor) -> bool:
    """Whether vmap is at work on a tensor, beneath what other transforms of torch.func wrap it in."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


class Lengthy(nn.Module):
    """On more than four steps it does something else where it sees many examples batched by vmap."""

    def __init__(self, batched_long) -> None:
        super().__init__()
        self.inner, self.batched_long = nn.Linear(2, 3, bias=False), batched_long

    def forward(self, x: Tensor) -> Tensor:  # (n, steps, 2)
        z = self.inner(x).tanh().sum(1)
        return self.batched_long(z) if x.shape[1] > 4 and is_batched(x) else z


def refuse(z: Tensor) -> Tensor:
    raise NotImplementedError("no batching rule")


def lengthy(batched_long) -> Lengthy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Lengthy(batched_long).double()


def steps(n: int, length: int) -> tuple[Tensor, Tensor]:
    return block_of(n * length, 2, seed=length).view(n, length, 2), torch.arange(n) % 3


@pytest.mark.parametrize("batched_long", [lambda z: 1.001 * z, lambda z: z.detach(), lambda z: z * torch.nan, refuse])
def test_batching_that_is_wrong_for_longer_examples_only_is_found_out_there(batched_long):
    model = lengthy(batched_long)
    risk = taking("together", cp.EmpiricalRisk(model, cp.losses.cross_entropy, steps(5, 4)))
    subspace = given(risk)
    short = cp.project(risk, subspace)
    assert together(risk) is True
    longer = risk.on(steps(5, 6))
    found = cp.project(longer, subspace)
    assert together(risk) is False
    case = cases.Case(model, cp.losses.cross_entropy, steps(5, 6), None)
    assert same(found, cp.ProjectedSample(*naive_projection(case, subspace.basis)))
    assert same(cp.project(risk, subspace), short)


class Selective(nn.Module):
    """Goes wrong where it sees many examples batched by vmap: for those alone whose first input is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x).tanh()
        return torch.where(x[:, :1] > 0, 1.001 * z, z) if is_batched(x) else z


@pytest.mark.parametrize("wrong", [0, 1, 5, 11])
def test_batching_that_is_wrong_for_one_example_of_many_is_found_out(wrong):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Selective().double()
    x, y = -block_of(12, 2).abs(), torch.arange(12) % 3
    x[wrong] *= -1
    risk = taking("together", cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x, y)))
    subspace = given(risk)
    found = cp.project(risk, subspace)
    assert together(risk) is False
    case = cases.Case(model, cp.losses.cross_entropy, (x, y), None)
    assert same(found, cp.ProjectedSample(*naive_projection(case, subspace.basis)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", [[1, 2], [2, 0]], ids=["no padding first", "padding first"])
def test_a_padding_row_is_a_constant_also_where_examples_go_together(first, way):
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(3, 2, padding_idx=0), nn.Linear(2, 2)
            nn.init.constant_(self.embed.weight, 0.3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x).sum(1).tanh())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        case = cases.Case(
            Text().double(), cp.losses.cross_entropy, (torch.tensor([first, [2, 0]]), torch.arange(2)), None
        )
    risk = taking(way, case.risk())
    subspace = given(risk, risk.num_params)
    found = cp.project(risk, subspace)
    assert taken(risk) == way
    assert same(found, cp.ProjectedSample(*naive_projection(case, subspace.basis)))


def test_what_torch_says_of_missing_batching_rules_is_not_the_users_to_read(recwarn):
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(2, 2, batch_first=True), nn.Linear(2, 2)

        def forward(self, x: Tensor, length: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, length, batch_first=True, enforce_sorted=False)
            return self.head(self.rnn(packed)[1][0])

    data = {"x": block_of(12, 2).view(4, 3, 2), "length": torch.tensor([3, 2, 3, 1]), "labels": torch.arange(4) % 2}
    risk = cp.EmpiricalRisk(Packed().double(), cp.losses.cross_entropy, data)
    cp.project(risk, given(risk))
    cp.direct_monte_carlo(risk, risk[:1], cp.SubspaceProbe(given(risk), 0.1), num_probes=4)
    assert len(recwarn) == 0


@pytest.mark.parametrize("way", WAYS)
def test_nor_what_it_prints_of_them_by_itself(way, capfd):
    """Of an operation within its own decomposition of the derivative of PReLU, past Python's warnings."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.PReLU(4), nn.Flatten(), nn.Linear(144, 2))
    data = torch.randn(20, 1, 8, 8), torch.randint(2, (20,))
    risk = taking(way, cp.EmpiricalRisk(model, cp.losses.cross_entropy, data))
    cp.project(risk, given(risk))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("batched_long", [lambda z: 1.001 * z, refuse])
def test_a_sample_whose_later_examples_are_longer(batched_long):
    """What was begun together goes on one by one where batching raises or is wrong on the way."""
    (a, y), (b, _) = steps(4, 4), steps(4, 6)
    items = [*zip(a, y, strict=True), *zip(b, y, strict=True)]

    def collate(given: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        inputs, labels = zip(*given, strict=True)
        return nn.utils.rnn.pad_sequence(list(inputs), batch_first=True), torch.stack(labels)  # tanh(0) adds nothing

    def made() -> cp.EmpiricalRisk:
        return cp.EmpiricalRisk(
            lengthy(batched_long), cp.losses.cross_entropy, items, collate_fn=collate, microbatch_size=2
        )

    risk = taking("together", made())
    subspace = given(risk)
    found = cp.project(risk, subspace)
    assert same(found, cp.project(taking("one by one", made()), subspace))
    assert together(risk) is False


def test_candidates_with_an_entry_that_is_no_tensor():
    """The sample's are tensors, and go together; the candidates' names are strings, which the loss reads."""
    x, y = cases.make("mlp").data

    def loss(outputs: Tensor, batch: dict) -> Tensor:
        losses = nn.functional.cross_entropy(outputs, batch["labels"], reduction="none")
        factors = [float(len(name)) for name in batch["name"]] if "name" in batch else [1.0]
        return losses * torch.tensor(factors, dtype=losses.dtype)

    def forward(model: nn.Module, batch: dict) -> Tensor:
        return model(batch["x"])

    model = cases.make("mlp").model
    risk = taking("together", cp.EmpiricalRisk(model, loss, {"x": x, "labels": y}, forward=forward))
    subspace = given(risk)
    plain = cp.project(risk, subspace)
    assert together(risk) is True
    names = ["a", "bb", "ccc", "a", "bb", "ccc"]
    named = risk.on([{"x": a, "labels": b, "name": name} for a, b, name in zip(x, y, names, strict=True)])
    found = cp.project(named, subspace)
    assert together(risk) is False
    factors = torch.tensor([1.0, 2.0, 3.0] * 2, dtype=torch.float64)
    scaled = cp.ProjectedSample(
        plain.loss * factors,
        plain.weight,
        plain.gradient * factors[:, None],
        plain.hessian * factors[:, None, None],
    )
    assert same(found, scaled)
