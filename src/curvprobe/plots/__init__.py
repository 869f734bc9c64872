"""Figures of results, each 8 cm wide: on axes of your own (``ax=``), or on a new figure that :func:`save` writes.

Imports all rooms below it, results for the most part; the command, experiments and benchmarks may import it. Needs
``pip install 'curvprobe[plots]'``; takes no display, and leaves matplotlib's global state alone. The charts of a report
show the same in the same colours and words.

Example:
    >>> import torch, curvprobe as cp
    >>> from matplotlib.figure import Figure
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    >>> x = torch.linspace(-2, 2, 24, dtype=torch.float64)[:, None]
    >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[:16], x[:16].sin()))
    >>> analysis = cp.analyze(risk, (x[16:], x[16:].sin()), dim=2)
    >>> figure = Figure(figsize=(8, 3), layout="constrained")
    >>> left, right = figure.subplots(1, 2)
    >>> cp.plots.plot_validity(analysis, ax=left) is cp.plots.plot_decay(analysis, ax=right) is figure
    True
"""

from curvprobe.plots.curves import plot_concentration, plot_forecast, plot_monitor, plot_trajectory
from curvprobe.plots.drawing import map_panel, panels
from curvprobe.plots.of_analysis import plot_decay, plot_eigenvalues, plot_expected, plot_shares, plot_validity
from curvprobe.plots.planes import plot_plane, plot_surface
from curvprobe.plots.saving import FIGURES, save, save_figures

__all__ = [
    "FIGURES",
    "map_panel",
    "panels",
    "plot_concentration",
    "plot_decay",
    "plot_eigenvalues",
    "plot_expected",
    "plot_forecast",
    "plot_monitor",
    "plot_plane",
    "plot_shares",
    "plot_surface",
    "plot_trajectory",
    "plot_validity",
    "save",
    "save_figures",
]
