"""The trained models that the benchmarks measure on; weights are kept under .cache/ and trained where absent."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from curvprobe import losses
from curvprobe.tasks import Task
from curvprobe.tasks.digits import digits
from curvprobe.tasks.text import text
from curvprobe.tasks.trained import load_or_train

CACHE = Path(__file__).parent.parent / ".cache"

TASKS: dict[str, Callable[..., Task]] = {"digits": digits, "text": text}
"""The built-in tasks as they are."""


def mlp(k: int = 1000) -> Task:
    """A tanh MLP of 17 thousand parameters trained on scikit-learn's digits to a gradient norm of about 1e-6."""
    return digits(k, cache=CACHE / "digits.safetensors")


def nanochat(k: int = 8, candidates: int = 8) -> Task:
    """A NanoChat of 3.4 million parameters, context 128, trained for 400 steps on Python's help topics."""
    return text(
        k,
        candidates=candidates,
        steps=400,
        hidden_size=256,
        intermediate_size=768,
        num_layers=4,
        cache=CACHE / "nanochat.safetensors",
    )


class Residual(nn.Module):
    """Two convolutions beside a shortcut, which drops rows and columns and pads channels where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.more = stride, outputs - inputs
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, channels, height, width) to images."""
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return functional.relu(self.second(functional.relu(self.first(x))) + shortcut)


def resnet20(k: int = 64, candidates: int = 16, steps: int = 300) -> Task:
    """A ResNet-20 (270 thousand parameters, ReLU, batch-norm) on 32-pixel images: scikit-learn's digits, enlarged."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [Residual(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
        stem = (nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    small = mlp()
    (x, y), (others, theirs) = small.data, small.candidates
    images = functional.interpolate(torch.cat([x, others]).view(-1, 1, 8, 8), size=32, mode="bilinear").repeat(
        1, 3, 1, 1
    )
    labels = torch.cat([y, theirs])

    def train() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        draws = torch.Generator().manual_seed(0)
        for _ in range(steps):
            rows = torch.randint(len(x), (64,), generator=draws)
            optimizer.zero_grad()
            functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()

    load_or_train(model, train, CACHE / "resnet20.safetensors", f"resnet20 {steps}")
    new = slice(len(x), len(x) + candidates)
    return Task(model.eval(), losses.cross_entropy, (images[:k], labels[:k]), (images[new], labels[new]))


MODELS: dict[str, Callable[..., Task]] = {"mlp": mlp, "nanochat": nanochat}
"""The larger of the language models, and the digits MLP."""
