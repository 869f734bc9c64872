"""The charts of a page, as Vega-Lite specifications; their sliders are parameters that the page sets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from curvprobe.report import style
from curvprobe.report.aggregates import Aggregates
from curvprobe.report.drawing import inline, needed, specification
from curvprobe.report.landscape import Kind, landscape, measured

if TYPE_CHECKING:
    from curvprobe.analysis.concentration import ConcentrationCurve
    from curvprobe.analysis.result import Analysis


def charts(analysis: Analysis, found: Aggregates) -> dict[str, dict[str, Any]]:
    """Every chart by its name."""
    drawn = {
        "decay": _decay(analysis, found),
        "shares": _shares(analysis, found),
        "eigenvalues": _eigenvalues(analysis),
        "validity": _validity(analysis),
    }
    if analysis.concentration is not None:
        drawn["concentration"] = _concentration(analysis.concentration)
    if analysis.spectrum.dim > 1:  # there is no plane of one direction
        kinds: tuple[Kind, ...] = ("risk", "change", *(("candidates",) if found.num_candidates > 1 else ()))
        drawn |= {kind: landscape(analysis, found, kind) for kind in kinds} | measured(analysis)
    return {name: specification(chart) for name, chart in drawn.items()}


# ---- the criterion ---------------------------------------------------------------------------------------------------

PARTS = (
    ("level", "datum.aa + pow(sigma, 2) * datum.at + pow(sigma, 4) * datum.tt / 4"),
    ("slope", "pow(sigma, 2) * datum.cc"),
    ("curvature", "pow(sigma, 4) * datum.bb / 2"),
)
"""The parts of the criterion from the moments of one sample size and dimension."""

_MOMENTS = ("aa", "at", "tt", "cc", "bb")


def _rows(found: Aggregates, *, last: bool = False) -> list[dict[str, float]]:
    """The moments by sample size and dimension."""
    moments = found.moments[-1:] if last else found.moments
    ks = found.ks[-1:] if last else found.ks
    return [
        {
            "k": k,
            "D": d + 1,
            **{name: float(f"{v:.8g}") for name, v in zip(_MOMENTS, moments[i, d].tolist(), strict=True)},
        }
        for i, k in enumerate(ks)
        for d in range(moments.shape[1])
    ]


def _params(alt: Any, analysis: Analysis) -> list[Any]:
    return [alt.param(name="sigma", value=analysis.sigma), alt.param(name="dim", value=analysis.spectrum.dim)]


def _decay(analysis: Analysis, found: Aggregates) -> Any:
    """Root mean squares against the sample size, with the guide that falls as 1/k."""
    alt = needed()
    base = alt.Chart(inline(_rows(found))).transform_filter("datum.D == dim")
    for name, formula in PARTS:
        base = base.transform_calculate(**{name: formula})
    base = base.transform_calculate(
        whole="sqrt(datum.level + datum.slope + datum.curvature)", shape="sqrt(datum.slope + datum.curvature)"
    )
    k = alt.X("k:Q", title=style.K, scale=alt.Scale(type="log"))
    scale = alt.Scale(type="log")
    lines = (
        base.transform_fold(["whole", "shape"], as_=["what", "rms"])
        .transform_filter("datum.rms > 0")
        .mark_line(point=alt.OverlayMarkDef(size=18))
        .encode(
            x=k,
            y=alt.Y("rms:Q", title=f"{style.RMS} (rms)", scale=scale, axis=alt.Axis(format=".0~e")),
            color=alt.Color(
                "what:N",
                title=None,
                scale=alt.Scale(domain=["whole", "shape"], range=[style.WHOLE, style.SHAPE]),
                legend=alt.Legend(orient="top"),
            ),
        )
    )
    last = found.ks[-1]
    guide = (
        base.transform_joinaggregate(end="min(whole)")
        .transform_calculate(guide=f"datum.end * {last + 1} / (datum.k + 1)")
        .mark_line(strokeDash=[8, 8], strokeWidth=1.5)
        .encode(x=k, y=alt.Y("guide:Q", scale=scale))
    )
    return alt.layer(lines, guide).add_params(*_params(alt, analysis)).properties(width=300, height=230)


def _shares(analysis: Analysis, found: Aggregates) -> Any:
    """The parts' shares at the whole sample, against sigma."""
    alt = needed()
    low, high = (math.log10(float(analysis.validity.sigmas[i])) for i in (0, -1))
    table = [[row[name] for name in _MOMENTS] for row in _rows(found, last=True)]
    at = "table[dim - 1]"
    grid = alt.Chart(alt.sequence(low, high + 1e-9, (high - low) / 80, as_="exponent")).transform_calculate(
        s="pow(10, datum.exponent)"
    )
    for name, formula in PARTS:
        written = formula.replace("sigma", "datum.s")
        for i, moment in enumerate(_MOMENTS):
            written = written.replace(f"datum.{moment}", f"{at}[{i}]")
        grid = grid.transform_calculate(**{name: written})
    areas = (
        grid.transform_fold([name for name, _ in PARTS], as_=["part", "size"])
        .transform_calculate(rank=f"indexof({[name for name, _ in PARTS]}, datum.part)")
        .mark_area(opacity=0.85)
        .encode(
            x=alt.X("s:Q", title=style.SIGMA, scale=alt.Scale(type="log", nice=False), axis=alt.Axis(format=".0~e")),
            y=alt.Y("size:Q", stack="normalize", title=style.SHARE, axis=alt.Axis(format="%")),
            color=alt.Color(
                "part:N",
                title=None,
                scale=alt.Scale(domain=list(style.PARTS), range=list(style.PARTS.values())),
                legend=alt.Legend(orient="top"),
            ),
            order="rank:Q",
        )
    )
    here = (
        alt.Chart(alt.sequence(0, 1, 1, as_="n"))
        .transform_calculate(s="sigma")
        .mark_rule(color=style.ACCENT, strokeWidth=1.5)
        .encode(x="s:Q")
    )
    params = [alt.param(name="table", value=table), *_params(alt, analysis)]
    shaded = _shaded(alt, analysis, "white", 10**low, 10**high)
    return alt.layer(areas, shaded, here).add_params(*params).properties(width=300, height=230)


