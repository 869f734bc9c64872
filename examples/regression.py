"""Regression with a trained network: squared errors as losses, real data that scikit-learn ships.

Run: curvprobe run examples/regression.py:task --dim 5 --out runs/diabetes
"""

import torch
from sklearn.datasets import load_diabetes
from torch import nn

import curvprobe as cp


def task() -> cp.Task:
    """Progression of diabetes from ten measurements, in standard deviations; a small network, 300 of 442 patients."""
    found = load_diabetes(as_frame=False)
    x = torch.as_tensor(found.data / found.data.std(0), dtype=torch.float64)
    y = torch.as_tensor((found.target - found.target.mean()) / found.target.std(), dtype=torch.float64)[:, None]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    training, unseen = order[:300], order[300:]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    decay = 1e-2  # without it the network would go on for ever; it is a part of the loss, as in training

    def loss(outputs: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return cp.losses.mse(outputs, batch) + decay * sum(p.square().sum() for p in model.parameters())

    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3000, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(model(x[training]), (x[training], y[training])).mean()
        value.backward()
        return value

    optimizer.step(closure)
    return cp.Task(
        model.eval(),
        loss,
        data=(x[training], y[training]),
        candidates=(x[unseen], y[unseen]),
        description="diabetes: 300 patients, squared error in units of the variance, with weight decay",
    )
