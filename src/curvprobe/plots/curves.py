"""The figures of a concentration curve and of a trajectory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curvprobe.analysis.answer import short
from curvprobe.plots.drawing import at_ends, dress, last, logarithmic, on, percent, positive, reach
from curvprobe.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from curvprobe.analysis.concentration import ConcentrationCurve
    from curvprobe.analysis.trajectory import Trajectory

_MARKERS = "osD^vP*X"


def plot_concentration(curve: ConcentrationCurve, ax: Axes | None = None) -> Figure:
    """Share of the full-space shape signal in the first D directions of every subspace, beside D / N."""
    figure, axes = on(ax, left=0.7, right=0.92)
    dims, shapes, errors = curve.dims.numpy(), curve.shape.numpy(), curve.shape_stderr.numpy()
    labels = []
    for i, (name, share, error) in enumerate(zip(curve.names, shapes, errors, strict=True)):
        beside = dims * 1.04 ** (i - (len(shapes) - 1) / 2)  # so that none hides another
        color, marker = style.MANY[i % len(style.MANY)], _MARKERS[i % len(_MARKERS)]
        share = positive(share)
        look: dict[str, Any] = {"marker": marker, "markersize": 3, "capsize": 1.5, "linewidth": 1, "elinewidth": 0.8}
        axes.errorbar(beside, share, yerr=reach(share, error), color=color, label=name, **look)
        labels.append((*last(beside, share), name, color))
    axes.plot(dims, curve.null.numpy(), "--", color="black", linewidth=0.8, label="D / N")
    labels.append((float(dims[-1]), float(curve.null[-1]), "D / N", "black"))
    logarithmic(axes.xaxis)
    logarithmic(axes.yaxis, percent)
    at_ends(axes, labels)
    title = f"sigma {short(curve.sigma)}, N = {curve.num_params:,}; bars: stderr"
    dress(axes, style.DIRECTIONS, style.CONCENTRATION, title)
    return figure


def plot_trajectory(path: Trajectory, ax: Axes | None = None) -> Figure:
    """Landscape dispersion against the sample size, with its parts and the fitted power law."""
    figure, axes = on(ax, right=0.72)
    ks, value, error = path.ks.numpy(), path.dispersion.numpy(), path.dispersion_stderr.numpy()
    labels = [(float(ks[-1]), float(value[-1]), "whole V", style.WHOLE)]
    for part, (name, color) in enumerate(style.PARTS.items()):
        line = positive(path.dispersion_parts[:, part].numpy())
        axes.plot(ks, line, ".-", color=color, linewidth=1, markersize=3, label=name)
        labels.append((*last(ks, line), name, color))
    look: dict[str, Any] = {"markersize": 4, "capsize": 2, "elinewidth": 0.8}
    axes.errorbar(ks, value, yerr=reach(value, error), fmt="o", color=style.WHOLE, label="V", **look)
    low, high = path.fit.interval
    axes.plot(ks, path.fit.at_one * ks**path.fit.exponent, "--", color="black", linewidth=0.8, label="fit")
    logarithmic(axes.xaxis)
    logarithmic(axes.yaxis)
    at_ends(axes, labels)
    fitted = f"dashed: k^{path.fit.exponent:.2f} [{low:.2f}, {high:.2f}]; bars: stderr"
    dress(axes, style.K, "dispersion V (squared loss units)", fitted)
    return figure
