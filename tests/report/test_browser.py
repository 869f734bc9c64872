"""The page in a real browser: from disk, without a request, its numbers those of Python wherever the sliders stand."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import curvprobe as cp
from tests.report.test_page import HOSTILE

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian's package of that name)")

WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 380, "height": 780}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(analysed, tmp_path_factory):
    names = [f"example {j}" for j in range(analysed.num_candidates)]
    names[int(analysed.ranking.order[0])] = HOSTILE
    return analysed.to_html(tmp_path_factory.mktemp("page") / "report.html", names=names)


@contextmanager
def shown_in(browser, file, viewport):
    """The page of a file, and what went wrong or was asked for since it was opened."""
    page, seen = browser.new_page(viewport=viewport), []
    page.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (seen.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: None if request.url == file.as_uri() else seen.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-drawn=yes]")
    yield page, seen
    page.close()


@pytest.fixture
def opened(browser, file):
    with shown_in(browser, file, WIDE) as found:
        yield found


def move(page, name, position):
    """A slider to a position; what it stands for then."""
    page.locator(f"#{name}").fill(str(position))
    return float(page.locator("body").get_attribute(f"data-{name}") or page.locator(f"#{name}-shown").text_content())


def number(page, name):
    return float(page.locator(f'[data-number="{name}"]').first.get_attribute("data-value"))


def test_it_opens_without_an_error_or_a_request(opened):
    page, seen = opened
    assert page.locator(".chart svg.marks").count() == 9
    assert seen == []


@pytest.mark.parametrize(
    ("sigma", "dim", "k", "tolerance"), [(None, None, None, None), (-1, 2, 3, -3.5), (-3, 4, 11, -2), (0.2, 1, 0, -5)]
)
def test_every_number_is_that_of_python(opened, analysed, sigma, dim, k, tolerance):
    page, seen = opened
    data = json.loads(page.locator("#data").text_content())
    for name, position in (("sigma", sigma), ("dim", dim), ("k", k), ("tolerance", tolerance)):
        if position is not None:
            move(page, name, position)
    body = page.locator("body")
    at, size, bound = (float(body.get_attribute(f"data-{name}")) for name in ("sigma", "k", "tolerance"))
    directions = int(page.locator("#dim-shown").text_content())
    if sigma is None:
        assert (at, directions, size, bound) == pytest.approx((analysed.sigma, 4, 60, 1e-3))
    else:
        assert (directions, size) == (dim, data["aggregates"]["ks"][k])
    sample, fresh = analysed.sample.truncate(directions), analysed.fresh.truncate(directions)
    curve = cp.decay_curve(sample, [int(size)], at, [directions], fresh=fresh)
    for part in ("level", "slope", "curvature"):
        assert number(page, part) == pytest.approx(float(getattr(curve, part)[0, 0, 0]), rel=1e-6)
    assert number(page, "whole") == pytest.approx(float(curve.value[0, 0, 0]), rel=1e-6)
    assert number(page, "whole-root") == pytest.approx(float(curve.value[0, 0, 0]) ** 0.5, rel=1e-6)
    assert number(page, "shape") == pytest.approx(float(curve.shape[0, 0, 0]), rel=1e-6)
    risk = [*data["aggregates"]["risk"], data["aggregates"]["joined"]]
    here = data["aggregates"]["ks"].index(int(size))
    assert number(page, "constant") == pytest.approx(risk[here + 1][0] - risk[here][0], rel=1e-6)
    expected = cp.expected_criterion(sample, fresh, at)
    for row, source in enumerate(("shift", "spread")):
        for column, part in enumerate(("level", "slope", "curvature")):
            cell = float(expected.table[row, column])
            assert number(page, f"{source}-{part}") == pytest.approx(cell, rel=1e-6, abs=1e-9 * expected.value)
    assert number(page, "whole-stderr") == pytest.approx(expected.stderr, rel=1e-6)
    whole = cp.decay_curve(sample, [60], at, [directions], fresh=fresh)
    assert number(page, "shape-stderr") == pytest.approx(float(whole.shape_stderr[0, 0, 0]), rel=1e-6)
    ends = [*expected.rms_interval, *expected.shape_rms_interval]
    for name, end in zip(("whole-low", "whole-high", "shape-low", "shape-high"), ends, strict=True):
        assert number(page, name) == pytest.approx(end, rel=1e-6)
    for name, level in (("least", 0.05), ("median", 0.5), ("most", 0.95)):
        single = float(expected.contributions.quantile(level)) ** 0.5
        assert number(page, name) == pytest.approx(single, rel=1e-6)
    required = cp.required_sample_size(sample, fresh, at, bound)
    assert number(page, "size") == pytest.approx(required.observed, abs=1)
    assert seen == []


def test_pictures_stand_beside_the_names(browser, analysed, tmp_path):
    picture = torch.zeros(analysed.num_candidates, 3, 4, 5)
    first = int(analysed.ranking.order[0])
    picture[first, 1, 2, 3] = 1.0
    file = analysed.to_html(tmp_path / "report.html", pictures=picture)
    page = browser.new_page(viewport=WIDE)
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-drawn=yes]")
    drawn = page.locator("#ranking tbody canvas")
    assert drawn.count() == 25
    assert drawn.first.get_attribute("aria-label") == str(first)
    values = drawn.first.evaluate("c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)")
    assert len(values) == 4 * 4 * 5
    assert [i for i, value in enumerate(values) if value and i % 4 != 3] == [4 * (2 * 5 + 3) + 1]
    assert page.locator("#ranking tbody td").first.text_content() == str(first)
    page.close()


def test_the_sliders_move_the_charts(opened):
    page, seen = opened
    before = {name: page.locator(f"#chart-{name}").screenshot() for name in ("risk", "change", "decay", "shares")}
    move(page, "k", 2)
    move(page, "sigma", -1)
    move(page, "dim", 1)
    page.locator("#second").select_option(index=2)
    page.wait_for_timeout(300)
    for name, picture in before.items():
        assert page.locator(f"#chart-{name}").screenshot() != picture, name
    page.locator("#reset").click()
    assert float(page.locator("body").get_attribute("data-sigma")) == pytest.approx(0.01)
    assert page.locator("#dim-shown").text_content() == "4"
    assert seen == []


def test_where_the_model_fails_the_page_says_so(opened):
    page, _ = opened
    assert page.locator("#beyond").is_hidden()
    move(page, "sigma", 0.5)
    assert page.locator("#beyond").is_visible()
    assert page.locator("#beyond-verdict").text_content() in ("marginal", "invalid")


def test_the_ranking_is_sorted_and_filtered(opened, analysed):
    page, seen = opened
    rows = page.locator("#ranking tbody tr")
    assert rows.count() == 25
    assert rows.first.locator("td").first.text_content() == HOSTILE
    page.get_by_role("button", name="loss", exact=True).click()
    assert rows.first.locator("td").nth(3).text_content() == shown(float(analysed.ranking.loss.max()))
    assert page.locator('th[data-column="loss"]').get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="loss", exact=True).click()
    assert rows.first.locator("td").nth(3).text_content() == shown(float(analysed.ranking.loss.min()))
    page.get_by_role("button", name="candidate", exact=True).click()
    page.locator("#filter").fill("example 12")
    names = rows.locator("td:first-child").all_text_contents()
    assert names == ["example 12", *(f"example 12{i}" for i in range(10))]
    page.locator("#filter").fill("")
    page.get_by_role("button", name="show more").click()
    assert rows.count() == 125
    assert seen == []


def shown(value):
    """As the page writes a number of moderate size: three digits."""
    return f"{float(f'{value:.3g}'):g}" if value >= 1e-3 else f"{value:.2e}".replace("e-0", "e-")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_is_wider_than_the_window(browser, file, scheme, viewport):
    page = browser.new_page(viewport=viewport, color_scheme=scheme)
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-drawn=yes]")
    for details in page.locator("details").all():
        details.evaluate("element => element.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark is (scheme == "dark")
    page.close()


def test_the_keyboard_reaches_the_sliders(opened):
    page, _ = opened
    page.locator("#k").focus()
    before = page.locator("#k-shown").text_content()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#k-shown").text_content() != before
    for name in ("sigma", "dim", "k", "tolerance"):
        assert page.locator(f'label[for="{name}"]').count() == 1


def test_two_directions_are_never_the_same(opened):
    page, seen = opened
    page.locator("#first").select_option(index=1)
    assert page.locator("#second").input_value() == "2"
    page.locator("#second").select_option(index=1)
    assert page.locator("#first").input_value() == "2"
    assert seen == []


def test_a_size_on_the_shape_leaves_the_level_out(browser, analysed, tmp_path):
    required = cp.required_sample_size(analysed.sample, analysed.fresh, analysed.sigma, 1e-4, of="shape")
    file = replace(analysed, required=required).to_html(tmp_path / "report.html")
    page = browser.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-drawn=yes]")
    assert number(page, "size") == pytest.approx(required.observed, abs=1)
    assert "on tilt and bend" in page.locator('label[for="tolerance"]').text_content()
    page.close()


def test_one_direction_has_no_plane(browser, analysed, tmp_path):
    line = replace(
        analysed,
        spectrum=replace(
            analysed.spectrum,
            **{n: getattr(analysed.spectrum, n)[:1] for n in ("eigenvalues", "residuals", "converged")},
        ),
        sample=analysed.sample.truncate(1),
        fresh=analysed.fresh.truncate(1),
    )
    page, seen = browser.new_page(), []
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.goto(line.to_html(tmp_path / "report.html").as_uri())
    page.wait_for_selector("body[data-drawn=yes]")
    assert page.locator(".chart svg.marks").count() == 4
    assert page.locator("#first").count() == 0
    assert seen == []
    page.close()
