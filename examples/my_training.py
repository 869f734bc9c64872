"""A training of your own, for any sample size: how the landscape settles while the weights follow the sample.

Run: curvprobe trajectory examples/my_training.py:train --ks 50,100,200 --sigma 0.01 --dim 3 --out runs/path
"""

import torch
from torch import nn

import curvprobe as cp


def train(k: int) -> cp.Task:
    """Fit the sign of a noisy sum with logistic regression on the first k of 300 points."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator)
    y = (x[:, :2].sum(1) + torch.randn(300, generator=generator) > 0).long()
    model = nn.Linear(5, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        decay = 1e-3 * sum(p.square().sum() for p in model.parameters())
        loss = nn.functional.cross_entropy(model(x[:k]), y[:k]) + decay
        loss.backward()
        return loss

    optimizer.step(closure)
    return cp.Task(model, cp.losses.cross_entropy, data=(x[:k], y[:k]), candidates=(x[k:], y[k:]))
