import numpy
import pytest
import torch

import curvprobe as cp
from tests import cases

plots = pytest.importorskip("curvprobe.plots")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def analysis() -> cp.Analysis:
    case = cases.make("mlp")
    return cp.analyze(case.risk(), case.candidates, dim=3)


def line(figure, label):
    lines = figure.axes[0].get_lines()
    return next(entry for entry in lines if label in str(entry.get_label()))


def test_eigenvalues_are_drawn_as_they_are(analysis):
    drawn = line(plots.plot_eigenvalues(analysis), "certified").get_ydata()
    assert numpy.array_equal(drawn, analysis.subspace.eigenvalues.numpy())


def test_decay_shows_the_curve_and_a_guide_of_slope_minus_two(analysis):
    figure = plots.plot_decay(analysis)
    shape = line(figure, "shape, D = 3").get_ydata()
    assert numpy.allclose(shape, analysis.decay.shape[:, -1, 0].numpy())
    assert numpy.allclose(line(figure, "Delta_2").get_ydata(), analysis.decay.value[:, -1, 0].numpy())
    guide, ks = line(figure, "propto").get_ydata(), analysis.decay.ks.numpy()
    assert numpy.allclose(guide * ks * (ks + 1), guide[-1] * ks[-1] * (ks[-1] + 1))
    assert guide[-1] == pytest.approx(float(analysis.decay.value[-1, -1, 0]))


def test_shares_fill_the_whole(analysis):
    axes = plots.plot_shares(analysis).axes[0]
    top = max(path.vertices[:, 1].max() for band in axes.collections for path in band.get_paths())
    assert top == pytest.approx(1.0)
    assert len(axes.collections) == 3


def test_validity_marks_the_validated_sigmas(analysis):
    axes = plots.plot_validity(analysis).axes[0]
    marked = sum(verdict == "valid" for verdict in analysis.validity.verdicts)
    assert len(axes.patches) == marked > 0


def test_every_figure_is_written_as_png_and_pdf_without_pyplot(analysis, tmp_path):
    import sys

    paths = plots.save_figures(analysis, tmp_path)
    assert {path.suffix for path in paths} == {".png", ".pdf"}
    assert len(paths) == 2 * (len(plots.FIGURES) + 1) == 12  # and the plane
    assert all(path.stat().st_size > 1000 for path in paths)
    assert "matplotlib.pyplot" not in sys.modules


def test_an_eigenpair_that_has_not_converged_is_hollow(analysis):
    from dataclasses import replace

    spectrum = replace(analysis.spectrum, converged=torch.tensor([True, True, False]))
    figure = plots.plot_eigenvalues(replace(analysis, spectrum=spectrum))
    assert len(line(figure, "not converged").get_ydata()) == 1


def test_a_concentration_curve_and_a_trajectory_are_drawn():
    case = cases.make("mlp")
    risk = case.risk()
    curve = cp.concentration_curve(risk, risk.on(case.candidates), sigma=0.05, dim=2)
    axes = plots.plot_concentration(curve).axes[0]
    drawn = {container.get_label(): container.lines[0].get_ydata() for container in axes.containers}
    assert set(drawn) == set(curve.names)
    assert drawn["hessian"].tolist() == curve.shape[curve.names.index("hessian")].tolist()
    path = cp.trajectory([risk[:3], risk[:4], risk], dim=2, sigma=0.05)
    axes = plots.plot_trajectory(path).axes[0]
    assert axes.containers[0].lines[0].get_ydata().tolist() == path.dispersion.tolist()


def test_the_expected_table_is_drawn_and_a_single_candidate_has_none(analysis):
    from dataclasses import replace

    axes = plots.plot_expected(analysis).axes[0]
    heights = sorted(patch.get_height() for patch in axes.patches)
    positive = sorted(v for v in analysis.expected.table.flatten().tolist() if v > 0)
    assert len(heights) == 6
    assert heights[-len(positive) :] == positive
    alone = plots.plot_expected(replace(analysis, expected=None)).axes[0]
    assert not alone.patches


def test_figures_are_drawn_on_given_axes(analysis):
    figure, axes = plots.panels(2, 3)
    draws = [draw for _, draw in plots.FIGURES]
    for draw, ax in zip(draws, axes.flat, strict=False):
        assert draw(analysis, ax=ax) is figure
        assert ax.has_data()
    assert plots.plot_plane(analysis.plane, ax=axes[1, 2]) is figure
    assert len(figure.axes) == 7  # and the bar of colours


def test_a_plane_is_drawn_with_its_model_and_the_probe(analysis):
    figure = plots.plot_plane(analysis.plane, sigma=analysis.sigma)
    axes = figure.axes[0]
    circle = axes.get_lines()[-1]
    assert circle.get_xdata().max() == pytest.approx(analysis.sigma)
    assert axes.get_xlim() == pytest.approx((-4 * analysis.sigma, 4 * analysis.sigma))
    assert axes.get_xlabel() == "eigenvector 1"
    assert plots.plot_surface(analysis.plane).axes[0].name == "3d"


def test_points_that_are_not_finite_leave_a_gap(analysis, tmp_path):
    from dataclasses import replace

    loss = analysis.plane.loss.clone()
    loss[0, 0], loss[3, 4] = torch.inf, torch.nan
    broken = replace(analysis.plane, loss=loss)
    figures = {"plane": plots.plot_plane(broken), "surface": plots.plot_surface(broken)}
    assert all(path.stat().st_size > 1000 for path in plots.save(figures, tmp_path))
