"""What the figures have in common: their size, scales, labels at the curves, and the shading of sigmas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy

from curvprobe.analysis.answer import short
from curvprobe.criteria.verdicts import QuadraticValidity
from curvprobe.errors import MissingExtraError
from curvprobe.report.style import MUTED, SHADES, spans

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = numpy.ndarray[Any, Any]

WIDTH, HEIGHT = 3.15, 2.4
"""Inches: a figure is 8 cm wide, a column of print."""

DPI = 300

TEXT = 7.0
"""Points of all text, at that width."""

LINE = 1.2
"""Distance of two lines of text, in heights of the text."""

LEFT, BOTTOM, TOP = 0.56, 0.36, 0.2
"""Inches about the axes of a figure of its own."""


def panels(rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (5.2, 3.6)) -> tuple[Figure, Any]:
    """A figure of so many panels, each of so many inches, and its axes as an array (rows, columns).

    Example:
        >>> figure, axes = panels(1, 2)
        >>> axes.shape
        (1, 2)
    """
    # No pyplot: no window, no global state.
    figure = _figure(figsize=(size[0] * columns, size[1] * rows), dpi=150, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _figure(**options: Any) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("figures need matplotlib: pip install 'curvprobe[plots]'") from error
    return Figure(**options)


def on(ax: Axes | None, *, left: float = LEFT, right: float = 0.1, top: float = TOP) -> tuple[Figure, Axes]:
    """Given axes with their figure, or new ones with so many inches about them.

    The margins are fixed: to look for them takes longer than to draw.
    """
    if ax is not None:
        return ax.figure, ax  # type: ignore[return-value]
    figure = _figure(figsize=(WIDTH, HEIGHT), dpi=DPI)
    size = (1 - (left + right) / WIDTH, 1 - (BOTTOM + top) / HEIGHT)
    return figure, figure.add_axes((left / WIDTH, BOTTOM / HEIGHT, *size))


def dress(axes: Axes, x: str, y: str, title: str, *, above: float = 0.0) -> None:
    """Names of the axes, and the title so many lines above what it stands over; no lines where nothing is measured."""
    axes.set_xlabel(x, fontsize=TEXT, labelpad=2)
    axes.set_ylabel(y, fontsize=TEXT, labelpad=2)
    axes.set_title(title, fontsize=TEXT, pad=3 + above * TEXT * LINE, loc="left")
    axes.tick_params(labelsize=TEXT, length=2.5, pad=2)
    axes.spines[["top", "right"]].set_visible(False)


def tick(value: float) -> str:
    """A number at an axis.

    Example:
        >>> [tick(x) for x in (1e-5, 0.01, 20.0, 1000.0)]
        ['1e-5', '0.01', '20', '1,000']
    """
    return short(value) if abs(value) < 1000 else f"{value:,.0f}"


def percent(share: float) -> str:
    """A share, never rounded to all.

    Example:
        >>> [percent(x) for x in (1e-6, 0.002, 0.05, 0.9992, 1.0)]
        ['1e-4 %', '0.2 %', '5 %', '99.9 %', '100 %']
    """
    value = 100 * share
    return f"{short(value)} %" if not 99 <= value < 100 else f"{math.floor(10 * value) / 10:.1f} %"


def logarithmic(axis: Any, write: Any = tick, most: int = 7) -> None:
    """A logarithmic scale with numbers as the text writes them, and no ticks but these: both is fast, too.

    Call it when all is drawn: where the axis is short, there are numbers between the powers of ten.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = sorted(axis.get_view_interval())
    between = (1.0, 2.0, 5.0) if high < 50 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=between, numticks=most))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def reach(values: Numbers, errors: Numbers) -> Numbers:
    """Errors below and above positive values (2, n), for a logarithmic scale: none to zero. NaN is none."""
    known = numpy.nan_to_num(errors, nan=0.0, posinf=0.0)
    return numpy.stack([numpy.minimum(known, 0.9 * values), known])


def positive(values: Numbers) -> Numbers:
    """What a logarithmic scale shows; NaN for the rest, which leaves a gap."""
    return numpy.where(numpy.isfinite(values) & (values > 0), values, numpy.nan)


def last(x: Numbers, y: Numbers) -> tuple[float, float]:
    """The last point of a curve."""
    shown = numpy.flatnonzero(numpy.isfinite(y))
    at = int(shown[-1]) if len(shown) else len(x) - 1
    return float(x[at]), float(y[at]) if len(shown) else 1.0


