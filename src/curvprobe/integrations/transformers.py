"""A monitor in the Trainer of Hugging Face."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback

from curvprobe.analysis.monitor import Monitor
from curvprobe.errors import ArgumentTypeError
from curvprobe.integrations.figure import NAME, figure_of


class CurvatureCallback(TrainerCallback):
    """Calls a monitor every so many optimizer steps, and logs what it returns as the Trainer logs its own numbers.

    They go to everything that the Trainer reports to (``report_to=``) and into ``trainer.state.log_history``. Training
    is what it would be without: weights, optimizer, random numbers and the order of the data stay the same. With
    the last step TensorBoard gets the eigenvalues along all steps as a figure.

    Args:
        trainer: to which it is added, ``trainer.add_callback(CurvatureCallback(trainer, monitor))``.
        monitor: a :class:`curvprobe.Monitor`; the model that it is called with is the Trainer's, unwrapped.
    """

    def __init__(self, trainer: Trainer, monitor: Monitor) -> None:
        if not isinstance(trainer, Trainer) or not isinstance(monitor, Monitor):
            found = f"{type(trainer).__name__}, {type(monitor).__name__}"
            raise ArgumentTypeError(f"it was given {found}; expected CurvatureCallback(trainer, monitor)")
        self.trainer, self.monitor = trainer, monitor

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After every optimizer step; on the main process only."""
        if state.is_world_process_zero and self.monitor.due(state.global_step):
            model = self.trainer.accelerator.unwrap_model(kwargs["model"], keep_fp32_wrapper=True)
            asked = control.should_log
            self.trainer.log(self.monitor(model, step=state.global_step))
            control.should_log = asked  # a log of one's own takes the request for the Trainer's away
        if state.is_world_process_zero and control.should_training_stop:  # at its end the writer is closed already
            self._draw(state.global_step)

    def _draw(self, step: int) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            writer = callback.tb_writer if isinstance(callback, TensorBoardCallback) else None
            if writer is not None and (figure := figure_of(self.monitor)) is not None:
                writer.add_figure(NAME, figure, step)
