"""The page as text: what it holds, that it asks for nothing, and that names are names."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import curvprobe as cp
from curvprobe.analysis.result import Absent, Analysis
from curvprobe.plots import plot_decay, plot_eigenvalues, plot_shares, plot_validity
from curvprobe.report import style
from curvprobe.report.aggregates import aggregates
from curvprobe.report.page import page
from curvprobe.runtime.plain import to_json
from tests.criteria.samples import sample_of

HOSTILE = "</script><script>alert(1)</script>"


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_a_result_writes_itself(analysed, tmp_path):
    path = analysed.to_html(tmp_path / "digits" / "report.html")
    html = path.read_text()
    assert "<title>digits</title>" in html
    for sentence in (*analysed.answer.findings, analysed.answer.advice):
        assert sentence in html
    assert len(html) < 2_000_000
    found = data_of(html)
    assert found["sigma"] == analysed.sigma
    assert found["tolerance"] == 1e-3
    assert found["ranking"]["position"] == analysed.ranking.order.tolist()


def test_nothing_is_asked_for_from_elsewhere(analysed):
    html = page(analysed)
    assert "default-src 'none'" in html
    head = html[: html.index('<script type="module">')]
    assert not re.search(r'(src|href)="(?!data:)', head)


def test_names_are_text(analysed):
    names = [f"example {j}" for j in range(analysed.num_candidates)]
    names[3] = HOSTILE
    html = page(analysed, names=names, title=HOSTILE)
    assert HOSTILE not in html
    assert "<title>&lt;/script&gt;" in html
    assert HOSTILE in data_of(html)["ranking"]["name"]
    with pytest.raises(cp.ArgumentError, match="2 names came for 270 candidates"):
        page(analysed, names=["a", "b"])


def test_a_loaded_result_needs_its_projections(analysed, tmp_path):
    bare = Analysis.from_json(
        json.loads(to_json(analysed.to_json())),
        subspace=Absent("eigenspace"),
        sample=Absent("projections"),
        fresh=Absent("projections"),
    )
    with pytest.raises(cp.ArgumentError, match="read without its projections"):
        bare.to_html(tmp_path / "report.html")


def test_a_thousand_candidates_in_forty_five_directions_fit():
    """The sums do not grow with the examples: 45 directions, 40 sizes and 51 sigmas take less than a megabyte."""
    sigmas = torch.logspace(-5, 0, 51, dtype=torch.float64)
    found = aggregates(sample_of(1000, dim=45), sample_of(100, dim=45, seed=1), sigmas).to_json()
    assert len(json.dumps(found, separators=(",", ":"))) < 700_000


def test_the_sliders_sigmas_are_five_a_decade_with_the_one_analysed(analysed):
    found = data_of(page(analysed))["aggregates"]["sigmas"]
    assert analysed.sigma in found
    assert [b / a for a, b in pairwise(found)] == pytest.approx([10**0.2] * (len(found) - 1))
    tried = analysed.validity.sigmas
    assert found[0] < float(tried[0]) * 10**0.2
    assert found[-1] > float(tried[-1]) / 10**0.2
    beyond = 123.4567890123456789
    wide = data_of(page(replace(analysed, sigma=beyond)))["aggregates"]["sigmas"]
    assert wide[0] < float(tried[0]) * 10**0.2
    assert wide[-1] == beyond


def test_the_loss_itself_is_shown_where_it_was_evaluated(analysed):
    found = data_of(page(analysed))["charts"]
    cells = found["measured"]["layer"][0]["data"]["values"]
    assert len(cells) == 21 * 21
    rise = analysed.plane.loss - analysed.plane.at_solution
    assert cells[30]["height"] == pytest.approx(float(rise[1, 9]), rel=1e-4)
    assert (cells[30]["x"], cells[30]["y"]) == pytest.approx((float(analysed.plane.x[9]), float(analysed.plane.y[1])))
    missed = found["departure"]["layer"][0]["data"]["values"]
    assert missed[30]["height"] == pytest.approx(float(analysed.plane.departure[1, 9]), rel=1e-4)
    scale = found["departure"]["layer"][0]["encoding"]["color"]["scale"]["domain"]
    height = float((analysed.plane.model - analysed.plane.at_solution).abs().max())
    assert scale[1] == pytest.approx(max(float(analysed.plane.departure.abs().max()), 0.1 * height))
    without = page(replace(analysed, plane=None))
    assert "measured" not in data_of(without)["charts"]
    assert "chart-measured" not in without


def test_the_charts_shade_what_the_verdicts_refuse_and_show_standard_errors(analysed):
    found = analysed.validity
    verdicts = ("marginal", *["valid"] * (len(found.sigmas) - 3), "marginal", "invalid")
    changed = replace(analysed, validity=replace(found, verdicts=verdicts))
    drawn = data_of(page(changed))["charts"]
    for name, place in (("validity", 0), ("shares", 1)):
        shaded = drawn[name]["layer"][place]["data"]["values"]
        for sigma in torch.logspace(-4, 0, 60).tolist():
            over = [row["verdict"] for row in shaded if row["from"] < sigma <= row["to"]]
            verdict = changed.validity.verdict(sigma)
            if float(found.sigmas[0]) < sigma <= float(found.sigmas[-1]):
                assert over == ([] if verdict == "valid" else [verdict])
    rows = drawn["validity"]["layer"][-1]["data"]["values"]
    judged = [row for row in rows if row["of"] == style.INCREMENT]
    assert [row["error"] for row in judged] == found.increment_error.tolist()
    assert [row["high"] - row["error"] for row in judged] == pytest.approx(found.stderr.tolist())


def test_the_charts_have_the_colours_and_words_of_the_figures(analysed):
    drawn = data_of(page(analysed))["charts"]
    shares = drawn["shares"]["layer"][0]["encoding"]
    assert dict(zip(shares["color"]["scale"]["domain"], shares["color"]["scale"]["range"], strict=True)) == style.PARTS
    assert plot_shares(analysed).axes[0].get_ylabel() == shares["y"]["title"]
    assert plot_validity(analysed).axes[0].get_ylabel() == drawn["validity"]["layer"][-1]["encoding"]["y"]["title"]
    assert plot_decay(analysed).axes[0].get_ylabel() == drawn["decay"]["layer"][0]["encoding"]["y"]["title"]
    assert plot_eigenvalues(analysed).axes[0].get_ylabel() == drawn["eigenvalues"]["layer"][1]["encoding"]["y"]["title"]


def test_concentration_is_shown_where_it_was_computed(analysed):
    shares = torch.tensor([[0.1, 0.4], [0.01, torch.nan]], dtype=torch.float64)
    found = cp.ConcentrationCurve(
        names=("hessian", "<few>"),
        certified=torch.tensor([2, 1]),
        dims=torch.tensor([1, 2]),
        criterion=shares,
        criterion_stderr=shares / 10,
        shape=shares,
        shape_stderr=shares / 10,
        num_params=40,
        sigma=0.01,
        full_criterion=1.0,
        full_criterion_stderr=0.1,
        full_shape=0.5,
    )
    html = page(replace(analysed, concentration=found))
    rows = data_of(html)["charts"]["concentration"]["data"]["values"]
    assert [(row["directions"], row["D"], row["share"]) for row in rows] == [
        ("hessian", 1, 0.1),
        ("hessian", 2, 0.4),
        ("<few>", 1, 0.01),
        ("D / N", 1, 0.025),
        ("D / N", 2, 0.05),
    ]
    assert "&lt;few&gt;" in html
    assert "chart-concentration" not in page(analysed)
