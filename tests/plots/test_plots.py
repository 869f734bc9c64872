import itertools
import os
import subprocess
import sys
from dataclasses import replace

import numpy
import pytest
import torch

import curvprobe as cp
from curvprobe.analysis.answer import short
from curvprobe.criteria.expected import PARTS
from curvprobe.forecasting.rules import Reason
from curvprobe.report import style
from tests import cases
from tests.analysis.sound import sized, without_doubts
from tests.forecasting import HELD_OUT, least_squares

plots = pytest.importorskip("curvprobe.plots")
pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from curvprobe.plots.drawing import percent  # noqa: E402


@pytest.fixture(scope="module")
def analysis() -> cp.Analysis:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
        x, y = torch.randn(40, 3, dtype=torch.float64), torch.randint(3, (40,))
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x[:30], y[:30]))
    return cp.analyze(risk, (x[30:], y[30:]), dim=3, seed=1)


@pytest.fixture(scope="module")
def asked(analysis) -> cp.Analysis:
    """Of which a tolerance was asked, and nothing is in doubt."""
    return sized(without_doubts(analysis), 4e-4)


def line(figure, label):
    lines = figure.axes[0].get_lines()
    return next(entry for entry in lines if label in str(entry.get_label()))


def curve(axes, color, points):
    """The curve of this colour with so many points."""
    drawn = [entry for entry in axes.get_lines() if entry.get_linestyle() != "None"]  # ends of bars are markers alone
    found = [entry for entry in drawn if entry.get_color() == color and len(entry.get_xdata()) == points]
    assert len(found) == 1
    return found[0]


