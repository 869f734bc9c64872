"""Runs over one another on a page: what it holds, and that a browser draws it without a request."""

import math
from dataclasses import replace

import pytest
import torch

import curvprobe as cp
from tests.report.test_browser import CHROMIUM, PHONE, WIDE, browser, shown_in  # noqa: F401 - a fixture
from tests.report.test_page import HOSTILE, data_of


@pytest.fixture(scope="module")
def compared(analysed):
    other = replace(analysed, k=40, sample=analysed.sample[:40], loss=0.5)
    return cp.compare([analysed, other], names=["base", HOSTILE])


def test_the_curves_and_the_overlaps_are_those_of_the_runs(compared, analysed):
    for run, k in zip(compared.runs, (60, 40), strict=True):
        assert run.ks[0] == 1
        assert run.ks[-1] == k
        curve = cp.decay_curve(analysed.sample[:k], list(run.ks), 0.01, fresh=analysed.fresh)
        assert torch.tensor(run.curve).square().tolist() == pytest.approx(curve.value[:, 0, 0].tolist(), rel=1e-5)
        assert run.eigenvalues == tuple(analysed.spectrum.eigenvalues.tolist())
    assert run.curve[-1] == pytest.approx(cp.expected_criterion(analysed.sample[:40], analysed.fresh, 0.01).rms)
    assert torch.tensor(compared.overlaps).flatten().tolist() == pytest.approx([1.0] * 4)
    assert not {"ks", "curve", "eigenvalues"} & set(compared.to_dataframe().columns)


def test_the_page_holds_the_table_the_doubts_and_names_as_text(compared, tmp_path):
    html = compared.to_html(tmp_path / "compared.html").read_text()
    assert "<title>base, &lt;/script&gt;" in html
    assert HOSTILE not in html
    for cell in compared.rows()[0]:
        assert f"<td>{cell}</td>" in html
    assert "different sizes" in html
    charts = data_of(html)
    assert set(charts) == {"size", "decay", "eigenvalues", "overlaps"}
    assert [row["k"] for row in charts["decay"]["data"]["values"]] == [*compared.runs[0].ks, *compared.runs[1].ks]
    assert len(html) < 1_200_000
    assert "<title>seeds</title>" in compared.to_html(tmp_path / "compared.html", title="seeds").read_text()


def test_what_is_not_known_is_left_out(compared, tmp_path):
    bare = replace(compared.runs[1], ks=(), curve=(), refused="no minimum", rms=math.nan, shape_rms=math.nan)
    unknown = replace(
        compared, runs=(replace(compared.runs[0], ks=(), curve=()), bare), overlaps=((1.0, math.nan), (math.nan, 1.0))
    )
    html = unknown.to_html(tmp_path / "compared.html").read_text()
    assert set(data_of(html)) == {"size", "eigenvalues"}
    assert {row["run"] for row in data_of(html)["size"]["data"]["values"]} == {"base"}
    assert "no answer" in html


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("viewport", [WIDE, PHONE])
def test_it_opens_from_disk_without_an_error_or_a_request(browser, compared, tmp_path, viewport):  # noqa: F811
    file = compared.to_html(tmp_path / "compared.html")
    with shown_in(browser, file, viewport) as (page, seen):
        assert page.locator(".chart svg.marks").count() == 4
        assert page.locator("#runs tbody tr").count() == 2
        assert page.locator("#runs tbody td").nth(8).text_content() == HOSTILE
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert seen == []
