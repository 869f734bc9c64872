"""The figures of a result as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curvprobe.analysis.result import Analysis
from curvprobe.plots.curves import plot_concentration
from curvprobe.plots.of_analysis import plot_decay, plot_eigenvalues, plot_expected, plot_shares, plot_validity
from curvprobe.plots.planes import plot_plane
from curvprobe.runtime.store import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SAVED = ("png", "pdf")


FIGURES: tuple[tuple[str, Callable[[Analysis], Any]], ...] = (
    ("validity", plot_validity),
    ("decay", plot_decay),
    ("shares", plot_shares),
    ("expected", plot_expected),
    ("eigenvalues", plot_eigenvalues),
)
"""File name and function of every figure of an analysis: first the one that tells whether the others can be trusted."""


def save_figures(analysis: Analysis, directory: str | Path) -> list[Path]:
    """Write every figure of an analysis as PNG and PDF; returns the paths."""
    figures = {name: draw(analysis) for name, draw in FIGURES}
    if analysis.concentration is not None:
        figures["concentration"] = plot_concentration(analysis.concentration)
    if analysis.plane is not None:
        figures["plane"] = plot_plane(analysis.plane, sigma=analysis.sigma)
    return save(figures, directory)


def save(figures: Mapping[str, Figure], directory: str | Path) -> list[Path]:
    """Write figures by name as PNG and PDF; returns the paths."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        for ending in _SAVED:
            path = folder / f"{name}.{ending}"
            metadata = {"CreationDate": None} if ending == "pdf" else None
            write_atomically(path, partial(figure.savefig, format=ending, dpi="figure", metadata=metadata))
            paths.append(path)
            if figure.get_layout_engine() is not None:
                figure.set_layout_engine("none")  # found once, it serves the other format too
    return paths
