"""What a training's end leaves in TensorBoard, where it can be drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from curvprobe.analysis.monitor import PREFIX, Monitor
from curvprobe.errors import MissingExtraError
from curvprobe.plots import plot_monitor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = f"{PREFIX}eigenvalues"
"""By which TensorBoard calls it."""


def figure_of(monitor: Monitor) -> Figure | None:
    """The eigenvalues along the steps; None where nothing was seen or nothing draws, which must not end a training."""
    if not any(math.isfinite(seen.get(f"{PREFIX}eigenvalue_1", math.nan)) for seen in monitor.history):
        return None
    try:
        return plot_monitor(monitor.history)
    except MissingExtraError:
        return None
