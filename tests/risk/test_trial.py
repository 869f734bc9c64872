"""Losses that are random, or depend on their batch, are found wherever in the sample and however small they are."""

import random

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

import curvprobe as cp
from curvprobe.risk import trial
from curvprobe.risk.examples import Examples
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Sample

F32, F64 = torch.float32, torch.float64
DEPENDS, RANDOM = "do not depend on the rest of the batch", "two evaluations of example"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def net(*between: nn.Module, outputs: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *between, nn.Linear(4, outputs)).double()


def squares(outputs, batch):
    return (outputs - batch[1]).square().mean(1)


def data(n: int = 40):
    return draw(n, 3), draw(n, 1, seed=1)


def make(model, loss, examples, dtype=F64, **options):
    return cp.EmpiricalRisk(model.to(dtype), loss, examples, **options)


# ---- losses that depend on their batch -----------------------------------------------------------------------------


def centred(outputs, batch):
    each = squares(outputs, batch)
    return each - each.mean() / 2


def scaled(loss, size):
    return lambda outputs, batch: size * loss(outputs, batch)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("size", [1e-9, 1e-6, 1.0, 1e9])
def test_a_dependence_is_found_at_any_size_of_the_losses(size, dtype):
    with pytest.raises(ValueError, match=DEPENDS):
        make(net(), scaled(centred, size), data(), dtype)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e9])
def test_independent_losses_of_any_size_are_accepted(size, dtype):
    make(net(), scaled(squares, size), data(), dtype)


@pytest.mark.parametrize("first", [5, 20, 36])
def test_weights_normalised_over_the_batch_of_data_sorted_by_class(first):
    y = (torch.arange(40) >= first).long()

    def loss(outputs, batch):
        weight = torch.tensor([1.0, 5.0], dtype=F64)[batch[1]]
        return functional.cross_entropy(outputs, batch[1], reduction="none") * weight / weight.mean()

    with pytest.raises(ValueError, match=DEPENDS):
        make(net(outputs=2), loss, (data()[0], y))


def coupled_where(chosen):
    """Losses that depend on the batch's other examples among those with a negative target."""

    def loss(outputs, batch):
        each = squares(outputs, batch)
        marked = chosen(batch[1][:, 0])
        return torch.where(marked, each + 0.1 * (each * marked).sum(), each)

    return loss


@pytest.mark.parametrize("n", [5, 40, 1000])
def test_a_dependence_at_the_end_of_the_sample_only(n):
    x, y = data(n)
    y = y.abs()
    y[-2:] = -1
    with pytest.raises(ValueError, match=rf"example ({n - 2}|{n - 1}) .*{DEPENDS}"):
        make(net(), coupled_where(lambda target: target < 0), (x, y))


def test_a_dependence_on_far_examples_only():
    x, _ = data(1000)
    y = torch.arange(1000, dtype=F64)[:, None] / 1000

    def loss(outputs, batch):  # a batch of neighbours, or of one, shows nothing
        return squares(outputs, batch) * (1 + (batch[1].amax() - batch[1].amin() > 0.1))

    with pytest.raises(ValueError, match=rf"in a batch of.*{DEPENDS}"):
        make(net(), loss, (x, y))


def test_a_dependence_on_neighbours_inside_the_sample_only():
    x, _ = data(1000)
    y = torch.arange(1000, dtype=F64)[:, None]

    def loss(outputs, batch):
        inside = (batch[1] > 10) & (batch[1] < 980)
        near = (batch[1] - batch[1].T).abs() == 1
        return squares(outputs, batch) * (1 + (near & inside).any(1))

    with pytest.raises(ValueError, match=DEPENDS):
        make(net(), loss, (x, y))


def test_one_example_at_a_time_depends_on_no_batch():
    most = []

    def loss(outputs, batch):
        most.append(len(batch[1]))
        return centred(outputs, batch)

    make(net(), loss, data(), microbatch_size=1).value()
    assert set(most) == {1}


@pytest.mark.parametrize("limit", [2, 3, 5])
def test_no_more_examples_are_evaluated_together_than_may_be(limit):
    most = []

    def loss(outputs, batch):
        most.append(len(batch[1]))
        return squares(outputs, batch)

    make(net(), loss, data(), microbatch_size=limit)
    assert max(most) == limit


