"""A monitor in the Trainer of Lightning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from curvprobe.analysis.monitor import Monitor


class CurvatureCallback(Callback):
    """Calls a monitor every so many optimizer steps, and gives what it returns to all loggers of the Trainer.

    Training is what it would be without: weights, optimizer, random numbers and the order of the data stay the same.

    Args:
        monitor: a :class:`curvprobe.Monitor`; the model that it is called with is the Lightning module.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self._last = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After every batch; gradients may be accumulated over several of them."""
        step = trainer.global_step
        if not trainer.is_global_zero or step == self._last or not self.monitor.due(step):
            return
        self._last = step
        metrics = self.monitor(pl_module, step=step)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
