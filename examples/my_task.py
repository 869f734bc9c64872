"""A task of your own: a model, its loss, the sample it was trained on, and examples it was not.

Run: curvprobe run examples/my_task.py:task --dim 5 --out runs/mine
"""

import torch
from torch import nn

import curvprobe as cp


def task() -> cp.Task:
    """Classify points by the sign of a product, with a small network trained on 200 of 300."""
    torch.manual_seed(0)
    x = torch.randn(300, 5)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:200]), y[:200]).backward()
        optimizer.step()
    return cp.Task(model.eval(), cp.losses.cross_entropy, data=(x[:200], y[:200]), candidates=(x[200:], y[200:]))