def band(axes: Axes, x: Numbers, line: Numbers, ends: tuple[Numbers, Numbers], color: str, **options: Any) -> None:
    """A curve, and what lies within its errors."""
    axes.fill_between(x, *ends, color=color, alpha=0.3, linewidth=0)
    axes.plot(x, line, color=color, **options)


def at_ends(axes: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, color) to the right of every point, as near to its height as the others leave room.

    Call it when the limits stand.
    """
    points = axes.transData.transform([(x, y) for x, y, _, _ in labels])[:, 1] * 72 / axes.figure.dpi
    needed = [TEXT * LINE * (1 + text.count("\n")) for _, _, text, _ in labels]
    for (x, y, text, color), height, wanted in zip(labels, apart(points.tolist(), needed), points, strict=True):
        far = abs(height - wanted) > 2
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 1}
        where: dict[str, Any] = {"xytext": (9 if far else 4, height - wanted), "textcoords": "offset points"}
        axes.annotate(
            text,
            (x, y),
            **where,
            color=ink(color),
            fontsize=TEXT,
            va="center",
            annotation_clip=False,
            arrowprops=line if far else None,
        )


def ink(color: str) -> tuple[float, ...]:
    """A colour dark enough for text."""
    from matplotlib.colors import to_rgb

    return tuple(0.75 * part for part in to_rgb(color))


def apart(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Centres of stretches of these sizes that do not overlap, as near to where they are wanted as can be.

    Example:
        >>> apart([0.0, 1.0, 50.0], [10.0, 10.0, 10.0])
        [-4.5, 5.5, 50.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    offsets, at = [], 0.0
    for before, i in zip([None, *order], order, strict=False):
        at += 0.0 if before is None else (sizes[before] + sizes[i]) / 2
        offsets.append(at)
    groups: list[list[float]] = []  # neighbours that touch move together, by their mean
    for i, offset in zip(order, offsets, strict=True):
        groups.append([wanted[i] - offset])
        while len(groups) > 1 and _mean(groups[-2]) > _mean(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    shifts = [_mean(group) for group in groups for _ in group]
    placed = dict(zip(order, (s + o for s, o in zip(shifts, offsets, strict=True)), strict=True))
    return [placed[i] for i in range(len(wanted))]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def chosen(axes: Axes, sigma: float, color: str) -> None:
    """A line at the sigma that was taken, named at the upper edge."""
    axes.axvline(sigma, color=color, linewidth=0.9, zorder=5)
    where = axes.get_xaxis_transform()
    axes.text(
        sigma, 1.015, f"sigma {short(sigma)}", transform=where, fontsize=TEXT, color=color, ha="center", va="bottom"
    )


def shade(axes: Axes, validity: QuadraticValidity, over: str = MUTED, zorder: float = 0) -> None:
    """Lay a shade over sigmas at which the quadratic model is not valid. Call it when the limits stand."""
    for verdict, start, end in spans(validity, *axes.get_xlim()):
        if verdict != "valid":
            axes.axvspan(start, end, color=over, alpha=SHADES[verdict], linewidth=0, zorder=zorder, label=verdict)


def name_verdicts(axes: Axes, validity: QuadraticValidity) -> None:
    """Write every stretch's verdict where its error is not: above where the model is valid, below elsewhere."""
    first, end_of_all = axes.get_xlim()
    points = 72 * axes.get_position().width * axes.figure.get_size_inches()[0]  # type: ignore[union-attr]
    for verdict, start, end in spans(validity, first, end_of_all):
        room = points * math.log(end / start) / math.log(end_of_all / first)
        if room < TEXT:
            continue
        height, side = (0.97, "top") if verdict == "valid" else (0.03, "bottom")
        look: dict[str, Any] = {"ha": "center", "va": side, "fontsize": TEXT}
        look["rotation"] = 90 if room < 0.6 * TEXT * len(verdict) else 0
        axes.text(math.sqrt(start * end), height, verdict, transform=axes.get_xaxis_transform(), zorder=6, **look)


def map_panel(figure: Figure, axes: Axes, x: Sequence[float], y: Sequence[float], values: Numbers, title: str) -> None:
    """Positive values (len(y), len(x)) as colours on a logarithmic scale, x logarithmic and y by rank."""
    from matplotlib.colors import LogNorm

    rows = numpy.arange(len(y))
    mesh = axes.pcolormesh(x, rows, values, norm=LogNorm(), shading="nearest")
    axes.set_xscale("log")
    axes.set_yticks(rows, [str(value) for value in y])
    axes.set_title(title, fontsize="medium")
    figure.colorbar(mesh, ax=axes)
