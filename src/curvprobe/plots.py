"""Results as figures; the only file that draws. Needs matplotlib: pip install 'curvprobe[plots]'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from curvprobe.analysis.result import Analysis
from curvprobe.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from curvprobe.analysis.concentration import ConcentrationCurve
    from curvprobe.analysis.trajectory import Trajectory
    from curvprobe.probing.plane import Plane

_PARTS = (("level", "#4c72b0"), ("slope", "#dd8452"), ("curvature", "#55a868"))
_SAVED = ("png", "pdf")


def panels(rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (5.2, 3.6)) -> tuple[Figure, Any]:
    """A figure of so many panels, each of so many inches, and its axes as an array (rows, columns)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("figures need matplotlib: pip install 'curvprobe[plots]'") from error
    # No pyplot: no window, no global state.
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _on(ax: Axes | None) -> tuple[Figure, Axes]:
    """Given axes with their figure, or new ones."""
    if ax is not None:
        return ax.figure, ax  # type: ignore[return-value]
    figure, axes = panels()
    return figure, axes[0, 0]


def plot_eigenvalues(analysis: Analysis, ax: Axes | None = None) -> Figure:
    """Eigenvalues against their index, with residuals as error bars; hollow where not converged."""
    space = analysis.spectrum
    values, converged = space.eigenvalues.numpy(), space.converged.numpy()
    bounds = (space.residuals * space.eigenvalues[0].abs()).numpy()
    index = numpy.arange(1, len(values) + 1)
    figure, axes = _on(ax)
    axes.errorbar(index, values, yerr=bounds, fmt="none", ecolor="0.4", capsize=3, label="residual")
    axes.plot(index[converged], values[converged], "o", color="#4c72b0", label="certified")
    if not converged.all():
        axes.plot(index[~converged], values[~converged], "o", mfc="none", color="#c44e52", label="not converged")
    if numpy.isfinite(space.next_eigenvalue):
        axes.plot([len(values) + 1], [space.next_eigenvalue], "x", color="0.4", label="next (estimate)")
    axes.axhline(0, color="0.8", linewidth=0.8)
    axes.set(xlabel="index", ylabel="eigenvalue of the Hessian")
    axes.set_title(f"Top-{len(values)} eigenvalues, residuals at most {space.residuals.max():.0e} of the first")
    axes.legend(frameon=False)
    return figure


def plot_decay(analysis: Analysis, ax: Axes | None = None) -> Figure:
    """Criteria against the sample size, averaged over the candidates, with a guide that falls as k^-2."""
    curve = analysis.decay
    ks, value, stderr = curve.ks.numpy(), curve.value[:, -1, 0].numpy(), curve.stderr[:, -1, 0].nan_to_num().numpy()
    figure, axes = _on(ax)
    axes.loglog(ks, value, ".-", color="#4c72b0", label=rf"$\Delta_2^{{({int(curve.dims[-1])})}}$")
    axes.fill_between(ks, numpy.maximum(value - stderr, value * 1e-2), value + stderr, color="#4c72b0", alpha=0.2)
    axes.loglog(ks, curve.delta1.square().numpy(), ".-", color="0.5", label=r"(mean $\Delta_1)^2$")
    for m, dim in enumerate(curve.dims.tolist()):
        alpha = 0.4 + 0.6 * (m + 1) / len(curve.dims)
        axes.loglog(ks, curve.shape[:, m, 0].numpy(), ".-", color="#55a868", alpha=alpha, label=f"shape, D = {dim}")
    guide = float(curve.value[-1, -1, 0]) * (ks[-1] * (ks[-1] + 1)) / (ks * (ks + 1.0))
    axes.loglog(ks, guide, "--", color="black", linewidth=0.8, label=r"guide $\propto k^{-2}$")
    axes.set(xlabel="sample size k", ylabel="criterion (squared loss units)")
    axes.set_title(f"Mean over {analysis.num_candidates} next examples, sigma = {analysis.sigma:.2g}")
    axes.legend(frameon=False, fontsize="small")
    return figure


def plot_shares(analysis: Analysis, ax: Axes | None = None) -> Figure:
    """Shares of level, slope and curvature in the subspace criterion against sigma, at the full sample."""
    curve = analysis.shares
    sigmas = curve.sigmas.numpy()
    total = curve.value[0, -1].numpy()
    figure, axes = _on(ax)
    bottom = numpy.zeros_like(total)
    for part, color in _PARTS:
        share = getattr(curve, part)[0, -1].numpy() / total
        axes.fill_between(sigmas, bottom, bottom + share, color=color, alpha=0.8, label=part, linewidth=0)
        bottom = bottom + share
    axes.set_xscale("log")
    axes.axvline(analysis.sigma, color="black", linewidth=0.8)
    axes.annotate(" chosen", (analysis.sigma, 0.02), fontsize="small")
    axes.set(xlabel="sigma (parameter units)", ylabel="share", ylim=(0, 1), xlim=(sigmas[0], sigmas[-1]))
    axes.set_title(rf"Parts of $\Delta_2^{{({int(curve.dims[-1])})}}$ at k = {analysis.k} (quadratic model)")
    axes.legend(frameon=True, loc="center left")
    return figure


