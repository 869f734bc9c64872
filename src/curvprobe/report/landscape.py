"""The loss over the plane of two eigenvectors, by its quadratic model, as a chart that follows the sliders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from curvprobe.report.aggregates import PLANE, Aggregates
from curvprobe.report.drawing import inline, needed
from curvprobe.report.style import ACCENT

if TYPE_CHECKING:
    from torch import Tensor

    from curvprobe.analysis.result import Analysis

Kind = Literal["risk", "change", "candidates"]
"""The loss of the first k examples, what the next step of k adds to it, and the loss of the candidates."""

DESCRIPTIONS: dict[Kind, str] = {
    "risk": "Bands of equal height of the loss of the first k examples over the plane of two directions.",
    "change": "Bands of equal height of what the next step of k adds to the loss over the plane of two directions.",
    "candidates": "Bands of equal height of the loss of the candidates over the plane of two directions.",
}

SIDE = 45
"""Cells along a side."""

PALE = 0.1
"""Part of the model's own height below which what it misses stays pale."""

_X, _Y = "datum.x", "datum.y"


def half_width(analysis: Analysis, found: Aggregates) -> float:
    """Of the plane, in parameter units: four sigmas, and as far as the minimum of few examples lies away."""
    few = min(range(len(found.ks)), key=lambda i: abs(found.ks[i] - 5))
    gradient = found.risk[few, 1 : 1 + min(2, analysis.spectrum.dim)]
    curvature = max(float(analysis.spectrum.eigenvalues[0].abs()), 1e-12)
    return max(4 * analysis.sigma, min(40 * analysis.sigma, 1.5 * float(gradient.norm()) / curvature))


class _Quadratic:
    """A quadratic function of the plane without its constant, by the parameters ``table``, ``first`` and ``second``."""

    def __init__(self, kind: Kind, size: int) -> None:
        row = "table[0]" if kind == "candidates" else "table[k_index]"

        def entry(position: str) -> str:
            return f"(table[k_index + 1][{position}] - {row}[{position}])" if kind == "change" else f"{row}[{position}]"

        def bend(i: str, j: str) -> str:
            return entry(f"{1 + size} + {i} * {size} + {j}")

        self.slope = entry("1 + first"), entry("1 + second")
        self.bends = bend("first", "first"), bend("first", "second"), bend("second", "second")

    def height(self) -> str:
        """At ``datum.x`` and ``datum.y``."""
        (c1, c2), (b11, b12, b22) = self.slope, self.bends
        bent = f"{b11} * {_X} * {_X} + 2 * {b12} * {_X} * {_Y} + {b22} * {_Y} * {_Y}"
        return f"{c1} * {_X} + {c2} * {_Y} + ({bent}) / 2"

    def reach(self, width: float) -> str:
        """Which its height does not exceed within so much of the centre."""
        (c1, c2), (b11, b12, b22) = self.slope, self.bends
        bent = f"(abs({b11}) + 2 * abs({b12}) + abs({b22})) * {width**2} / 2"
        return f"(abs({c1}) + abs({c2})) * {width} + {bent}"

    def minimum(self) -> tuple[str, str]:
        """Where it is least; null where it is not convex."""
        (c1, c2), (b11, b12, b22) = self.slope, self.bends
        determinant = f"({b11} * {b22} - {b12} * {b12})"
        convex = f"({determinant} > 0 && {b11} > 0)"
        left, low = f"({b12} * {c2} - {b22} * {c1})", f"({b12} * {c1} - {b11} * {c2})"
        return f"{convex} ? {left} / {determinant} : null", f"{convex} ? {low} / {determinant} : null"


def landscape(analysis: Analysis, found: Aggregates, kind: Kind) -> Any:
    """A chart of bands of equal height, with the solution, one sigma about it, and the least point."""
    alt = needed()
    width, size = half_width(analysis, found), min(PLANE, analysis.spectrum.dim)
    second = min(1, size - 1)
    function = _Quadratic(kind, size)
    layers = [_ground(alt, function, width, _colours(alt, found, kind, function, width, size)), *_marks(alt)]
    if kind != "change":
        layers.append(_least(alt, *function.minimum()))
    rows = [found.candidates.tolist()] if kind == "candidates" else [*found.risk.tolist(), found.joined.tolist()]
    params = {
        "table": rows,
        "k_index": len(found.ks) - 1,
        "first": 0,
        "second": second,
        "sigma": analysis.sigma,
    }
    made = [alt.param(name=name, value=value) for name, value in params.items()]
    return alt.layer(*layers).add_params(*made).properties(width=230, height=230, description=DESCRIPTIONS[kind])


def measured(analysis: Analysis) -> dict[str, Any]:
    """Charts of the loss itself over the plane of the first two eigenvectors, and of what its model misses there."""
    found = analysis.plane
    if found is None:
        return {}
    alt = needed()
    rise, off = found.loss - found.at_solution, found.departure
    top = _largest(found.model - found.at_solution)
    heights = alt.Scale(type="quantize", scheme=_heights(alt), domain=[0, top])
    both = alt.SchemeParams(name="blueorange", count=13)
    reach = max(_largest(off), PALE * top)
    return {
        "measured": _grid(alt, analysis, rise, heights, "Bands of equal height of the loss itself over the plane."),
        "departure": _grid(
            alt,
            analysis,
            off,
            alt.Scale(type="quantize", scheme=both, domain=[-reach, reach]),
            "The loss less its quadratic model over the plane.",
        ),
    }


