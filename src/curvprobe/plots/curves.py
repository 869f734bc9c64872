"""The figures of a concentration curve, of a trajectory, of a forecast, and of what a monitor has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy

from curvprobe.analysis.answer import short
from curvprobe.analysis.monitor import PREFIX
from curvprobe.errors import ArgumentError
from curvprobe.plots.drawing import at_ends, dress, last, logarithmic, on, percent, positive, reach
from curvprobe.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from curvprobe.analysis.concentration import ConcentrationCurve
    from curvprobe.analysis.trajectory import Trajectory
    from curvprobe.forecasting.result import Forecast

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


def plot_forecast(forecast: Forecast, ax: Axes | None = None) -> Figure:
    """Held-out loss against the examples trained on, and what is forecast for twice and four times as many."""
    figure, axes = on(ax, right=0.55)
    look: dict[str, Any] = {"markersize": 4, "capsize": 2, "elinewidth": 0.8}
    sizes, losses = forecast.sizes.numpy(), forecast.losses.numpy()
    axes.errorbar(sizes, losses, yerr=forecast.stderr.numpy(), fmt="o-", linewidth=0.8, color=style.MUTED, **look)
    labels = [(float(sizes[0]), float(losses[0]), "measured", style.MUTED)]
    if ahead := forecast.ahead():
        ks, found = numpy.array([k for k, *_ in ahead]), numpy.array([loss for _, loss, _ in ahead])
        low, high = numpy.array([ends for *_, ends in ahead]).T
        axes.errorbar(ks, found, yerr=numpy.stack([found - low, high - found]), fmt="s", color=style.WHOLE, **look)
        labels.append((float(ks[-1]), float(found[-1]), "forecast", style.WHOLE))
    logarithmic(axes.xaxis)
    at_ends(axes, labels)
    title = "no forecast: see the text" if forecast.reasons else "bars: stderr; of the forecast 90 %"
    dress(axes, style.K, style.HELD_OUT, title)
    return figure


def plot_monitor(history: Sequence[Mapping[str, float]], edge: float | None = None, ax: Axes | None = None) -> Figure:
    """Eigenvalues along the steps of a training, as a monitor's ``history`` has them.

    ``edge`` draws a line: 2 / lr of plain gradient descent, beyond which its steps overshoot.

    Example:
        >>> seen = [{"step": step, "curvprobe/eigenvalue_1": 1.0 + step} for step in (0.0, 50.0, 100.0)]
        >>> plot_monitor(seen, edge=80.0).axes[0].get_xlabel()
        'training step'
    """
    names = sorted({name for seen in history for name in seen if name.startswith(f"{PREFIX}eigenvalue_")}, key=_order)
    if not names:
        raise ArgumentError("the history has no eigenvalues; expected that of a Monitor that was called")
    figure, axes = on(ax, right=0.7)
    steps = numpy.array([seen.get("step", at) for at, seen in enumerate(history)])
    labels = []
    for at, name in enumerate(names):
        values = numpy.array([seen.get(name, math.nan) for seen in history])
        color, rank = style.MANY[at % len(style.MANY)], name.removeprefix(f"{PREFIX}eigenvalue_")
        axes.plot(steps, values, ".-", color=color, linewidth=1, markersize=3)
        labels.append((*last(steps, values), rank, color))
    if edge is not None:
        axes.axhline(edge, color=style.ACCENT, linestyle="--", linewidth=0.9)
        labels.append((float(steps[-1]), edge, "2 / lr", style.ACCENT))
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), None)
    at_ends(axes, labels)
    dress(axes, style.STEP, style.EIGENVALUE, "of the monitor's sample")
    return figure


def _order(name: str) -> tuple[bool, int]:
    """Of the eigenvalues: by their number, and the lowest behind."""
    rank = name.rpartition("_")[2]
    return (False, int(rank)) if rank.isdecimal() else (True, 0)
