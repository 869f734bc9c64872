"""A forecast of the held-out loss: on a page of its own, or as a panel that stands apart from the criteria."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curvprobe.report import style
from curvprobe.report.document import document
from curvprobe.report.drawing import inline, needed, specification

if TYPE_CHECKING:
    from curvprobe.forecasting.result import Forecast

WIDTH, HEIGHT = 420, 240


def page(forecast: Forecast, *, title: str = "") -> str:
    """The whole page."""
    return document(
        "ahead",
        "charts",
        {"forecast": chart(forecast)},
        forecast=forecast,
        title=title or "Does more data help?",
    )


def chart(forecast: Forecast) -> dict[str, Any]:
    """Held-out losses against the examples: those that were measured with errors, and those that are forecast."""
    alt = needed()
    measured = [
        {"k": k, "loss": loss, "low": loss - error, "high": loss + error, "what": "measured"}
        for k, loss, error in zip(
            forecast.sizes.tolist(), forecast.losses.tolist(), forecast.stderr.tolist(), strict=True
        )
    ]
    ahead = [
        {"k": k, "loss": loss, "low": low, "high": high, "what": "forecast, 90 %"}
        for k, loss, (low, high) in forecast.ahead()
    ]
    base = alt.Chart(inline(measured + ahead)).encode(
        x=alt.X("k:Q", title=style.K, scale=alt.Scale(type="log")),
        color=alt.Color(
            "what:N",
            title=None,
            scale=alt.Scale(domain=["measured", "forecast, 90 %"], range=[style.MUTED, style.WHOLE]),
            legend=alt.Legend(orient="top"),
        ),
    )
    y = alt.Y("loss:Q", title=style.HELD_OUT, scale=alt.Scale(zero=False))
    points = base.mark_point(filled=True, size=60).encode(
        y=y, tooltip=["what:N", "k:Q", *(alt.Tooltip(f"{name}:Q", format=".3g") for name in ("loss", "low", "high"))]
    )
    bars = base.mark_rule().encode(y="low:Q", y2="high")
    return specification(alt.layer(bars, points).properties(width=WIDTH, height=HEIGHT))