def plot_validity(analysis: Analysis, ax: Axes | None = None) -> Figure:
    """Error of the quadratic model against sigma, with the validated regime marked."""
    validity = analysis.validity
    sigmas = validity.sigmas.numpy()
    figure, axes = _on(ax)
    axes.loglog(sigmas, validity.loss_error.numpy(), "s--", color="0.5", markersize=4, label="change of the loss")
    if validity.increment_error is not None:
        axes.loglog(sigmas, validity.increment_error.numpy(), "o-", color="#4c72b0", label="change of the increment")
    axes.axhline(validity.threshold, color="#c44e52", linewidth=0.8, linestyle=":", label="threshold")
    first = True
    for sigma, verdict in zip(sigmas, validity.verdicts, strict=True):
        if verdict == "valid":  # the grid is in half decades: shade to the middle between neighbours
            label = "validated" if first else None
            axes.axvspan(sigma * 10**-0.25, sigma * 10**0.25, color="#55a868", alpha=0.2, linewidth=0, label=label)
            first = False
    axes.axvline(analysis.sigma, color="black", linewidth=0.8)
    axes.set(xlabel="sigma (parameter units)", ylabel="relative error of the quadratic model")
    axes.set_title(f"{validity.num_probes} directions in the top-{analysis.spectrum.dim} eigenspace")
    axes.legend(frameon=False, fontsize="small")
    return figure


def plot_expected(analysis: Analysis, ax: Axes | None = None) -> Figure:
    """The parts of the expected criterion, {mean shift, spread} x {level, slope, curvature}, with standard errors."""
    figure, axes = _on(ax)
    expected = analysis.expected
    if expected is None:
        axes.text(0.5, 0.5, "one candidate: no expectation", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return figure
    cells, errors = expected.table.numpy(), expected.table_stderr.nan_to_num().numpy()
    smallest = numpy.abs(cells[cells > 0]).min() if (cells > 0).any() else 1.0
    for i, hatch in enumerate((None, "//")):
        for j, (_, color) in enumerate(_PARTS):
            value = cells[i, j]
            shown = max(value, smallest * 1e-1)
            axes.bar(j + 0.4 * i, shown, width=0.38, color=color, hatch=hatch, edgecolor="white", alpha=0.9)
            reach = [[min(errors[i, j], 0.9 * shown)], [errors[i, j]]]
            axes.errorbar(j + 0.4 * i, shown, yerr=reach, color="0.3", capsize=3)
            if value <= 0:
                axes.annotate("within\nnoise", (j + 0.4 * i, shown), ha="center", va="bottom", fontsize="x-small")
    axes.set_yscale("log")
    axes.set_xticks([j + 0.4 * i for j in range(3) for i in range(2)])
    axes.set_xticklabels(
        [f"{part}\n{source}" for part, _ in _PARTS for source in ("shift", "spread")], fontsize="small"
    )
    low, high = expected.rms_interval
    axes.set(ylabel="squared loss units")
    axes.set_title(f"Next example: rms {expected.rms:.2e} [{low:.1e}, {high:.1e}]")
    return figure


def plot_concentration(curve: ConcentrationCurve, ax: Axes | None = None) -> Figure:
    """Share of the full-space shape signal in the first D directions of every subspace, beside D / N."""
    figure, axes = _on(ax)
    dims = curve.dims.numpy()
    for name, share, error in zip(curve.names, curve.shape.numpy(), curve.shape_stderr.numpy(), strict=True):
        reach = [numpy.minimum(error, 0.9 * share), error]
        axes.errorbar(dims, share, yerr=reach, marker="o", markersize=3, capsize=2, label=name)
    axes.plot(dims, curve.null.numpy(), "--", color="black", linewidth=0.8, label="D / N")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlabel="directions D", ylabel="share of the shape signal")
    axes.set_title(f"sigma = {curve.sigma:g}, N = {curve.num_params}")
    axes.legend(frameon=False, fontsize="small") if ax is not None else figure.legend(
        loc="outside right center", frameon=False, fontsize="small"
    )
    return figure