def _largest(values: Tensor) -> float:
    """Magnitude, of those that are finite."""
    finite = values[values.isfinite()].abs()
    return float(finite.max()) if len(finite) else 1.0


def _grid(alt: Any, analysis: Analysis, values: Tensor, scale: Any, description: str) -> Any:
    """Numbers (P, P) on the plane's grid as coloured cells, with the marks of the other landscapes."""
    x = analysis.plane.x if analysis.plane is not None else values[0]
    half = float(x[1] - x[0]) / 2
    rows = [
        {"x": float(f"{a:.6g}"), "y": float(f"{b:.6g}"), "height": float(f"{values[i, j]:.5g}")}
        for i, b in enumerate(x.tolist())
        for j, a in enumerate(x.tolist())
        if bool(values[i, j].isfinite())
    ]
    chart = alt.Chart(inline(rows)).transform_calculate(left=f"datum.x - {half}", low=f"datum.y - {half}")
    ends = [float(x[0]) - half, float(x[-1]) + half]
    ground = _cells(alt, chart, 2 * half, ends, scale, "eigenvector")
    chart = alt.layer(ground, *_marks(alt)).add_params(alt.param(name="sigma", value=analysis.sigma))
    return chart.properties(width=230, height=230, description=description)


def _colours(alt: Any, found: Aggregates, kind: Kind, function: _Quadratic, width: float, size: int) -> Any:
    """The scale of heights: the same for every k, but of what a step adds, which falls with k."""
    if kind == "change":
        reach = f"({function.reach(width)})"
        scheme = alt.SchemeParams(name="blueorange", count=13)
        return alt.Scale(type="quantize", scheme=scheme, domain=alt.ExprRef(f"[-{reach}, {reach}]"))
    bends = found.risk[-1, 1 + size :].reshape(size, size).diagonal()[:2]
    top = float(bends.abs().sum()) * width**2 / 2 or 1.0
    low = -top / 8 if float(bends.min()) >= 0 else -top
    return alt.Scale(type="quantize", scheme=_heights(alt), domain=[low, top])


def _heights(alt: Any) -> Any:
    """From low, which is pale, to high: as in the figure of the plane."""
    return alt.SchemeParams(name="yellowgreenblue", count=14, extent=[0, 0.75])


def _ground(alt: Any, function: _Quadratic, width: float, scale: Any) -> Any:
    """The cells of the plane, coloured by height."""
    step = 2 * width / SIDE
    chart = (
        alt.Chart(alt.sequence(0, SIDE * SIDE, 1, as_="n"))
        .transform_calculate(
            left=f"-{width} + (datum.n % {SIDE}) * {step}", low=f"-{width} + floor(datum.n / {SIDE}) * {step}"
        )
        .transform_calculate(x=f"datum.left + {step / 2}", y=f"datum.low + {step / 2}")
        .transform_calculate(height=function.height())
    )
    return _cells(alt, chart, step, [-width, width], scale, "direction")


def _cells(alt: Any, chart: Any, step: float, ends: list[float], scale: Any, along: str) -> Any:
    """Cells of this size at ``datum.left`` and ``datum.low``, coloured by ``datum.height``."""
    axis = alt.Axis(format=".1~e", tickCount=5, grid=False)
    plane = alt.Scale(domain=ends, nice=False)
    legend = alt.Legend(title=None, format=".0~e", orient="bottom", gradientLength=220)
    # A little wider than a cell: between cells that only touch, the ground would shine through.
    return (
        chart.transform_calculate(right=f"datum.left + {1.05 * step}", high=f"datum.low + {1.05 * step}")
        .mark_rect(clip=True, aria=False)
        .encode(
            x=alt.X("left:Q", title=f"along the first {along}", scale=plane, axis=axis),
            x2="right",
            y=alt.Y("low:Q", title=f"along the second {along}", scale=plane, axis=axis),
            y2="high",
            color=alt.Color("height:Q", scale=scale, legend=legend),
        )
    )


def _marks(alt: Any) -> list[Any]:
    """The solution, and the circle of one sigma about it."""
    circle = (
        alt.Chart(alt.sequence(0, 65, 1, as_="n"))
        .transform_calculate(left="sigma * cos(datum.n * PI / 32)", low="sigma * sin(datum.n * PI / 32)")
        .mark_line(color=ACCENT, strokeWidth=1.5, clip=True)
        .encode(x="left:Q", y="low:Q", order="n:Q")
    )
    centre = (
        alt.Chart(alt.sequence(0, 1, 1, as_="n"))
        .transform_calculate(left="0", low="0")
        .mark_point(shape="cross", color=ACCENT, size=60, opacity=1)
        .encode(x="left:Q", y="low:Q")
    )
    return [circle, centre]


def _least(alt: Any, left: str, low: str) -> Any:
    return (
        alt.Chart(alt.sequence(0, 1, 1, as_="n"))
        .transform_calculate(left=left, low=low)
        .mark_point(shape="circle", filled=True, color="black", size=50, opacity=1, clip=True)
        .encode(x="left:Q", y="low:Q")
    )
