"""A trajectory on one page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from curvprobe.report import style
from curvprobe.report.document import document
from curvprobe.report.drawing import inline, needed, specification

if TYPE_CHECKING:
    from curvprobe.analysis.trajectory import Trajectory

WIDTH, HEIGHT = 300, 230


def page(path: Trajectory, head: Sequence[str], rows: Sequence[Sequence[str]], fitted: str, *, title: str = "") -> str:
    """The whole page, with the trajectory's own table and its sentence on the power law."""
    drawn = {"dispersion": _dispersion(path), "increment": _increment(path), "overlap": _overlap(path)}
    return document(
        "along_training",
        "charts",
        {name: specification(chart.properties(width=WIDTH, height=HEIGHT)) for name, chart in drawn.items()},
        head=head,
        rows=rows,
        fitted=fitted,
        title=title or "Along a growing sample",
    )


def _k(alt: Any) -> Any:
    return alt.X("k:Q", title=style.K, scale=alt.Scale(type="log"))


def _dispersion(path: Trajectory) -> Any:
    alt = needed()
    colours = {"whole V": style.WHOLE, **style.PARTS}
    rows, bars, law = [], [], []
    for i, k in enumerate(path.ks.tolist()):
        values = [float(path.dispersion[i]), *path.dispersion_parts[i].tolist()]
        rows += [{"k": k, "part": name, "V": v} for name, v in zip(colours, values, strict=True) if v > 0]
        error = float(path.dispersion_stderr[i])
        if values[0] > 0 and math.isfinite(error):
            bars.append({"k": k, "low": max(values[0] - error, values[0] / 10), "high": values[0] + error})
        law.append({"k": k, "V": path.fit.at_one * k**path.fit.exponent})
    y = alt.Y("V:Q", title="V (squared loss units)", scale=alt.Scale(type="log"), axis=alt.Axis(format=".0~e"))
    hue = alt.Color(
        "part:N",
        title=None,
        scale=alt.Scale(domain=list(colours), range=list(colours.values())),
        legend=alt.Legend(orient="top"),
    )
    lines = (
        alt.Chart(inline(rows))
        .mark_line(point=True)
        .encode(x=_k(alt), y=y, color=hue, tooltip=["k:Q", "part:N", alt.Tooltip("V:Q", format=".3g")])
    )
    errors = alt.Chart(inline(bars)).mark_rule(color=style.WHOLE).encode(x=_k(alt), y="low:Q", y2="high")
    drawn = [lines, errors]
    if all(math.isfinite(row["V"]) and row["V"] > 0 for row in law):
        drawn.append(alt.Chart(inline(law)).mark_line(strokeDash=[6, 4]).encode(x=_k(alt), y=y))
    return alt.layer(*drawn)


def _increment(path: Trajectory) -> Any:
    """The rms with its interval; none upwards where it has no upper end."""
    alt = needed()
    rows = []
    for k, expected in zip(path.ks.tolist(), path.expected, strict=True):
        low, high = expected.rms_interval
        if expected.rms > 0:
            top = high if math.isfinite(high) else expected.rms
            rows.append({"k": k, "rms": expected.rms, "low": max(low, expected.rms / 100), "high": top})
    y = alt.Y("rms:Q", title=f"{style.RMS} (rms)", scale=alt.Scale(type="log"), axis=alt.Axis(format=".0~e"))
    base = alt.Chart(inline(rows)).encode(x=_k(alt))
    points = base.mark_line(point=True, color=style.WHOLE).encode(
        y=y, tooltip=["k:Q", *(alt.Tooltip(f"{name}:Q", format=".3g") for name in ("rms", "low", "high"))]
    )
    return alt.layer(points, base.mark_rule(color=style.WHOLE).encode(y="low:Q", y2="high"))


def _overlap(path: Trajectory) -> Any:
    alt = needed()
    shares = zip(path.ks.tolist()[1:], path.overlap.tolist(), strict=True)
    rows = [{"k": k, "share": share} for k, share in shares if math.isfinite(share)]
    scale = alt.Scale(domain=[0, 1])
    return (
        alt.Chart(inline(rows))
        .mark_line(point=True, color=style.WHOLE)
        .encode(
            x=_k(alt),
            y=alt.Y("share:Q", title="overlap with the size before", scale=scale, axis=alt.Axis(format="%")),
            tooltip=["k:Q", alt.Tooltip("share:Q", format=".1%")],
        )
    )