# ---- losses near zero ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64])
def test_losses_of_exactly_zero_are_accepted(dtype):
    model = net()
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    assert make(model, squares, (draw(40, 3), torch.zeros(40, 1))).value() == 0.0


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("loss", [squares, lambda o, b: (o - b[1]).abs().mean(1)], ids=["square", "absolute"])
def test_a_regression_that_interpolates_is_accepted(loss, dtype):
    model = net().to(dtype)
    x = draw(40, 3).to(dtype)
    with torch.no_grad():
        model[-1].weight.mul_(1e3)
        y = torch.cat([model(row[None]) for row in x])  # alone: other rounding than in a batch
    risk = make(model, loss, (x, y), dtype)
    assert risk.value() < 1e5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("loss", [squares, lambda o, b: (o - b[1]).abs().mean(1)], ids=["square", "absolute"])
@pytest.mark.parametrize("exact", [False, True], ids=["rounded otherwise", "zero alone"])
def test_a_wide_regression_that_interpolates_large_targets_is_accepted(loss, exact):
    torch.manual_seed(0)
    model, x = nn.Linear(999, 1).double(), 1e3 * draw(40, 999)
    with torch.no_grad():
        y = torch.stack([(row * model.weight[0]).sum(0, keepdim=True) + model.bias for row in x])
        if exact:
            y = torch.cat([model(row[None]) for row in x])
    risk = make(model, loss, (x, y))
    assert risk.value() < 1e-9


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("margin", [10, 16, 30, 1000])
def test_a_classifier_that_interpolates_is_accepted(margin, dtype):
    model = nn.Linear(64, 3).double()
    x = draw(40, 64)
    with torch.no_grad():
        model.weight.copy_(draw(3, 64, seed=3) * margin)
        y = model(x).argmax(1)
    make(model, cp.losses.cross_entropy, (x, y), dtype)


# ---- losses that are random ----------------------------------------------------------------------------------------


class Strikes(nn.Module):
    """Stochastic depth, as it is in train mode."""

    def __init__(self, p: float = 0.05, whole: bool = False, source: str = "torch") -> None:
        super().__init__()
        self.p, self.whole, self.source = p, whole, source
        self.own = torch.Generator().manual_seed(0)

    def forward(self, x):
        n = 1 if self.whole else len(x)
        drawn = {
            "torch": lambda: torch.rand(n, 1, dtype=x.dtype),
            "numpy": lambda: torch.as_tensor(numpy.random.rand(n, 1)).to(x.dtype),  # noqa: NPY002
            "python": lambda: torch.tensor([[random.random()] for _ in range(n)], dtype=x.dtype),
            "own": lambda: torch.rand(n, 1, dtype=x.dtype, generator=self.own),
        }[self.source]()
        return x * (drawn > self.p) / (1 - self.p)


@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
@pytest.mark.parametrize("whole", [False, True], ids=["rows", "batches"])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_noise_that_strikes_one_evaluation_in_twenty_is_found(source, whole, dtype):
    for seed in range(5):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            numpy.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            with pytest.raises(ValueError, match=RANDOM):
                make(net(Strikes(whole=whole, source=source)), squares, data(200), dtype)


def test_a_dozen_layers_with_a_generator_of_their_own_are_found():
    for seed in range(5):
        noise = [Strikes(source="own") for _ in range(12)]
        for i, layer in enumerate(noise):
            layer.own.manual_seed(100 * seed + i)
        with pytest.raises(ValueError, match=RANDOM):
            make(net(*noise), squares, data(200))


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1.0, 1e9])
@pytest.mark.parametrize("options", [{}, {"microbatch_size": 1}], ids=["batches", "one by one"])
def test_noise_is_found_at_any_size_of_the_losses(size, options):
    with pytest.raises(ValueError, match=RANDOM):
        make(net(Strikes(0.5)), scaled(squares, size), data(), F32, **options)


def test_noise_in_a_sample_of_one_example_is_found():
    with pytest.raises(ValueError, match=RANDOM):
        make(net(Strikes()), squares, data(1))


def test_noise_that_changes_nothing_is_accepted():
    class Draws(nn.Module):
        def forward(self, x):
            torch.rand(3)
            return x

    make(net(Draws()), squares, data())


# ---- examples of unequal shapes ------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Mean over what is not padding, or over everything."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.embed, self.head, self.masked = nn.Embedding(7, 3), nn.Linear(3, 1), masked

    def forward(self, tokens):
        kept = (tokens > 0) if self.masked else torch.ones_like(tokens, dtype=torch.bool)
        return self.head((self.embed(tokens).tanh() * kept[..., None]).sum(1) / kept.sum(1, keepdim=True))


def texts(lengths):
    generator = torch.Generator().manual_seed(2)
    return [(torch.randint(1, 7, (n,), generator=generator), draw(1, seed=n)) for n in lengths]


