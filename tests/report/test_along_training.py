"""A trajectory's page: its table, its charts, and that a browser draws it without a request."""

from dataclasses import replace

import pytest
import torch

import curvprobe as cp
from curvprobe.analysis.trajectory import Trajectory
from tests.analysis.test_trajectory import fitted
from tests.report.test_browser import CHROMIUM, PHONE, WIDE, browser, shown_in  # noqa: F401 - a fixture
from tests.report.test_page import data_of


@pytest.fixture(scope="module")
def path() -> Trajectory:
    return cp.trajectory(fitted, [50, 100, 200], dim=2, sigma=0.01)


def test_the_page_holds_the_trajectorys_numbers(path, tmp_path):
    html = path.to_html(tmp_path / "path.html", title="a <path>").read_text()
    assert "<title>a &lt;path&gt;</title>" in html
    assert f"V grows as k^{path.fit.exponent:.2f}" in html
    assert html.count("<tr><td>") == 3
    charts = data_of(html)
    rows = charts["dispersion"]["layer"][0]["data"]["values"]
    whole = {row["k"]: row["V"] for row in rows if row["part"] == "whole V"}
    assert whole == dict(zip(path.ks.tolist(), path.dispersion.tolist(), strict=True))
    slope = {row["k"]: row["V"] for row in rows if row["part"] == "slope"}
    assert slope == dict(zip(path.ks.tolist(), path.dispersion_parts[:, 1].tolist(), strict=True))
    for row, expected in zip(charts["increment"]["data"]["values"], path.expected, strict=True):
        assert row["rms"] == expected.rms
        assert row["low"] == max(expected.rms_interval[0], expected.rms / 100)
    assert [row["share"] for row in charts["overlap"]["data"]["values"]] == path.overlap.tolist()


def test_a_law_that_was_not_fitted_is_not_drawn(path, tmp_path):
    bare = replace(path, fit=replace(path.fit, exponent=float("nan")), dispersion_stderr=torch.full((3,), torch.nan))
    charts = data_of(bare.to_html(tmp_path / "path.html").read_text())
    assert len(charts["dispersion"]["layer"]) == 2


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("viewport", [WIDE, PHONE])
def test_it_opens_from_disk_without_an_error_or_a_request(browser, path, tmp_path, viewport):  # noqa: F811
    file = path.to_html(tmp_path / "path.html")
    with shown_in(browser, file, viewport) as (page, seen):
        assert page.locator(".chart svg.marks").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert seen == []