# ---- what the numbers rest on ----------------------------------------------------------------------------------------


def _eigenvalues(analysis: Analysis) -> Any:
    alt = needed()
    space = analysis.spectrum
    scale = float(space.eigenvalues[0].abs())
    rows = [
        {
            "index": i + 1,
            "eigenvalue": value,
            "low": value - residual * scale,
            "high": value + residual * scale,
            "which": style.CERTIFIED if bool(converged) else style.NOT_CERTIFIED,
        }
        for i, (value, residual, converged) in enumerate(
            zip(space.eigenvalues.tolist(), space.residuals.tolist(), space.converged.tolist(), strict=True)
        )
    ]
    if math.isfinite(space.next_eigenvalue):
        value = space.next_eigenvalue
        rows.append({"index": space.dim + 1, "eigenvalue": value, "low": value, "high": value, "which": style.NEXT})
    base = alt.Chart(inline(rows)).encode(x=alt.X("index:Q", title=style.INDEX, axis=alt.Axis(tickMinStep=1)))
    kinds = [style.CERTIFIED, style.NOT_CERTIFIED, style.NEXT]
    points = base.mark_point(size=50, filled=True, opacity=1).encode(
        y=alt.Y("eigenvalue:Q", title=style.EIGENVALUE),
        shape=alt.Shape("which:N", title=None, scale=alt.Scale(domain=kinds), legend=alt.Legend(orient="top")),
        color=alt.Color(
            "which:N", title=None, scale=alt.Scale(domain=kinds, range=[style.WHOLE, style.ACCENT, style.MUTED])
        ),
        tooltip=[alt.Tooltip("index:Q"), alt.Tooltip("eigenvalue:Q", format=".4g"), "which:N"],
    )
    bars = base.mark_rule(color=style.MUTED).encode(y="low:Q", y2="high")
    return alt.layer(bars, points).properties(width=300, height=230)


