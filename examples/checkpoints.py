"""Three checkpoints of one training, side by side, and the plane that they span.

Run: python examples/checkpoints.py runs/checkpoints
"""

import copy
import sys
from pathlib import Path

import torch
from torch import nn

import curvprobe as cp
from curvprobe.plots import plot_plane, save

STEPS = (40, 150, 1500)


def trained() -> tuple[list[nn.Module], torch.Tensor, torch.Tensor]:
    """A network at three times of its training, and the data: 200 of 400 points are trained on."""
    torch.manual_seed(0)
    x = torch.randn(400, 4)
    y = (x[:, 0] * x[:, 1] + 0.5 * torch.randn(400) > 0).long()
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    checkpoints = []
    for step in range(1, STEPS[-1] + 1):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[:200]), y[:200])
        (loss + 2e-3 * sum(p.square().sum() for p in model.parameters())).backward()
        optimizer.step()
        if step in STEPS:
            checkpoints.append(copy.deepcopy(model).eval())
    return checkpoints, x, y


def main(out: Path) -> None:
    """Analyse each checkpoint at one sigma, compare, and look at the loss between them."""
    checkpoints, x, y = trained()
    runs = []
    for step, model in zip(STEPS, checkpoints, strict=True):

        def loss(outputs: torch.Tensor, batch: object, model: nn.Module = model) -> torch.Tensor:
            penalty = sum(p.square().sum() for p in model.parameters())
            return cp.losses.cross_entropy(outputs, batch) + 2e-3 * penalty

        risk = cp.EmpiricalRisk(model, loss, (x[:200], y[:200]))
        folder = out / f"step{step}"
        found = cp.analyze(risk, (x[200:], y[200:]), dim=4, sigma=0.01, stages="quick", out=folder)
        print(f"step {step}: {found.answer.trust[0]}")
        runs.append(folder)
    print(cp.compare(runs))

    last = cp.EmpiricalRisk(checkpoints[-1], cp.losses.cross_entropy, (x[:200], y[:200]))
    directions = cp.checkpoint_directions(last, checkpoints[:2])
    names = (f"to step {STEPS[0]}", f"to step {STEPS[1]}")
    plane = cp.plane(last, directions, reach=(-0.3, 1.2), points=31, names=names)
    print(plane)
    save({"plane": plot_plane(plane)}, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
