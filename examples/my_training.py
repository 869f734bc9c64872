"""A training of your own, for any part of a sample: how the landscape settles as it grows, and whether more data helps.

Run: curvprobe trajectory examples/my_training.py:train --ks 50,100,200 --sigma 0.01 --dim 3 --out runs/path
or:  curvprobe forecast examples/my_training.py:fit --k 200 --out runs/forecast
"""

from collections.abc import Sequence

import torch
from torch import nn

import curvprobe as cp

SAMPLE = 200


def train(k: int) -> cp.Task:
    """On the first k examples of the sample."""
    return fit(range(k))


def fit(rows: Sequence[int]) -> cp.Task:
    """Fit the sign of a noisy sum by logistic regression on these of 200 of 800 points; the others are held out."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(800, 20, generator=generator)
    y = (x[:, :4].sum(1) + torch.randn(800, generator=generator) > 0).long()
    rows = list(rows)
    model = nn.Linear(20, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        decay = 1e-3 * sum(p.square().sum() for p in model.parameters())
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows]) + decay
        loss.backward()
        return loss

    optimizer.step(closure)
    held_out = (x[SAMPLE:], y[SAMPLE:])
    return cp.Task(model, cp.losses.cross_entropy, data=(x[rows], y[rows]), candidates=held_out)
