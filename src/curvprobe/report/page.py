"""A result as one file of HTML that asks for nothing from anywhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvprobe.errors import ArgumentError
from curvprobe.report.aggregates import PLANE, Aggregates, aggregates
from curvprobe.report.ahead import chart
from curvprobe.report.charts import charts
from curvprobe.report.document import document
from curvprobe.report.pictures import thumbnails
from curvprobe.runtime.plain import plain

if TYPE_CHECKING:
    from curvprobe.analysis.result import Analysis
    from curvprobe.forecasting.result import Forecast

STEPS = 5
"""Stops of the slider for sigma in a decade: what is known at each of them takes a bootstrap, and room."""

LISTED = 5000
"""Candidates in the ranking's table, at most: those that would move it most."""


def page(
    analysis: Analysis,
    *,
    title: str = "",
    names: Sequence[str] | None = None,
    pictures: Any = None,
    forecast: Forecast | None = None,
) -> str:
    """The whole page.

    Args:
        analysis: with its projections: computed here, or loaded with the stages that lie beside the result.
        title: of the page.
        names: of the candidates, for the ranking; None numbers them.
        pictures: of the candidates, see :func:`curvprobe.report.pictures.thumbnails`.
        forecast: for a panel apart.

    Raises:
        ValueError: where there are not as many names or pictures as candidates.
    """
    if names is not None and len(names) != analysis.num_candidates:
        raise ArgumentError(f"{len(names)} names came for {analysis.num_candidates} candidates; expected as many")
    found = aggregates(analysis.sample, analysis.fresh, _sigmas(analysis))
    return document(
        "page",
        "page",
        _data(analysis, found, names, pictures, forecast),
        analysis=analysis,
        answer=analysis.answer,
        title=title or "curvprobe report",
        plane=min(PLANE, analysis.spectrum.dim),
        ks=found.ks,
        of="total" if analysis.required is None else analysis.required.of,
        number=_number,
        forecast=forecast,
    )


def _data(
    analysis: Analysis,
    found: Aggregates,
    names: Sequence[str] | None,
    pictures: Any,
    forecast: Forecast | None,
) -> dict[str, Any]:
    """What the page's script is given."""
    return {
        "aggregates": found.to_json(),
        "k": analysis.k,
        "sigma": analysis.sigma,
        "dim": analysis.spectrum.dim,
        "sigmas": plain(analysis.validity.sigmas),
        "verdicts": list(analysis.validity.verdicts),
        "tolerance": None if analysis.required is None else analysis.required.tolerance,
        "candidates": analysis.num_candidates,
        "ranking": _ranking(analysis, names),
        "pictures": []
        if pictures is None
        else thumbnails(pictures, analysis.ranking.order.tolist(), analysis.num_candidates),
        "of": "total" if analysis.required is None else analysis.required.of,
        "charts": charts(analysis, found) | ({} if forecast is None else {"forecast": chart(forecast)}),
    }


def _sigmas(analysis: Analysis) -> Tensor:
    """Some a decade over the range of the validity, the one that was analysed among them."""
    tried = (analysis.validity.sigmas / analysis.sigma).log10() * STEPS
    first, last = min(0, math.ceil(float(tried[0]) - 1e-9)), max(0, math.floor(float(tried[-1]) + 1e-9))
    return analysis.sigma * 10.0 ** (torch.arange(first, last + 1, dtype=torch.float64, device="cpu") / STEPS)


def _ranking(analysis: Analysis, names: Sequence[str] | None) -> dict[str, Any]:
    """The columns of the ranking, the largest first, to six digits."""
    found = analysis.ranking
    order = found.order[:LISTED].tolist()
    columns = {name: [float(f"{column[j]:.6g}") for j in order] for name, column in found.columns().items()}
    shown = [str(j) if names is None else str(names[j]) for j in order]
    return {"position": order, "name": shown, **columns}


def _number(value: float) -> str:
    """Four digits, or a dash for what is not known."""
    return "–" if math.isnan(value) else f"{value:.4g}"
