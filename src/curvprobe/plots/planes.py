"""The figures of the loss over a plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy

from curvprobe.analysis.answer import short
from curvprobe.plots.drawing import TEXT, Numbers, dress, on
from curvprobe.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from curvprobe.probing.plane import Plane


def plot_plane(found: Plane, ax: Axes | None = None, *, sigma: float | None = None) -> Figure:
    """The loss over a plane as bands of equal height, and its quadratic model as dashed lines at the same heights.

    Args:
        found: see :func:`curvprobe.plane`.
        ax: to draw on; None makes a figure.
        sigma: standard deviation of a probe, drawn as a circle about the solution.
    """
    figure, axes = on(ax, right=0.9)
    x, y = found.x.numpy(), found.y.numpy()
    loss = numpy.ma.masked_invalid(found.loss.numpy() - found.at_solution)
    model = found.model.numpy() - found.at_solution
    low, high = float(min(loss.min(), model.min())), _ceiling(loss.compressed())
    levels = numpy.linspace(0.0 if abs(low) < 1e-3 * high else low, high, 13)
    bands = axes.contourf(x, y, loss, levels=levels, colors=_heights(len(levels) + 1), extend="both")
    axes.contour(x, y, model, levels=levels[1:], colors="black", linewidths=0.6, linestyles="dashed")
    axes.plot(0, 0, "+", color=style.ACCENT, markersize=7, markeredgewidth=1.2)
    if sigma is not None:
        around = numpy.linspace(0, 2 * numpy.pi, 100)
        across, up = (sigma / length for length in found.lengths)
        axes.plot(across * numpy.cos(around), up * numpy.sin(around), color=style.ACCENT, linewidth=1)
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), box_aspect=1, anchor="W")
    axes.locator_params(nbins=5)
    bar = figure.colorbar(bands, cax=axes.inset_axes((1.05, 0, 0.06, 1)), ticks=levels[::3])
    bar.ax.set_yticks(levels[::3], [short(level) for level in levels[::3]], fontsize=TEXT)
    bar.set_label(style.RISE, fontsize=TEXT)
    circle = "" if sigma is None else f"; circle: sigma {short(sigma)}"
    dress(axes, found.names[0], found.names[1], f"Dashed: its quadratic model{circle}")
    return figure


def _heights(count: int) -> Numbers:
    """Colours from low, which is pale, to high: not so dark that black lines on them would be lost."""
    from matplotlib import colormaps

    return colormaps["YlGnBu"](numpy.linspace(0, 0.75, count))


def _ceiling(finite: Numbers) -> float:
    """The largest loss, or where a few points rise far above all others, some way above these."""
    low, most = float(finite.min()), float(numpy.quantile(finite, 0.9))
    return min(float(finite.max()), low + 4 * (most - low)) if most > low else float(finite.max()) + 1e-12


def plot_surface(found: Plane) -> Figure:
    """The loss over a plane as a surface in three dimensions, with the solution marked."""
    figure, _ = on(None)
    figure.clear()
    axes: Any = figure.add_axes((0.02, 0.1, 0.8, 0.9), projection="3d")
    x, y = numpy.meshgrid(found.x.numpy(), found.y.numpy())
    rise = found.loss.numpy() - found.at_solution
    ceiling = _ceiling(rise[numpy.isfinite(rise)])
    axes.plot_surface(x, y, numpy.clip(rise, None, ceiling), cmap="YlGnBu", linewidth=0, rcount=100, ccount=100)
    axes.plot([0], [0], [0], "o", color=style.ACCENT, markersize=3, zorder=5)
    dress(axes, found.names[0], found.names[1], "")
    axes.set_zlabel(style.RISE, fontsize=TEXT, labelpad=2)
    axes.zaxis.set_major_formatter(lambda value, _: short(value))
    for side, pad in (("x", -2), ("y", -2), ("z", 2)):
        axes.tick_params(axis=side, pad=pad)
    axes.xaxis.labelpad = axes.yaxis.labelpad = -4
    axes.locator_params(nbins=5)
    axes.view_init(elev=35, azim=-60)
    return figure