def padded(items):
    return pad_sequence([tokens for tokens, _ in items], batch_first=True), torch.stack([y for _, y in items])


LENGTHS = [5, 5, 5, 5, *range(2, 30), 6, 6, 6, 6]


def test_texts_of_unequal_lengths_are_padded_and_accepted():
    make(Reader(masked=True), squares, texts(LENGTHS), collate_fn=padded)


def test_texts_that_see_their_padding_are_refused():
    with pytest.raises(ValueError, match=DEPENDS):
        make(Reader(masked=False), squares, texts(LENGTHS), collate_fn=padded)


@pytest.mark.parametrize("lengths", [LENGTHS, list(range(2, 30))], ids=["alike at the ends", "all unlike"])
def test_texts_that_make_no_batch_are_read_one_by_one(lengths):
    risk = make(Reader(masked=False), squares, texts(lengths), microbatch_size=1)
    assert len(risk.losses()) == len(lengths)


def test_batches_that_cannot_be_made_of_far_examples_are_passed_over():
    items = texts([5] * 20 + [9] * 20)
    make(Reader(masked=False), squares, items, microbatch_size=4)
    with pytest.raises(ValueError, match=DEPENDS):
        make(Reader(masked=False), centred, items, microbatch_size=4)


def test_the_shortest_and_the_longest_are_looked_at():
    sample = Sample(Examples(texts([5] * 3 + [2, 29] + [5] * 4 + [6]), padded), F64, torch.device("cpu"))
    assert sample.read(3, 4).shapes[0] == (1, 2)
    single = [rows[0] for rows in trial._batches(sample, 16) if len(rows) == 1]
    assert {0, 3, 4, 9} <= set(single)


# ---- weights -------------------------------------------------------------------------------------------------------


def test_a_weight_that_depends_on_the_model_is_refused():
    def loss(outputs, batch):
        weight = outputs.softmax(1).amax(1)
        return functional.cross_entropy(outputs, batch[1], reduction="none") * weight, weight

    with pytest.raises(ValueError, match=r"weights that the loss returned depend on the model's parameters"):
        make(net(outputs=2), loss, (data()[0], torch.zeros(40, dtype=torch.long)))


def test_a_weight_from_a_part_that_is_not_probed_is_a_constant():
    def loss(outputs, batch):
        return squares(outputs[0], batch), 1 + outputs[1].square().mean(1)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x):
            return self.first(x), self.second(x)

    model = Two()
    risk = make(model, loss, data(), params=["first.*"])
    assert torch.allclose(risk.weights, (1 + model(data()[0])[1].square().mean(1)).detach(), rtol=1e-12)


# ---- the same answer every time, and nothing else changed -----------------------------------------------------------


def test_the_examples_that_are_looked_at_do_not_move_the_generators():
    before = random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state()  # noqa: NPY002
    make(net(), squares, data())
    assert random.getstate() == before[0]
    assert numpy.random.get_state()[1].tobytes() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_examples_all_over_the_sample_are_looked_at_alone_and_together():
    sample = Sample(Examples(data(1000)), F64, torch.device("cpu"))
    batches = trial._batches(sample, 16)
    rows = {row for batch in batches for row in batch}
    assert {0, 999} <= rows
    assert all(any(row // 200 == part for row in rows) for part in range(5))
    assert max(len(batch) for batch in batches) == 16
    assert all(len(set(batch)) == len(batch) for batch in batches)
    assert [rows for rows in batches if len(rows) == 1][:2] == [range(1), range(999, 1000)]


def test_a_model_that_cannot_be_evaluated_in_double_is_judged_with_the_rounding_of_its_own():
    class Single(nn.Module):
        def forward(self, x):
            if x.dtype == F64:
                raise RuntimeError("float32 only")
            return x

    model = net(Single()).float()
    with torch.no_grad():
        y = torch.cat([model(row[None].float()) for row in data()[0]])
    make(model, squares, (data()[0], y), F32)
    with pytest.raises(ValueError, match=DEPENDS):
        make(model, centred, data(), F32)


def test_room_for_one_example_is_kept_to():
    model, most = net(), []

    def loss(outputs, batch):
        most.append(len(batch[1]))
        return squares(outputs, batch)

    probed, sample = ProbedModel.of(model, loss, None), Sample(Examples(data()), F64, torch.device("cpu"))
    with probed.undisturbed():
        tried = trial.check_sample(probed, sample, None)
        most.clear()
        trial.check_behaviour(probed, sample, tried, room=2)
    assert max(most) == 2
