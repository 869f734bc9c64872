"""A convolutional network with batch normalisation in Lightning's Trainer, with a callback that looks at the landscape.

Run: python examples/lightning_cnn.py runs/lightning
"""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import curvprobe as cp
from curvprobe.integrations.lightning import CurvatureCallback


class Digits(LightningModule):
    """Images of 8 x 8 pixels, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 10); the monitor calls the module like this."""
        result: Tensor = self.net(x)
        return result

    def training_step(self, batch: Any, _: int) -> Tensor:
        """Cross-entropy of a batch."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(out: Path) -> None:
    """Train for ninety steps; the callback looks every thirty, in eval mode, and its numbers go to the logger."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    monitor = cp.Monitor(cp.losses.cross_entropy, (x[:64], y[:64]), (x[1500:1564], y[1500:1564]), every=30)
    trainer = Trainer(
        max_steps=90,
        accelerator="cpu",
        callbacks=[CurvatureCallback(monitor)],
        logger=CSVLogger(out),
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Digits(), DataLoader(TensorDataset(x[:1500], y[:1500]), batch_size=32, shuffle=True))
    for seen in monitor.history:
        print(
            f"step {seen['step']:.0f}: loss {seen['curvprobe/loss']:.2f}, first eigenvalue "
            f"{seen['curvprobe/eigenvalue_1']:.2f}, one more example moves the loss by {seen['curvprobe/rms']:.1e}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