def plot_trajectory(path: Trajectory, ax: Axes | None = None) -> Figure:
    """Landscape dispersion against the sample size, with the fitted power law."""
    figure, axes = _on(ax)
    ks, value, error = path.ks.numpy(), path.dispersion.numpy(), path.dispersion_stderr.numpy()
    axes.errorbar(ks, value, yerr=[numpy.minimum(error, 0.9 * value), error], fmt="o", color="black", label="V")
    for part, (name, color) in enumerate(_PARTS):
        axes.plot(ks, path.dispersion_parts[:, part].numpy(), ".-", color=color, label=name)
    low, high = path.fit.interval
    label = rf"$\propto k^{{{path.fit.exponent:.2f}}}$ [{low:.2f}, {high:.2f}]"
    axes.plot(ks, path.fit.at_one * ks**path.fit.exponent, "--", color="0.4", linewidth=0.8, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlabel="sample size k", ylabel="dispersion V (squared loss units)")
    axes.set_title("Landscape dispersion at the weights of each sample size")
    axes.legend(frameon=False, fontsize="small")
    return figure


def plot_plane(found: Plane, ax: Axes | None = None, *, sigma: float | None = None) -> Figure:
    """The loss over a plane as bands of equal height, and its quadratic model as dashed lines at the same heights.

    Args:
        found: see :func:`curvprobe.plane`.
        ax: to draw on; None makes a figure.
        sigma: standard deviation of a probe, drawn as a circle about the solution.
    """
    figure, axes = _on(ax)
    x, y, loss, model = (part.numpy() for part in (found.x, found.y, found.loss, found.model))
    loss = numpy.ma.masked_invalid(loss)
    low, high = float(min(loss.min(), model.min())), _ceiling(found.loss.numpy())
    levels = low + (high - low) * numpy.linspace(0, 1, 15) ** 2  # close together at the bottom
    bands = axes.contourf(x, y, loss, levels=levels, cmap="YlGnBu_r", extend="both")
    axes.contour(x, y, model, levels=levels[1:], colors="black", linewidths=0.6, linestyles="dashed")
    axes.plot(0, 0, "+", color="#c44e52", markersize=9, markeredgewidth=1.5)
    if sigma is not None:
        around = numpy.linspace(0, 2 * numpy.pi, 100)
        across, up = (sigma / length for length in found.lengths)
        axes.plot(across * numpy.cos(around), up * numpy.sin(around), color="#c44e52", linewidth=1)
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel=found.names[0], ylabel=found.names[1])
    axes.set_title("loss; dashed: its quadratic model", fontsize="medium")
    figure.colorbar(bands, ax=axes, format="%.3g")
    return figure


def _ceiling(loss: numpy.ndarray[Any, Any]) -> float:
    """The largest loss, or where a few points rise far above all others, some way above these."""
    finite = loss[numpy.isfinite(loss)]
    low, most = float(finite.min()), float(numpy.quantile(finite, 0.9))
    return min(float(finite.max()), low + 4 * (most - low)) if most > low else float(finite.max()) + 1e-12


def plot_surface(found: Plane) -> Figure:
    """The loss over a plane as a surface in three dimensions, with the solution marked."""
    figure, _ = panels()
    figure.clear()
    axes: Any = figure.add_subplot(projection="3d")
    x, y = numpy.meshgrid(found.x.numpy(), found.y.numpy())
    loss = found.loss.numpy()
    ceiling = _ceiling(loss)
    axes.plot_surface(x, y, numpy.clip(loss, None, ceiling), cmap="YlGnBu_r", linewidth=0, rcount=100, ccount=100)
    axes.plot([0], [0], [found.at_solution], "o", color="#c44e52", markersize=4, zorder=5)
    axes.set(xlabel=found.names[0], ylabel=found.names[1], zlabel="loss")
    axes.view_init(elev=35, azim=-60)
    return figure


def map_panel(
    figure: Figure, axes: Axes, x: Sequence[float], y: Sequence[float], values: numpy.ndarray[Any, Any], title: str
) -> None:
    """Positive values (len(y), len(x)) as colours on a logarithmic scale, x logarithmic and y by rank."""
    from matplotlib.colors import LogNorm

    rows = numpy.arange(len(y))
    mesh = axes.pcolormesh(x, rows, values, norm=LogNorm(), shading="nearest")
    axes.set_xscale("log")
    axes.set_yticks(rows, [str(value) for value in y])
    axes.set_title(title, fontsize="medium")
    figure.colorbar(mesh, ax=axes)


FIGURES: tuple[tuple[str, Callable[[Analysis], Any]], ...] = (
    ("eigenvalues", plot_eigenvalues),
    ("decay", plot_decay),
    ("shares", plot_shares),
    ("validity", plot_validity),
    ("expected", plot_expected),
)
"""File name and function of every figure of an analysis."""


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
            figure.savefig(path, dpi=150, metadata={"CreationDate": None} if ending == "pdf" else None)
            figure.set_layout_engine("none")  # found once, it serves the other format too
            paths.append(path)
    return paths
