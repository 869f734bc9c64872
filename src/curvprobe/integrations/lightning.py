"""A monitor in the Trainer of Lightning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from curvprobe.analysis.monitor import Monitor
from curvprobe.errors import ArgumentTypeError
from curvprobe.integrations.figure import NAME, figure_of


class CurvatureCallback(Callback):
    """Calls a monitor every so many optimizer steps, and gives what it returns to all loggers of the Trainer.

    Training is what it would be without: weights, optimizer, random numbers and the order of the data stay the same.
    At its end loggers of TensorBoard get the eigenvalues along the steps as a figure.

    Args:
        monitor: a :class:`curvprobe.Monitor`; the model that it is called with is the Lightning module.
    """

    def __init__(self, monitor: Monitor) -> None:
        if not isinstance(monitor, Monitor):
            raise ArgumentTypeError(f"monitor is a {type(monitor).__name__}; expected CurvatureCallback(monitor)")
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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once, when all steps are done."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and (figure := figure_of(self.monitor)) is not None:
                logger.experiment.add_figure(NAME, figure, trainer.global_step)
