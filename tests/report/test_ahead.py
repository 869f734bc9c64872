"""A forecast's page and panel: its numbers, and that a browser draws it without a request."""

import pytest

import curvprobe as cp
from tests.forecasting import HELD_OUT, least_squares
from tests.report.test_browser import CHROMIUM, PHONE, WIDE, browser, shown_in  # noqa: F401 - a fixture
from tests.report.test_page import data_of


@pytest.fixture(scope="module")
def found() -> cp.Forecast:
    return cp.forecast(least_squares, 200, HELD_OUT, splits=1)


def test_the_page_holds_the_forecasts_numbers(found, tmp_path):
    html = found.to_html(tmp_path / "ahead.html", title="a <forecast>").read_text()
    assert "<title>a &lt;forecast&gt;</title>" in html
    assert found.findings()[0] in html
    assert html.count("<tr><td>") == 3
    rows = data_of(html)["forecast"]["data"]["values"]
    assert {row["k"]: row["loss"] for row in rows if row["what"] == "measured"} == dict(
        zip(found.sizes.tolist(), found.losses.tolist(), strict=True)
    )
    assert [(row["k"], row["loss"], (row["low"], row["high"])) for row in rows if row["what"] != "measured"] == (
        found.ahead()
    )


def test_a_refusal_is_shown_with_its_reason(tmp_path):
    few = cp.forecast(least_squares, 200, tuple(part[:30] for part in HELD_OUT), splits=1)
    html = few.to_html(tmp_path / "ahead.html").read_text()
    assert "NO FORECAST" in html
    assert "30 held-out examples; expected at least 40" in html
    assert all(row["what"] == "measured" for row in data_of(html)["forecast"]["data"]["values"])


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("viewport", [WIDE, PHONE])
def test_it_opens_from_disk_without_an_error_or_a_request(browser, found, tmp_path, viewport):  # noqa: F811
    file = found.to_html(tmp_path / "ahead.html")
    with shown_in(browser, file, viewport) as (page, seen):
        assert page.locator(".chart svg.marks").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert seen == []
