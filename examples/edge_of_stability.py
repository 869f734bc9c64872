"""The first eigenvalue along full-batch gradient descent: it rises to 2 / lr and stays there.

Larger curvature than 2 / lr makes a step of gradient descent overshoot, and training at a fixed step keeps to that
edge: Cohen et al. (2021), "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability",
arXiv:2103.00065.
A monitor looks every 250 steps, and what it has seen is the figure.

Run: python examples/edge_of_stability.py runs/edge
"""

import sys
from pathlib import Path

import torch
from torch import nn

import curvprobe as cp

STEPS, LR = 4000, 0.2


def main(out: Path) -> None:
    """Train with a monitor, print the eigenvalue at every look over 2 / lr, and draw it."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 32)[:, None]
    y = (6 * x).sin()
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    monitor = cp.Monitor(cp.losses.mse, (x, y), every=250)
    monitor(model, step=0)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        if monitor.due(step):
            monitor(model, step=step)
    steps = [int(seen["step"]) for seen in monitor.history]
    sharpness = [seen["curvprobe/eigenvalue_1"] for seen in monitor.history]
    for step, value in zip(steps, sharpness, strict=True):
        print(f"step {step}: first eigenvalue {value:.2f}, {value * LR / 2:.2f} of 2 / lr")
    cp.plots.save({"edge_of_stability": cp.plots.plot_monitor(monitor.history, edge=2 / LR)}, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
