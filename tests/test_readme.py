"""The README's Python runs as printed."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from curvprobe.cli import app

ROOT = Path(__file__).parent.parent


def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) >= 2
    namespace: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks:
            exec(block, namespace)
    printed = capsys.readouterr().out
    assert "trust: minimum YES" in printed
    assert "certified" in printed
    assert "curvprobe/expected_delta2_subspace" in printed
    assert (tmp_path / "runs" / "mine" / "result.json").exists()


EXAMPLES = {
    "my_task": "eigenspace YES (5 of 5)",
    "my_training": "V grows as",
    "language_model": "eigenspace YES (3 of 3)",
    "checkpoints": "the quadratic model is within 10 % of the change",
    "training_log": "minimum YES",
    "edge_of_stability": "step 4000: first eigenvalue 10.0",
    "hugging_face_trainer": "step 60: loss",
    "lightning_cnn": "step 90: loss",
    "lora": "1,024 probed (lora)",
    "regression": "eigenspace YES (5 of 5)",
}
"""What each script in examples/ prints, among other things."""


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore::FutureWarning")  # of Lightning
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "examples").glob("*.py")))
def test_the_examples_run_as_their_docstrings_say(name, tmp_path, capsys):
    path = ROOT / "examples" / f"{name}.py"
    first, *others = re.findall(r"^(?:Run|or): +(.*)", path.read_text(), flags=re.MULTILINE)
    program, *command = first.split()
    if program == "curvprobe":
        printed = ""
        for _, *words in (command_line.split() for command_line in (first, *others)):
            words[1], words[-1] = str(ROOT / words[1]), str(tmp_path / words[0])
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, result.output
            printed += result.output
    else:
        assert (program, ROOT / command[0]) == ("python", path)
        with torch.random.fork_rng():
            runpy.run_path(str(path))["main"](tmp_path)
        printed = capsys.readouterr().out
    assert EXAMPLES[name] in printed
    assert list(tmp_path.iterdir())


def test_make_targets_that_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z]\w*)", (ROOT / "README.md").read_text())):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_tables_are_those_of_the_result_files():
    import sys

    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import table
    finally:
        sys.path.pop(0)
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert table.fill(path.read_text()) == path.read_text(), f"run `make bench`: {path.name} is out of date"


def test_every_row_of_a_table_has_as_many_cells_as_its_head():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        width = None
        for line in path.read_text().splitlines():
            if not line.startswith("|"):
                width = None
                continue
            cells = len(re.findall(r"(?<!\\)\|", line))
            assert width in (None, cells), f"{path.name}: {line}"
            width = cells