def texts(figure):
    """Everything that is written on a figure, with its place in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    written = [entry for entry in figure.findobj(Text) if entry.get_visible() and entry.get_text().strip()]
    places = {entry: Text.get_window_extent(entry, renderer) for entry in written}
    return {entry: place for entry, place in places.items() if on_its_axis(entry)}


def on_its_axis(entry):
    """Matplotlib keeps labels of ticks beyond the limits, and does not draw them."""
    shown = []
    for axis in [axis for axes in entry.figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        labels = {label for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)}
        if entry in labels:
            low, high = sorted(axis.get_view_interval())
            at = entry.get_position()[axis.axis_name == "y"]
            shown.append(low * (1 - 1e-9) <= at <= high * (1 + 1e-9) if low > 0 else low - 1e-9 <= at <= high + 1e-9)
    return all(shown)


def said(figure):
    return [entry.get_text() for entry in texts(figure)]


def overlapping(figure):
    """Pairs of texts that lie on one another by more than a pixel, and texts that leave the figure."""
    found, width, height = texts(figure), *figure.get_size_inches() * figure.dpi
    names = [(entry.get_text(), place) for entry, place in found.items()]
    outside = [name for name, at in names if at.x0 < -1 or at.y0 < -1 or at.x1 > width + 1 or at.y1 > height + 1]
    both = [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(names, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]
    return outside, both


def test_validity_is_the_first_figure_and_its_verdicts_curve_on_top(analysis):
    assert plots.FIGURES[0] == ("validity", plots.plot_validity)
    found = analysis.validity
    axes = plots.plot_validity(analysis).axes[0]
    judged, other = curve(axes, style.WHOLE, len(found.sigmas)), curve(axes, style.MUTED, len(found.sigmas))
    assert numpy.array_equal(judged.get_ydata(), found.increment_error.numpy())
    assert numpy.array_equal(other.get_ydata(), found.loss_error.numpy())
    assert judged.get_zorder() > other.get_zorder()
    assert judged.get_linewidth() > other.get_linewidth()
    bars = axes.containers[0].lines[2][0].get_segments()
    assert numpy.allclose([bar[1, 1] - bar[0, 1] for bar in bars], 2 * found.stderr.numpy(), rtol=1e-6)
    alone = plots.plot_validity(replace(analysis, validity=replace(found, increment_error=None))).axes[0]
    assert numpy.array_equal(curve(alone, style.WHOLE, len(found.sigmas)).get_ydata(), found.loss_error.numpy())


def test_every_sigma_that_is_not_valid_is_shaded_and_named(analysis):
    count = len(analysis.validity.sigmas)
    verdicts = ("marginal", *["valid"] * (count - 4), "marginal", "invalid", "invalid")
    mixed = replace(analysis, validity=replace(analysis.validity, verdicts=verdicts))
    for draw in (plots.plot_validity, plots.plot_shares):
        figure = draw(mixed)
        axes = figure.axes[0]
        low, high = axes.get_xlim()
        for sigma in numpy.geomspace(low * 1.001, high * 0.999, 200):
            over = [p.get_label() for p in axes.patches if p.get_x() < sigma <= p.get_x() + p.get_width()]
            verdict = mixed.validity.verdict(sigma)
            assert over == ([] if verdict == "valid" else [verdict]), sigma
        if draw is plots.plot_validity:
            assert [name for name in said(figure) if name in verdicts] == ["marginal", "valid", "marginal", "invalid"]


def test_eigenvalues_are_drawn_as_they_are(analysis):
    figure = plots.plot_eigenvalues(analysis)
    assert numpy.array_equal(line(figure, "certified").get_ydata(), analysis.subspace.eigenvalues.numpy())
    assert {"certified", "next\n(estimate)"} <= set(said(figure))


def test_decay_shows_roots_with_errors_and_the_arithmetic_guide(analysis):
    found = analysis.decay
    figure = plots.plot_decay(analysis)
    axes, count = figure.axes[0], len(found.ks)
    whole = curve(axes, style.WHOLE, count).get_ydata()
    assert numpy.allclose(whole, found.value[:, -1, 0].sqrt().numpy())
    shapes = [entry.get_ydata() for entry in axes.get_lines() if entry.get_color() == style.SHAPE]
    assert numpy.allclose(shapes, found.shape[:, :, 0].sqrt().T.numpy())
    guide = next(entry for entry in axes.get_lines() if entry.get_linestyle() == "--")
    assert numpy.allclose(guide.get_ydata() * (guide.get_xdata() + 1), whole[-1] * (found.ks[-1] + 1))
    assert guide.get_xdata()[-1] > found.ks[-1]
    band = axes.collections[len(found.dims)].get_paths()[0].vertices  # the shapes' come first
    last = band[band[:, 0] == float(found.ks[-1]), 1]
    assert last.max() == pytest.approx(float((found.value + found.stderr)[-1, -1, 0].sqrt()))
    assert last.min() == pytest.approx(float((found.value - found.stderr)[-1, -1, 0].sqrt()))
    words = said(figure)
    assert {"whole", "Delta_1", *(f"shape, D={dim}" for dim in found.dims.tolist())} <= set(words)
    assert any("arithmetic" in word for word in words)


def test_decay_says_the_value_with_its_interval_and_the_tolerance(analysis, asked):
    figure = plots.plot_decay(asked)
    words = said(figure)
    value = next(word for word in words if word.startswith(f"k = {asked.k}:"))
    assert f"{short(asked.expected.rms)} [5e-4, 0.002]" in value
    assert f"dotted: {asked.answer.tolerance}" in [word.replace(";\n", "; ") for word in words]
    dotted = next(entry for entry in figure.axes[0].get_lines() if entry.get_linestyle() == ":")
    assert set(dotted.get_ydata()) == {asked.required.tolerance}
    assert not any("dotted" in word for word in said(plots.plot_decay(analysis)))


def test_shares_fill_the_whole_and_their_errors_stay_within(analysis):
    figure = plots.plot_shares(analysis)
    axes = figure.axes[0]
    areas = axes.collections[:3]
    tops = [max(path.vertices[:, 1].max() for path in band.get_paths()) for band in areas]
    assert tops[-1] == pytest.approx(1.0)
    found, total = analysis.shares, sum(getattr(analysis.shares, part)[0, -1] for part in PARTS)
    bars = numpy.array(axes.containers[0].lines[2][0].get_segments())
    level = (found.level[0, -1] / total).numpy()
    assert bars.min() >= 0
    assert (bars[:, :, 1].max() <= 1 + 1e-12) & (bars[:, 1, 1] >= level - 1e-12).all() & (bars[:, 1, 1] > level).any()
    decay = analysis.decay
    at = float(decay.slope[-1, -1, 0] / (decay.level + decay.shape)[-1, -1, 0])
    assert any(f"slope {percent(at)}" in word for word in said(figure))
    assert {"level", "slope", "curvature"} <= set(said(figure))


def test_the_cells_say_their_values_and_a_single_candidate_has_none(analysis):
    expected = analysis.expected
    figure = plots.plot_expected(analysis)
    cells = [entry.get_text().split("\n") for entry in figure.axes[0].texts]
    wanted = zip(expected.table.flatten().tolist(), expected.table_stderr.flatten().tolist(), strict=True)
    assert len(cells) == 6
    for lines, (value, error) in zip(cells, wanted, strict=True):
        assert lines[0] == short(value)
        if error == error:
            assert lines[1] == f"± {short(1.96 * error)}"
        assert lines[-1] == (percent(value / expected.value) if value > 0 else "within the noise")
    assert {"mean\nshift", "spread", *PARTS} <= set(said(figure))
    alone = plots.plot_expected(replace(analysis, expected=None))
    assert said(alone) == ["one candidate: no expectation"]
    order = plots.plot_expected(replace(analysis, expected=replace(expected, p=3.0)))
    assert said(order) == ["order 3: no such parts"]


def test_darker_cells_are_larger(analysis):
    axes = plots.plot_expected(analysis).axes[0]
    dark, table = axes.collections[0].get_array().flatten(), analysis.expected.table.flatten().numpy()
    seen = table > 1e-10 * analysis.expected.value
    assert numpy.array_equal(numpy.argsort(dark[seen]), numpy.argsort(table[seen]))


def test_nothing_is_written_over_something_else_or_cut_off(analysis, asked):
    drawn = {name: draw(analysis) for name, draw in plots.FIGURES}
    drawn["plane"] = plots.plot_plane(analysis.plane, sigma=analysis.sigma)
    drawn["tolerance"] = plots.plot_decay(asked)
    drawn["no upper end"] = plots.plot_decay(sized(asked, 4e-4, value=None, interval=(2258.7, numpy.inf)))
    drawn["order 3"] = plots.plot_decay(replace(analysis, decay=replace(analysis.decay, p=3.0)))
    for name, figure in drawn.items():
        assert overlapping(figure) == ([], []), name


def test_what_lies_on_something_else_is_found(analysis):
    figure = plots.plot_validity(analysis)
    figure.text(0.3, 0.02, "a long text that leaves " * 5)
    outside, both = overlapping(figure)
    assert len(outside) == 1
    assert both


def test_every_figure_is_written_as_png_and_pdf(analysis, tmp_path):
    paths = plots.save_figures(analysis, tmp_path)
    assert {path.suffix for path in paths} == {".png", ".pdf"}
    assert len(paths) == 2 * (len(plots.FIGURES) + 1) == 12  # and the plane
    assert all(path.stat().st_size > 1000 for path in paths)


def test_figures_need_no_display_and_leave_matplotlib_as_it_was(tmp_path):
    code = """
