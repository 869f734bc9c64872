"""Small trained models of different kinds, for the benchmark of the plan: trained in seconds, the same every time."""

from collections.abc import Callable

import torch
from models import CACHE, mlp
from torch import Tensor, nn

from curvprobe import losses
from curvprobe.tasks import Task
from curvprobe.tasks.trained import load_or_train

CANDIDATES = 100


def trained(model: nn.Module, loss: losses.Loss, x: Tensor, y: Tensor, name: str, steps: int, k: int) -> Task:
    """The model after some steps of Adam on the first k examples; the next hundred are the candidates."""

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        draws = torch.Generator().manual_seed(0)
        for _ in range(steps):
            rows = torch.randint(k, (64,), generator=draws)
            optimizer.zero_grad()
            loss(model(x[rows]), (x[rows], y[rows])).mean().backward()
            optimizer.step()

    load_or_train(model, train, CACHE / f"plan_{name}.safetensors", f"plan {name} {steps} {k}")
    new = slice(k, k + CANDIDATES)
    return Task(model.eval(), loss, (x[:k], y[:k]), (x[new], y[new]))


def images() -> tuple[Tensor, Tensor]:
    """All digits, as rows of 64 numbers."""
    small = mlp()
    (x, y), (others, theirs) = small.data, small.candidates
    return torch.cat([x, others]), torch.cat([y, theirs])


def cnn() -> Task:
    """Two convolutions with group normalisation, on the digits as images."""
    x, y = images()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(8, 32),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    return trained(model, losses.cross_entropy, x.view(-1, 1, 8, 8), y, "cnn", 300, 500)


class Rows(nn.Module):
    """A GRU that reads the digits row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.head = nn.GRU(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 8, 8) to logits (n, 10)."""
        return self.head(self.read(x)[0][:, -1])


def gru() -> Task:
    """A GRU over the rows of the digits."""
    x, y = images()
    return trained(Rows(), losses.cross_entropy, x.view(-1, 8, 8), y, "gru", 300, 500)


class Padded(nn.Module):
    """A small transformer over sequences of unequal length, padded with zeros, which count for nothing."""

    def __init__(self, vocabulary: int = 50, width: int = 32, length: int = 24) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width, padding_idx=0), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, t) to logits (n, 5)."""
        padding = tokens == 0
        x = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
        x = self.layers(x, src_key_padding_mask=padding).masked_fill(padding[..., None], 0.0)
        return self.head(x.sum(1) / (~padding).sum(1, keepdim=True))


def transformer() -> Task:
    """A padded transformer that tells which of five tokens comes most often."""
    draws, count, length = torch.Generator().manual_seed(0), 250, 24
    favourite = torch.randint(5, (count,), generator=draws)
    tokens = torch.randint(1, 50, (count, length), generator=draws)
    often = torch.rand(count, length, generator=draws) < 0.3
    tokens = torch.where(often, favourite[:, None] + 1, tokens)
    lengths = torch.randint(8, length + 1, (count, 1), generator=draws)
    tokens = tokens * (torch.arange(length) < lengths)
    return trained(Padded(), losses.cross_entropy, tokens, favourite, "transformer", 300, 150)


def repeated() -> Task:
    """A nearly linear regression on whitened inputs: every eigenvalue comes ten times, or nearly."""
    draws, k = torch.Generator().manual_seed(0), 500
    x = torch.randn(k + CANDIDATES, 50, generator=draws)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x[:k].T @ x[:k] / k)).T
    y = 0.1 * torch.randn(k + CANDIDATES, 10, generator=draws)
    model = nn.Sequential(nn.Linear(50, 10), nn.Tanh())
    return trained(model, losses.mse, x, y, "repeated", 500, k)


def wide() -> Task:
    """An MLP of a million parameters on the digits."""
    x, y = images()
    layers = (nn.Linear(64, 960), nn.Tanh(), nn.Linear(960, 960), nn.Tanh(), nn.Linear(960, 10))
    return trained(nn.Sequential(*layers), losses.cross_entropy, x, y, "wide", 200, 1000)


KINDS: dict[str, Callable[[], Task]] = {
    "mlp": mlp,
    "cnn": cnn,
    "gru": gru,
    "transformer": transformer,
    "repeated": repeated,
    "wide": wide,
}
