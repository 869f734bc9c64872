"""Data sets of all kinds."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import curvprobe as cp
from tests.models.hand import agrees, refused, rows

CE = cp.losses.cross_entropy
DOUBLE = torch.float64


def classifier() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def vectors(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, dtype=DOUBLE), torch.randint(3, (count,))


def check_works(risk: cp.EmpiricalRisk, model: nn.Module, x: Tensor, y: Tensor) -> None:
    agrees(risk, model, lambda a, b: functional.cross_entropy(model(a), b), rows(x, y))


def test_data_set():
    model, (x, y) = classifier(), vectors()
    check_works(cp.EmpiricalRisk(model, CE, TensorDataset(x, y)), model, x, y)


def test_data_loader():
    with refused("pass loader.dataset"):
        cp.EmpiricalRisk(classifier(), CE, DataLoader(TensorDataset(*vectors())))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*vectors(), strict=True))


def test_stream():
    with refused("expected a map-style dataset or a list"):
        cp.EmpiricalRisk(classifier(), CE, Stream())


class Augmented(Dataset):
    def __init__(self) -> None:
        self.x, self.y = vectors()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.x[row] + 0.1 * torch.randn(3), self.y[row]


def test_random_augmentation():
    with refused("materialise the examples once and pass the list"):
        cp.EmpiricalRisk(classifier(), CE, Augmented())


class Mean(nn.Module):
    """Of the states at the places that count."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.head = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, sequences: Tensor, counted: Tensor) -> Tensor:
        states = self.state(sequences).tanh() * counted[:, :, None]
        return self.head(states.sum(1) / counted.sum(1, keepdim=True))


def padded(items: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    sequences, labels = zip(*items, strict=True)
    counted = [torch.ones(len(sequence), dtype=DOUBLE) for sequence in sequences]
    sequences, counted = (nn.utils.rnn.pad_sequence(parts, batch_first=True) for parts in (sequences, counted))
    return {"sequences": sequences, "counted": counted, "labels": torch.tensor(labels)}


def sequences() -> list[tuple[Tensor, int]]:
    return [(torch.randn(length, 2, dtype=DOUBLE), length % 3) for length in (5, 2, 7, 3, 1)]


def test_lengths_that_differ():
    model, items = Mean().double(), sequences()
    risk = cp.EmpiricalRisk(model, CE, items, collate_fn=padded)
    alone = [(x[None], torch.ones(1, len(x), dtype=DOUBLE), torch.tensor([label])) for x, label in items]
    agrees(risk, model, lambda x, counted, label: functional.cross_entropy(model(x, counted), label), alone)


def test_lengths_that_differ_without_collate_fn():
    with refused("pass collate_fn"):
        cp.EmpiricalRisk(nn.Linear(2, 3), CE, sequences())


def test_lists_of_numbers():
    items = [{"input_ids": [1, 2, 3], "labels": 0}] * 4
    with refused('dataset.set_format("torch")'):
        cp.EmpiricalRisk(classifier(), CE, items)


class Columns:
    """What a data set of Hugging Face is to its reader: dicts of Python values, or of tensors where asked for."""

    def __init__(self, columns, kind=None):
        self.columns, self.format = columns, {"type": kind}

    def with_format(self, kind):
        return Columns(self.columns, kind)

    def __len__(self):
        return len(self.columns["input"])

    def __getitem__(self, i):
        make = torch.tensor if self.format["type"] == "torch" else lambda value: value
        return {name: make(column[i]) for name, column in self.columns.items()}


def test_lists_of_a_hugging_face_data_set():
    (x, y), model = vectors(), classifier()
    data = Columns({"input": x.tolist(), "label": y.tolist()})
    check_works(cp.EmpiricalRisk(model, CE, data), model, x.float().double(), y)
    assert data.format["type"] is None

    def collated(items):
        assert isinstance(items[0]["input"], list)
        return {name: torch.tensor([item[name] for item in items]) for name in items[0]}

    check_works(cp.EmpiricalRisk(model, CE, data, collate_fn=collated), model, x.float().double(), y)


def test_arrays_of_numpy():
    (x, y), model = vectors(), classifier()
    check_works(cp.EmpiricalRisk(model, CE, (x.numpy(), y.numpy())), model, x, y)


def test_entry_that_nobody_takes():
    with refused("leave it out"):
        cp.EmpiricalRisk(classifier(), CE, (*vectors(), torch.ones(6)))


def test_weights_of_examples():
    model, (x, y) = classifier(), vectors()
    weight = torch.tensor([1, 3, 2, 1, 5, 1])
    risk = cp.EmpiricalRisk(model, lambda out, batch: (CE(out, batch) * batch[2], batch[2]), (x, y, weight))
    agrees(risk, model, lambda a, b, w: (functional.cross_entropy(model(a), b) * w, w), rows(x, y, weight))


def test_integer_inputs():
    images = torch.randint(255, (6, 3), dtype=torch.uint8)
    with refused("x.float()"):
        cp.EmpiricalRisk(classifier(), CE, (images, vectors()[1]))


def test_nan_in_an_example():
    x, y = vectors()
    x[3, 1] = torch.nan
    with refused("check its data"):
        cp.EmpiricalRisk(classifier(), CE, (x, y)).gradient()


def test_candidates_that_the_sample_holds():
    x, y = vectors(12)
    risk = cp.EmpiricalRisk(classifier(), CE, (x, y))
    with refused("allow_overlap=True"):
        cp.analyze(risk, candidates=(x[:6], y[:6]), dim=2)


def test_candidates_that_equal_examples():
    model, (x, y) = classifier(), vectors(12)
    risk = cp.EmpiricalRisk(model, CE, (x, y))
    candidates, subspace = risk.on((x[:6], y[:6])), cp.random_subspace(risk, 2)
    check_works(candidates, model, x[:6], y[:6])
    sample, fresh = cp.project(risk, subspace), cp.project(candidates, subspace)
    found = cp.expected_criterion(sample, fresh, sigma=0.01, allow_overlap=True)
    each = [cp.gaussian_moment(cp.increment(sample, fresh[i]), sigma=0.01).value for i in range(6)]
    assert found.value == pytest.approx(sum(each) / 6, rel=1e-10)
