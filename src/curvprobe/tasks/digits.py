"""An MLP trained to a small gradient norm on scikit-learn's digits; candidates are images it has not seen."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from curvprobe import losses
from curvprobe.errors import ArgumentError, MissingExtraError
from curvprobe.runtime import progress
from curvprobe.tasks import Task
from curvprobe.tasks.trained import load_or_train

LABEL_SMOOTHING = 0.1
"""Gives the cross-entropy a minimiser at finite weights, so that there is a landscape to settle."""


def digits(
    k: int = 1000,
    *,
    hidden: tuple[int, ...] = (128, 64),
    rounds: int = 40,
    seed: int = 0,
    cache: Path | None = None,
) -> Task:
    """Digits: the first ``k`` images (shuffled by ``seed``) train a tanh MLP; the rest are candidates.

    Args:
        k: training images, up to 1796.
        hidden: sizes of the hidden layers between the 64 pixels and the 10 classes.
        rounds: of 50 L-BFGS iterations, at the most.
        seed: of the shuffle and the initial weights.
        cache: file that keeps the trained weights.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the digits task needs scikit-learn: pip install 'curvprobe[digits]'") from error
    images, labels = load_digits(return_X_y=True)
    if not 1 <= k < len(images):
        raise ArgumentError(f"k is {k}; the digits task has {len(images)} images: expected 1 to {len(images) - 1}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed), device="cpu")
    x = torch.as_tensor(images, dtype=torch.float32, device="cpu")[order] / 16 - 0.5
    y = torch.as_tensor(labels, device="cpu")[order]
    sizes = (64, *hidden, 10)
    with torch.random.fork_rng(), torch.device("cpu"):
        layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.Tanh())]
    model = nn.Sequential(*layers[:-1])  # no activation after the last
    loss = partial(losses.cross_entropy, label_smoothing=LABEL_SMOOTHING)
    key = f"digits k={k} hidden={hidden} rounds={rounds} seed={seed}"
    load_or_train(model, lambda: _train(model, x[:k], y[:k], rounds, seed), cache, key)
    return Task(
        model=model.eval(),
        loss=loss,
        data=(x[:k], y[:k]),
        candidates=(x[k:], y[k:]),
        names=[f"{j}: a {digit}" for j, digit in enumerate(y[k:].tolist())],
        pictures=x[k:].view(-1, 8, 8),
        description=f"digits: a tanh MLP trained on {k} images of scikit-learn's digits, {len(x) - k} held out",
    )


def _train(model: nn.Sequential, x: Tensor, y: Tensor, rounds: int, seed: int) -> None:
    """Full-batch L-BFGS in float64 down to a gradient norm of about 1e-6."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in model:
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    model.double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=50, history_size=20, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x.double()), y, label_smoothing=LABEL_SMOOTHING)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with progress.bar("training the digits MLP (rounds of L-BFGS)", rounds) as advance:
        for _ in range(rounds):
            optimizer.step(closure)  # type: ignore[no-untyped-call]
            advance(1)
            norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
            if norm < 1e-6:
                break
    optimizer.zero_grad()
    model.float()