def _concentration(found: ConcentrationCurve) -> Any:
    """Shares of the full-space shape signal against the number of directions, for every choice of these."""
    alt = needed()
    rows = [
        {"D": dim, "share": share, "low": max(share - stderr, share / 10), "high": share + stderr, "directions": name}
        for name, shares, errors in zip(found.names, found.shape.tolist(), found.shape_stderr.tolist(), strict=True)
        for dim, share, stderr in zip(found.dims.tolist(), shares, errors, strict=True)
        if math.isfinite(share) and share > 0
    ]
    rows += [
        {"D": dim, "share": null, "low": null, "high": null, "directions": "D / N"}
        for dim, null in zip(found.dims.tolist(), found.null.tolist(), strict=True)
    ]
    x = alt.X("D:Q", title=style.DIRECTIONS, scale=alt.Scale(type="log"))
    share = alt.Y("share:Q", title=style.CONCENTRATION, scale=alt.Scale(type="log"), axis=alt.Axis(format=".0~e"))
    names = [*found.names, "D / N"]
    hue = alt.Color(
        "directions:N", title=None, scale=alt.Scale(domain=names, range=[*style.MANY[: len(found.names)], "black"])
    )
    base = alt.Chart(inline(rows))
    lines = base.mark_line(point=True).encode(
        x=x,
        y=share,
        color=hue,
        strokeDash=alt.condition("datum.directions === 'D / N'", alt.value([2, 3]), alt.value([1, 0])),
        tooltip=["directions:N", alt.Tooltip("D:Q"), alt.Tooltip("share:Q", format=".3g")],
    )
    bars = base.mark_rule(opacity=0.5).encode(x=x, y="low:Q", y2="high", color=hue)
    return alt.layer(bars, lines).properties(width=300, height=230)


def _validity(analysis: Analysis) -> Any:
    """Errors against sigma: that of the verdict with its standard errors and on top, over the sigmas that fail."""
    alt = needed()
    found = analysis.validity
    judged = style.LOSS if found.increment_error is None else style.INCREMENT
    curves = {style.LOSS: found.loss_error, judged: found.error}  # what is drawn last lies on top
    errors = {judged: found.stderr.nan_to_num(posinf=0.0)}
    rows = [
        {"sigma_at": s, "error": e, "of": name, "verdict": verdict, "low": max(e - d, e / 10), "high": e + d}
        for name, values in curves.items()
        for s, e, d, verdict in zip(
            found.sigmas.tolist(), values.tolist(), errors.get(name, 0 * values).tolist(), found.verdicts, strict=True
        )
        if math.isfinite(e) and e > 0
    ]
    x = alt.X("sigma_at:Q", title=style.SIGMA, scale=alt.Scale(type="log"), axis=alt.Axis(format=".0~e"))
    y = alt.Y("error:Q", title=style.ERROR, scale=alt.Scale(type="log"), axis=alt.Axis(format="~%"))
    hues = alt.Scale(domain=[judged, style.LOSS][: len(curves)], range=[style.WHOLE, style.MUTED])
    of = alt.Color("of:N", title=None, scale=hues, legend=alt.Legend(orient="top"))
    base = alt.Chart(inline(rows))
    shown = [alt.Tooltip("sigma_at:Q", format=".3g"), alt.Tooltip("error:Q", format=".2%"), "of:N", "verdict:N"]
    lines = base.mark_line(point=alt.OverlayMarkDef(size=40)).encode(x=x, y=y, color=of, tooltip=shown)
    bars = base.mark_rule().encode(x=x, y=alt.Y("low:Q"), y2="high", color=of)
    bound = alt.Chart(inline([{"error": found.threshold}])).mark_rule(strokeDash=[4, 3])
    here = alt.Chart(inline([{"sigma_at": analysis.sigma}])).mark_rule(color=style.ACCENT)
    first, last = (float(found.sigmas[i]) for i in (0, -1))
    shades = _shaded(alt, analysis, style.MUTED, min(first, analysis.sigma) / 3, 1.5 * max(last, analysis.sigma))
    return alt.layer(shades, bound.encode(y="error:Q"), here.encode(x="sigma_at:Q"), bars, lines).properties(
        width=300, height=230
    )


def _shaded(alt: Any, analysis: Analysis, color: str, low: float, high: float) -> Any:
    """Sigmas at which the quadratic model is not valid."""
    rows = [
        {"from": start, "to": end, "verdict": verdict, "shade": style.SHADES[verdict]}
        for verdict, start, end in style.spans(analysis.validity, low, high)
        if verdict != "valid"
    ]
    return (
        alt.Chart(inline(rows))
        .mark_rect(color=color)
        .encode(
            x=alt.X("from:Q", scale=alt.Scale(type="log", domain=[low, high], nice=False)),
            x2="to",
            opacity=alt.Opacity("shade:Q", scale=None),
            tooltip="verdict:N",
        )
    )
