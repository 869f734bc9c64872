"""The figures of an analysis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy

from curvprobe.analysis.answer import ranged, short
from curvprobe.analysis.result import Analysis
from curvprobe.criteria.expected import PARTS, SOURCES
from curvprobe.numerics.intervals import NORMAL
from curvprobe.plots.drawing import (
    TEXT,
    Numbers,
    at_ends,
    band,
    chosen,
    dress,
    last,
    logarithmic,
    name_verdicts,
    on,
    percent,
    positive,
    reach,
    shade,
)
from curvprobe.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from curvprobe.criteria.expected import ExpectedCriterion
    from curvprobe.criteria.sample_size import RequiredSampleSize


def plot_validity(analysis: Analysis, ax: Axes | None = None) -> Figure:
    """Error of the quadratic model against sigma: whether the other figures may be believed.

    The curve that the verdicts go by is thick and on top, with its standard errors; sigmas at which the model is not
    valid are shaded.
    """
    found = analysis.validity
    sigmas, error = found.sigmas.numpy(), positive(found.error.numpy())
    figure, axes = on(ax, right=0.66, top=0.34)
    labels = []
    if found.increment_error is not None:
        other = positive(found.loss_error.numpy())
        axes.plot(sigmas, other, "s-", color=style.MUTED, markersize=2, linewidth=0.8)
        labels.append((*last(sigmas, other), style.LOSS, style.MUTED))
    judged = style.LOSS if found.increment_error is None else style.INCREMENT
    look: dict[str, Any] = {"color": style.WHOLE, "markersize": 3.5, "linewidth": 1.6, "capsize": 2, "zorder": 4}
    axes.errorbar(sigmas, error, yerr=reach(error, found.stderr.numpy()), fmt="o-", **look)
    labels.append((*last(sigmas, error), f"{judged}\n(verdict)", style.WHOLE))
    axes.axhline(found.threshold, color="black", linewidth=0.8, linestyle="--")
    logarithmic(axes.xaxis)
    logarithmic(axes.yaxis, percent)
    axes.set_xlim(min(sigmas[0], analysis.sigma) / 3, max(sigmas[-1], analysis.sigma) * 1.5)
    labels.append((0.0, found.threshold, f"threshold\n{percent(found.threshold)}", "black"))
    shade(axes, found)
    name_verdicts(axes, found)
    chosen(axes, analysis.sigma, style.ACCENT)
    at_ends(axes, [(axes.get_xlim()[1], y, text, color) for _, y, text, color in labels])
    draws = " or ".join(str(count) for count in sorted(set(found.num_probes.tolist())))
    title = f"Whether to trust it: {draws} draws; bars: stderr"
    dress(axes, style.SIGMA, style.ERROR, title, above=1)
    return figure


def plot_decay(analysis: Analysis, ax: Axes | None = None) -> Figure:
    """How far one more example moves the loss, against the sample size.

    Every curve falls as 1/(k + 1) at fixed weights whatever the model, which the dashed guide shows. What is not
    arithmetic is the height: the value at the whole sample, with its 95 % interval. A tolerance that was given is a
    dotted line, with the interval of the size that meets it. Bands are standard errors.
    """
    curve = analysis.decay
    ks = curve.ks.numpy()
    figure, axes = on(ax)
    labels = [(float(ks[-1]), float(curve.delta1[-1]) / 1.5, "Delta_1", style.MUTED)]  # below where the guide goes
    axes.plot(ks, curve.delta1.numpy(), color=style.MUTED, linewidth=0.8)
    for m, dim in enumerate(curve.dims.tolist()):
        line, ends = _root(curve.shape[:, m, 0].numpy(), curve.shape_stderr[:, m, 0].numpy())
        band(axes, ks, line, ends, style.SHAPE, linewidth=1.2 if m + 1 == len(curve.dims) else 0.6)
        labels.append((*last(ks, line), f"shape, D={dim}", style.SHAPE))
    guided = line
    line, ends = _root(curve.value[:, -1, 0].numpy(), curve.stderr[:, -1, 0].numpy(), curve.p)
    if analysis.required is None or analysis.required.of == "total":
        guided = line
    band(axes, ks, line, ends, style.WHOLE, linewidth=1.6)
    labels.append((*last(ks, line), "whole", style.WHOLE))
    reached = _tolerance(axes, analysis, analysis.required)
    beyond = numpy.geomspace(ks[0], max(reached, 4.0 * ks[-1]), 60)
    axes.plot(beyond, guided[-1] * (ks[-1] + 1) / (beyond + 1), "--", color="black", linewidth=0.8)
    logarithmic(axes.xaxis)
    logarithmic(axes.yaxis)
    axes.set_xlim(ks[0] / 1.3, max(reached * 4, float(ks[-1]) * 40))
    bottom, top = axes.get_ylim()
    room = 0.2 if analysis.required else 0.0  # to write the tolerance
    axes.set_ylim(bottom * (bottom / top) ** room, top)
    _value(axes, analysis, line[-1])
    where: dict[str, Any] = {"transform": axes.transAxes, "fontsize": TEXT, "ha": "right", "va": "top"}
    axes.text(0.98, 0.97, "dashed: 1/(k + 1), arithmetic,\nthe same for any model", **where)
    at_ends(axes, [(x, y, text, color) for x, y, text, color in labels if math.isfinite(y) and y > 0])
    what = "rms" if curve.p == 2 else f"order {curve.p:g}"
    title = f"Of {analysis.num_candidates:,} next examples, sigma {short(analysis.sigma)}"
    dress(axes, style.K, f"{style.RMS} ({what})", title)
    return figure


def _root(value: Numbers, stderr: Numbers, p: float = 2.0) -> tuple[Numbers, tuple[Numbers, Numbers]]:
    """Of a mean power, in loss units, and the ends of its standard error."""
    value = positive(value)
    below, above = reach(value, stderr)
    return value ** (1 / p), ((value - below) ** (1 / p), (value + above) ** (1 / p))


def _value(axes: Axes, analysis: Analysis, value: float) -> None:
    """The criterion at the whole sample, with its interval where there is one."""
    k, expected = analysis.k, analysis.expected
    said = f"k = {k:,}:\n{short(value)}"
    if expected is not None and expected.p == analysis.decay.p:
        value, (low, high) = expected.rms, expected.rms_interval
        said = f"k = {k:,}:\n{ranged(value, (low, high))}"
        ends = [[value - low], [high - value if math.isfinite(high) else 9 * value]]
        axes.errorbar([k], [value], yerr=ends, color=style.WHOLE, capsize=3, zorder=5)
        if not math.isfinite(high):
            axes.plot([k], [10 * value], "^", color=style.WHOLE, markersize=4)
    axes.plot([k], [value], "o", color=style.WHOLE, markersize=4, zorder=5)
    line = {"arrowstyle": "-", "color": style.WHOLE, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}
    where: dict[str, Any] = {"xytext": (0.98, 0.64), "textcoords": "axes fraction", "ha": "right", "va": "bottom"}
    axes.annotate(said, (k, value), color=style.WHOLE, arrowprops=line, fontsize=TEXT, **where)


def _tolerance(axes: Axes, analysis: Analysis, required: RequiredSampleSize | None) -> float:
    """The tolerance and the sizes that meet it, in the words of the answer; returns the largest size that is shown."""
    if required is None:
        return 0.0
    axes.axhline(required.tolerance, color=style.ACCENT, linewidth=0.8, linestyle=":")
    said = "dotted: " + analysis.answer.tolerance.replace("; ", ";\n")
    axes.text(0.02, 0.02, said, transform=axes.transAxes, fontsize=TEXT, color=style.ACCENT, va="bottom")
    if required.at_least is None:
        return 0.0
    low, high = required.interval
    shown = high if math.isfinite(high) else 10 * low
    look: dict[str, Any] = {"color": style.ACCENT, "zorder": 5}
    axes.plot([low, shown], [required.tolerance] * 2, linewidth=2.5, solid_capstyle="butt", **look)
    if required.value is not None:
        axes.plot([required.value], [required.tolerance], "|", markersize=8, **look)
    return float(shown)


def plot_shares(analysis: Analysis, ax: Axes | None = None) -> Figure:
    """What the criterion consists of, against sigma, at the whole sample.

    Bars at the border of level and shape are at most one standard error of the shape's share. Sigmas at which the
    quadratic model is not valid are pale.
    """
    curve = analysis.shares
    sigmas = curve.sigmas.numpy()
    parts = {name: getattr(curve, name)[0, -1].numpy() for name in style.PARTS}
    total = numpy.sum(list(parts.values()), axis=0)
    figure, axes = on(ax, right=0.58, top=0.34)
    bottom = numpy.zeros_like(sigmas)
    for name, color in style.PARTS.items():
        share = parts[name] / total
        axes.fill_between(sigmas, bottom, bottom + share, facecolor=color, edgecolor="white", linewidth=0.6)
        bottom = bottom + share
    level = parts["level"] / total
    # Of the ratio of shape and whole, whatever their correlation: |ds| / v + s |dv| / v^2.
    error = (curve.shape_stderr[0, -1].numpy() + (1 - level) * curve.stderr[0, -1].numpy()) / total
    ends = numpy.minimum(error, numpy.maximum([level, 1 - level], 0))
    axes.errorbar(sigmas, level, yerr=ends, fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5, zorder=4)
    logarithmic(axes.xaxis)
    axes.set(xlim=(sigmas[0], sigmas[-1] * 1.15), ylim=(0, 1))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], [percent(share) if share else "0" for share in (0, 0.25, 0.5, 0.75, 1)])
    shade(axes, analysis.validity, over="white", zorder=3)
    chosen(axes, analysis.sigma, style.ACCENT)
    title = f"k = {analysis.k:,}, D = {int(curve.dims[-1])}; bars: stderr; pale: not valid"
    at_ends(axes, _areas(sigmas[-1], {name: float(parts[name][-1] / total[-1]) for name in parts}))
    here = {name: float(getattr(analysis.decay, name)[-1, -1, 0]) for name in style.PARTS}
    said = "\n".join(f"{name} {percent(value / sum(here.values()))}" for name, value in here.items())
    said = f"at sigma {short(analysis.sigma)}:\n{said}"
    axes.text(0.03, 0.03, said, transform=axes.transAxes, fontsize=TEXT, zorder=5)
    dress(axes, style.SIGMA, style.SHARE, title, above=1)
    return figure


def _areas(at: float, shares: dict[str, float]) -> list[tuple[float, float, str, str]]:
    """Labels of stacked areas, at their middle."""
    labels, bottom = [], 0.0
    for name, share in shares.items():
        labels.append((at, bottom + share / 2, name, style.PARTS[name]))
        bottom += share
    return labels


def plot_expected(analysis: Analysis, ax: Axes | None = None) -> Figure:
    """The six cells that the expected criterion is the sum of, with 95 % intervals and shares; darker is more."""
    expected = analysis.expected
    figure, axes = on(ax)
    if expected is None or expected.p != 2:
        why = "one candidate: no expectation" if expected is None else f"order {expected.p:g}: no such parts"
        axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, fontsize=TEXT)
        axes.set_axis_off()
        return figure
    shares = expected.table.numpy() / expected.value
    dark = numpy.clip(1 + numpy.log10(numpy.maximum(shares, 1e-10)) / 10, 0, 1)  # by decades below the whole
    edges = numpy.arange(4) - 0.5
    axes.pcolormesh(edges, edges[:3], dark, cmap="Blues", vmin=0, vmax=1.3, edgecolors="white", linewidth=1.5)
    for i, j in numpy.ndindex(shares.shape):
        ink = "white" if dark[i, j] > 0.8 else "black"
        axes.text(j, i, _cell(expected, i, j), ha="center", va="center", fontsize=TEXT, color=ink, linespacing=1.4)
    axes.set(xlim=(-0.5, len(PARTS) - 0.5), ylim=(len(SOURCES) - 0.5, -0.5))
    axes.set_xticks(range(len(PARTS)), PARTS)
    axes.set_yticks(range(len(SOURCES)), [source.replace(" ", "\n") for source in SOURCES])
    title = f"One more: rms {ranged(expected.rms, expected.rms_interval)}"
    dress(axes, f"cells of its mean square {short(expected.value)}, squared loss units", "", title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _cell(expected: ExpectedCriterion, i: int, j: int) -> str:
    """Value, half of its 95 % interval, and share of one cell."""
    value, error = float(expected.table[i, j]), NORMAL * float(expected.table_stderr[i, j])
    said = short(value) if math.isnan(error) else f"{short(value)}\n\u00b1 {short(error)}"
    return f"{said}\n{percent(value / expected.value) if value > 0 else 'within the noise'}"


def plot_eigenvalues(analysis: Analysis, ax: Axes | None = None) -> Figure:
    """Eigenvalues with their residuals as bars, hollow where not certified, and the first one that is left out."""
    space = analysis.spectrum
    values, certified = space.eigenvalues.numpy(), space.converged.numpy()
    bounds = (space.residuals * space.eigenvalues[0].abs()).numpy()
    index = numpy.arange(1, len(values) + 1)
    figure, axes = on(ax, right=0.72)
    axes.errorbar(index, values, yerr=bounds, fmt="none", ecolor=style.MUTED, capsize=2, elinewidth=0.8)
    labels = []
    for chosen_ones, name, face, color in (
        (certified, style.CERTIFIED, style.WHOLE, style.WHOLE),
        (~certified, style.NOT_CERTIFIED, "none", style.ACCENT),
    ):
        if chosen_ones.any():
            at, shown = index[chosen_ones], values[chosen_ones]
            axes.plot(at, shown, "o", markersize=4, markerfacecolor=face, markeredgecolor=color, label=name)
            labels.append((float(at[-1]), float(shown[-1]), name, color))
    if numpy.isfinite(space.next_eigenvalue):
        last = len(values) + 1
        axes.plot([last], [space.next_eigenvalue], "x", color="black", markersize=4, label=style.NEXT)
        labels.append((float(last), float(space.next_eigenvalue), style.NEXT.replace(" ", "\n"), "black"))
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlim(0.4, len(values) + 1.6)
    axes.locator_params("x", integer=True)
    at_ends(axes, labels)
    dress(axes, style.INDEX, style.EIGENVALUE, f"{int(certified.sum())} of {space.dim} certified; bars: residuals")
    return figure
