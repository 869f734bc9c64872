"""Numbers of the landscape in a training's own log: what one more example would do, every so many steps.

Run: python examples/training_log.py runs/log
"""

import csv
import sys
from pathlib import Path

import torch
from torch import nn

import curvprobe as cp

EVERY, STEPS, SIGMA = 200, 600, 0.01
KEPT = ("loss", "gradient_norm", "eigenvalue_1", "expected_delta2_subspace", "expected_shape", "quadratic_error")


def main(out: Path) -> None:
    """Train, and write a row of metrics at every checkpoint; any experiment logger takes the same dictionary."""
    torch.manual_seed(0)
    x = torch.randn(300, 6)
    y = x[:, :1].sin() + 0.1 * torch.randn(300, 1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "log.csv", "w", newline="") as file:
        log = csv.DictWriter(file, ["step", *KEPT, "trust"])
        log.writeheader()
        for step in range(1, STEPS + 1):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[:200]), y[:200]).backward()
            optimizer.step()
            if step % EVERY == 0:
                risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[:200], y[:200]))  # its own copy of the weights
                found = cp.analyze(risk, (x[200:], y[200:]), dim=3, sigma=SIGMA, stages="quick")
                numbers = {name: found.metrics()[f"curvprobe/{name}"] for name in KEPT}
                log.writerow({"step": step, **numbers, "trust": found.answer.word})
                print(f"step {step}: {found.answer.findings[0]}\n  {found.answer.trust[0]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
