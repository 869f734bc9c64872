"""The page of the paper's experiments: a section a figure, each built alike, and its small tables."""

import json
import re
from pathlib import Path

import pytest

from curvprobe.experiments.error_map import below_rounding

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, flags=re.MULTILINE))
PARTS = re.compile(
    r"\n\*\*Claim\.\*\* .*?\n(!\[.+\]\(figures/paper/\S+\.png\)\n)+\n<!-- table (\w+) -->\n(?P<table>.*?)<!-- end -->\n"
    r"\n\*\*Verdict\.\*\* (?P<verdict>Holds in part|Holds|Does not show here)[:,.] .*?\n\n<details markdown",
    flags=re.DOTALL,
)
"""Claim, pictures, small table and verdict in this order, and what the command prints folded behind them."""


def result(name):
    content = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return content.get("result", content)


def anchor(title):
    """Of a heading, as Markdown's toc makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def test_every_section_has_its_claim_picture_table_and_verdict_in_this_order_as_the_summary_says():
    summary = dict(re.findall(r"^\| \[.+\]\(#(\S+)\) \| .+ \| (.+) \|$", PAGE, flags=re.MULTILINE))
    others = {"How they are run", "The four claims of the abstract"}
    found = {}
    for title, text in SECTIONS.items():
        if title not in others:
            parts = PARTS.match(text)
            assert parts, title
            found[anchor(title)] = parts["verdict"]
    assert found == summary
    assert others <= set(SECTIONS)
    assert sum(name.startswith("figure") for name in found) >= 5
    assert "table-timings" in found


def test_pictures_are_there():
    pictures = re.findall(r"\]\((figures/\S+)\)", PAGE)
    assert len(pictures) == len(set(pictures)) == len(list((ROOT / "docs/figures/paper").glob("*.png")))
    assert all((ROOT / "docs" / picture).exists() for picture in pictures)


def test_every_table_is_made_of_the_committed_results():
    import table

    emptied = re.sub(r"(<!-- table \S+ -->\n).*?(<!-- end -->)", r"\1\2", PAGE, flags=re.DOTALL)
    assert len(emptied) < len(PAGE) / 2
    assert table.fill(emptied) == PAGE


def test_small_tables_are_small_and_have_at_most_three_digits():
    for title, text in SECTIONS.items():
        parts = PARTS.match(text)
        rows = parts["table"].split("\n\n")[1].splitlines()[2:] if parts else []
        assert len(rows) <= 9, title
        if title.startswith(("Figure 3", "Figure 5", "Figure 6", "Table")):
            numbers = re.findall(r"(?<![\w^])\d+\.?\d*", " ".join(row.split(" | ", 1)[1] for row in rows))
            assert len(numbers) > 20
            assert all(len(number.replace(".", "").strip("0")) <= 3 for number in numbers), title


# ---- what stands in the cells


def test_numbers_are_short():
    import paper_page

    assert [paper_page.short(value) for value in (1.234e-8, 0.01234, 123.4, 12345)] == [
        "1.23e-8",
        "0.0123",
        "123",
        "1.23e4",
    ]
    assert paper_page.between([3e-12, 1e-12]) == "1e-12 to 3e-12"
    assert paper_page.between([]) == "below rounding"
    assert [paper_page.nearest([1e-3, 1e-2, 1e-1], wanted) for wanted in (1e-9, 0.02, 0.05)] == [0, 1, 2]


@pytest.mark.parametrize("name", ["experiment_convergence", "experiment_convergence_paper"])
def test_deviations_over_models_are_those_of_the_result(name):
    import paper_page

    found, cells = result(name), paper_page.deviations(result(name))
    pairs = zip(found["mean_deviation"], found["mean_stderr"], strict=True)
    expected = [(deviation[-1], error[-1]) for deviation, error in pairs]
    expected.append(tuple(found["literal"][what][-1] for what in ("mean_deviation", "mean_stderr")))
    assert len(cells) == len(expected) + 1  # the last is held against another closed form
    for (deviation, error), cell in zip(expected, cells.values(), strict=False):
        said, of_error, farthest = map(float, re.split(r" [±|] ", cell))
        assert said == pytest.approx(100 * deviation, rel=0.05)
        assert of_error == pytest.approx(100 * error, rel=0.05)
        assert farthest > 0.9


def test_medians_and_ratios_of_the_timings_are_those_of_the_result():
    import paper_page

    found = result("experiment_timing")
    content = [
        json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in ("experiment_timing", "gpu")
    ]
    rows = [line.split(" | ") for line in paper_page.timing(*content).splitlines() if line.startswith("| ")][1:]
    for row, seconds in zip(rows, found["seconds"].values(), strict=False):
        medians = [float(cell.split(" [")[0]) for cell in row[2:4]]
        assert medians == pytest.approx([seconds["paper"], seconds["ours"]], rel=0.01)
    over = found["direct_over_closed_form"]
    assert [float(cell.split(" [")[0]) for cell in rows[6][2:4]] == pytest.approx(
        [over["paper"], over["ours"]], rel=0.01
    )


def test_cells_that_rounding_hides_are_left_out_of_the_map():
    import paper_page

    record = json.loads((ROOT / "benchmarks/results/experiment_error-map.json").read_text())
    hidden = below_rounding(record["result"]).all(0).tolist()
    sigmas = [f"{paper_page.short(sigma, 2)}" for sigma in record["result"]["sigmas"]]
    rows = [line.split(" | ") for line in paper_page.error_map(record).splitlines() if line.startswith("| ")][1:]
    assert {row[3] == "below rounding" for row in rows} == {True, False}
    for row in rows:
        assert (row[3] == "below rounding") == hidden[sigmas.index(row[0].removeprefix("| "))]