import os, sys, torch, matplotlib, curvprobe as cp
before = dict(dict.items(matplotlib.rcParams))  # looked up one by one, the backend loads pyplot
axis = torch.linspace(-1, 1, 5, dtype=torch.float64)
height = axis[:, None] ** 2 + axis[None, :] ** 2
found = cp.Plane(axis, axis, height, height, 0.0, (1.0, 1.0))
cp.plots.save({"plane": cp.plots.plot_plane(found, sigma=0.5)}, sys.argv[1])
assert dict(dict.items(matplotlib.rcParams)) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    display = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=display)
    assert (tmp_path / "plane.pdf").stat().st_size > 1000


def test_an_eigenpair_that_has_not_converged_is_hollow(analysis):
    spectrum = replace(analysis.spectrum, converged=torch.tensor([True, True, False]))
    figure = plots.plot_eigenvalues(replace(analysis, spectrum=spectrum))
    hollow = line(figure, "not certified")
    assert hollow.get_ydata().tolist() == [float(spectrum.eigenvalues[2])]
    assert hollow.get_markerfacecolor() == "none"
    assert "not certified" in said(figure)


def test_a_concentration_curve_and_a_trajectory_are_drawn():
    case = cases.make("mlp")
    risk = case.risk()
    curve = cp.concentration_curve(risk, risk.on(case.candidates), sigma=0.05, dim=2)
    figure = plots.plot_concentration(curve)
    drawn = {container.get_label(): container.lines[0].get_ydata() for container in figure.axes[0].containers}
    assert set(drawn) == set(curve.names)
    assert drawn["hessian"].tolist() == curve.shape[curve.names.index("hessian")].tolist()
    assert {*curve.names, "D / N"} <= set(said(figure))
    small = replace(curve, shape=curve.shape * 1e-5, num_params=10**9)  # longer numbers at the axis
    assert overlapping(figure) == overlapping(plots.plot_concentration(small)) == ([], [])
    path = cp.trajectory([risk[:3], risk[:4], risk], dim=2, sigma=0.05)
    figure = plots.plot_trajectory(path)
    assert figure.axes[0].containers[0].lines[0].get_ydata().tolist() == path.dispersion.tolist()
    assert {"whole V", *PARTS} <= set(said(figure))
    assert overlapping(figure) == ([], [])


