"""The pages' Python runs as printed, and the docstrings come out as formulas, links and code."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import curvprobe as cp

DOCS = Path(__file__).parent.parent / "docs"
BENCHMARKS = DOCS.parent / "benchmarks"
PAGES = sorted(path.stem for path in DOCS.glob("*.md") if "```python" in path.read_text())


@pytest.mark.filterwarnings("ignore:The quadratic model is validated at no sigma")
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)
    namespace: dict[str, object] = {}
    with torch.random.fork_rng():
        for block in blocks:
            exec(block, namespace)


def test_the_tutorial_comes_to_an_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    with torch.random.fork_rng():
        for block in re.findall(r"```python\n(.*?)```", (DOCS / "tutorial.md").read_text(), flags=re.DOTALL):
            exec(block, namespace)
    analysis = namespace["analysis"]
    assert analysis.answer.findings[0].startswith("one more example moves the loss here by")
    assert {mark.word for mark in analysis.answer.trust if mark.name == "minimum"} == {"yes"}
    assert (tmp_path / "runs" / "decay" / "report.html").stat().st_size > 500_000
    printed = capsys.readouterr().out
    assert "NO ANSWER" in printed
    assert "for all; differences are judged candidate by candidate" in printed


@pytest.fixture
def docstrings(monkeypatch):
    pytest.importorskip("latex2mathml")
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    yield importlib.import_module("docstrings")
    sys.modules.pop("docstrings", None)


def test_no_docstring_keeps_the_notation_of_its_source(docstrings):
    """Every public name, and the methods of the public classes."""
    found = [getattr(cp, name) for name in dir(cp) if not name.startswith("_")]
    found += [member for one in found if isinstance(one, type) for member in vars(one).values()]
    texts = [one.__doc__ for one in found if isinstance(getattr(one, "__doc__", None), str)]
    made = [docstrings.rendered(text) for text in texts]
    assert not [text for text in made if re.search(r"\.\. math::|:math:|:func:|:class:|Example:\n|``", text)]
    formulas = sum(text.count("<math ") for text in made)
    assert formulas == sum(len(re.findall(r"\.\. math::|:math:`", text)) for text in texts) > 20


def test_formulas_of_several_lines_and_stars(docstrings):
    text = "Sum.\n\n    .. math:: a^*\n        + b_1 w^*\n\n    More."
    made = docstrings.rendered(text)
    assert made.startswith('Sum.\n\n    <div class="formula"><math')
    assert made.endswith("</math></div>\n\n    More.")
    assert "*" not in made
    assert "_" not in made


def test_links_go_to_what_the_page_documents(docstrings):
    assert docstrings.rendered("see :func:`curvprobe.plane`") == "see [`plane`][curvprobe.plane]"
    assert docstrings.rendered("see :meth:`to_json`") == "see `to_json`"


def test_every_public_name_is_on_the_page(docstrings):
    names = set(dir(cp)) - {"Checkpoint", "ConvergenceWarning", "CurvatureMatrix", "losses", "plots"}
    public = {name for name in names if not name.startswith("_") and getattr(cp, name).__doc__}
    assert public - docstrings.DOCUMENTED == set()
