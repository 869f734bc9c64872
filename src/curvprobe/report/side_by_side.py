"""Several runs over one another, on one page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from curvprobe.report import style
from curvprobe.report.document import document
from curvprobe.report.drawing import inline, needed, specification

if TYPE_CHECKING:
    from curvprobe.analysis.comparison import Comparison

WIDTH, HEIGHT = 300, 230


def page(comparison: Comparison, head: Sequence[str], *, title: str = "") -> str:
    """The whole page; ``head`` are the columns of the comparison's rows."""
    overlaps = [share for row in comparison.overlaps for share in row]
    curves = any(run.ks for run in comparison.runs)
    known = not any(math.isnan(share) for share in overlaps)
    drawn = {"size": _sizes(comparison), "eigenvalues": _eigenvalues(comparison)}
    if curves:
        drawn["decay"] = _decay(comparison)
    if known:
        drawn["overlaps"] = _overlaps(comparison)
    return document(
        "side_by_side",
        "charts",
        {name: specification(chart.properties(width=WIDTH, height=HEIGHT)) for name, chart in drawn.items()},
        comparison=comparison,
        head=head,
        title=title or ", ".join(run.name for run in comparison.runs),
        curves=curves,
        known_overlaps=known,
        most=max(len(run.eigenvalues) for run in comparison.runs),
        number=lambda value: "\u2013" if math.isnan(value) else f"{value:.4g}",
    )


def _labels(comparison: Comparison) -> list[str]:
    """Names of the runs, told apart by their positions where two are the same."""
    names = [run.name for run in comparison.runs]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _hue(alt: Any, comparison: Comparison) -> Any:
    scale = alt.Scale(domain=_labels(comparison), range=list(style.MANY))
    return alt.Color("run:N", title=None, scale=scale, legend=alt.Legend(orient="top", columns=2))


def _sizes(comparison: Comparison) -> Any:
    """The rms of the whole and of its shape, with intervals; none to the right where there is no upper end."""
    alt = needed()
    rows = []
    for label, run in zip(_labels(comparison), comparison.runs, strict=True):
        for what, value, (low, high) in (
            ("whole", run.rms, run.rms_interval),
            ("tilt and bend", run.shape_rms, run.shape_rms_interval),
        ):
            if math.isfinite(value) and value > 0:
                top = high if math.isfinite(high) else value
                rows.append({"run": label, "what": what, "rms": value, "low": max(low, value / 100), "high": top})
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("run:N", title=None, sort=_labels(comparison)), color=_hue(alt, comparison)
    )
    x = alt.X("rms:Q", title="rms, loss units", scale=alt.Scale(type="log"), axis=alt.Axis(format=".0~e"))
    points = base.mark_point(size=50, filled=True, opacity=1).encode(
        x=x,
        shape=alt.Shape("what:N", title=None, legend=alt.Legend(orient="bottom")),
        tooltip=["run:N", "what:N", *(alt.Tooltip(f"{name}:Q", format=".3g") for name in ("rms", "low", "high"))],
    )
    bars = base.mark_rule().encode(x="low:Q", x2="high")
    return alt.layer(bars, points)


def _decay(comparison: Comparison) -> Any:
    alt = needed()
    rows = [
        {"run": label, "k": k, "rms": rms}
        for label, run in zip(_labels(comparison), comparison.runs, strict=True)
        for k, rms in zip(run.ks, run.curve, strict=True)
        if rms > 0
    ]
    return _lines(alt, comparison, rows, "k", "examples k", "rms", "one more moves it by (rms, loss units)", log=True)


def _eigenvalues(comparison: Comparison) -> Any:
    alt = needed()
    rows = [
        {"run": label, "index": i + 1, "eigenvalue": value}
        for label, run in zip(_labels(comparison), comparison.runs, strict=True)
        for i, value in enumerate(run.eigenvalues)
    ]
    return _lines(alt, comparison, rows, "index", "direction", "eigenvalue", "eigenvalue of the Hessian", log=False)


def _lines(
    alt: Any, comparison: Comparison, rows: list[dict[str, Any]], x: str, x_title: str, y: str, title: str, *, log: bool
) -> Any:
    scale = alt.Scale(type="log") if log else alt.Scale(zero=False)
    axis = alt.Axis(format=".0~e") if log else alt.Axis(format=".3~g")
    return (
        alt.Chart(inline(rows))
        .mark_line(point=alt.OverlayMarkDef(size=20))
        .encode(
            x=alt.X(f"{x}:Q", title=x_title, scale=scale, axis=alt.Axis(format="d", tickMinStep=1)),
            y=alt.Y(f"{y}:Q", title=title, scale=scale, axis=axis),
            color=_hue(alt, comparison),
            tooltip=["run:N", f"{x}:Q", alt.Tooltip(f"{y}:Q", format=".4g")],
        )
    )


def _overlaps(comparison: Comparison) -> Any:
    alt = needed()
    labels = _labels(comparison)
    rows = [
        {"run": labels[i], "other": labels[j], "share": share, "text": f"{100 * share:.0f} %"}
        for i, row in enumerate(comparison.overlaps)
        for j, share in enumerate(row)
    ]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("other:N", title=None, sort=labels, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("run:N", title=None, sort=labels),
    )
    scale = alt.Scale(domain=[0, 1], range=["#e9eef2", style.WHOLE])
    cells = base.mark_rect().encode(color=alt.Color("share:Q", legend=None, scale=scale))
    text = base.mark_text().encode(
        text="text:N", color=alt.condition("datum.share > 0.6", alt.value("white"), alt.value("#1f2328"))
    )
    return alt.layer(cells, text)