def test_a_forecast_is_drawn_and_a_refusal_says_so():
    found = cp.forecast(least_squares, 200, HELD_OUT, splits=1)
    figure = plots.plot_forecast(found)
    measured, ahead = figure.axes[0].containers
    assert measured.lines[0].get_ydata().tolist() == found.losses.tolist()
    assert ahead.lines[0].get_ydata().tolist() == [loss for _, loss, _ in found.ahead()]
    assert {"measured", "forecast"} <= set(said(figure))
    assert overlapping(figure) == ([], [])
    refused = plots.plot_forecast(replace(found, refusals=(Reason("drift", "said"),)))
    assert len(refused.axes[0].containers) == 1
    assert "no forecast: see the text" in said(refused)


def test_figures_are_drawn_on_given_axes(analysis):
    figure, axes = plots.panels(2, 3)
    draws = [draw for _, draw in plots.FIGURES]
    for draw, ax in zip(draws, axes.flat, strict=False):
        assert draw(analysis, ax=ax) is figure
        assert ax.has_data()
    assert plots.plot_plane(analysis.plane, ax=axes[1, 2]) is figure
    assert figure.axes == list(axes.flat)


def test_a_plane_is_drawn_with_its_model_and_the_probe(analysis):
    figure = plots.plot_plane(analysis.plane, sigma=analysis.sigma)
    axes = figure.axes[0]
    circle = axes.get_lines()[-1]
    assert circle.get_xdata().max() == pytest.approx(analysis.sigma)
    assert axes.get_xlim() == pytest.approx((-4 * analysis.sigma, 4 * analysis.sigma))
    assert axes.get_xlabel() == "eigenvector 1"
    bands, model = axes.collections[:2]
    assert numpy.allclose(numpy.diff(bands.levels), bands.levels[1] - bands.levels[0])
    assert numpy.array_equal(model.levels, bands.levels[1:])
    top = float((analysis.plane.loss - analysis.plane.at_solution).max())
    assert bands.levels[-1] <= top * (1 + 1e-9)
    assert plots.plot_surface(analysis.plane).axes[0].name == "3d"


def test_points_that_are_not_finite_leave_a_gap(analysis, tmp_path):
    loss = analysis.plane.loss.clone()
    loss[0, 0], loss[3, 4] = torch.inf, torch.nan
    broken = replace(analysis.plane, loss=loss)
    figures = {"plane": plots.plot_plane(broken), "surface": plots.plot_surface(broken)}
    assert all(path.stat().st_size > 1000 for path in plots.save(figures, tmp_path))
