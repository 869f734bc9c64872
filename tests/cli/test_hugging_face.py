"""--hf and --text: a model's folder and its texts in the place of a task."""

import json
import random

import pytest
import torch

from tests.cli.test_cli import invoke
from tests.tasks.test_transformers import TEXTS, WORDS, llama, tokenizer


@pytest.fixture
def folder(tmp_path):
    llama().bfloat16().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    draw = random.Random(0)
    (tmp_path / "corpus.txt").write_text(" ".join(draw.choices(WORDS[5:], k=63)))
    (tmp_path / "held_out.jsonl").write_text("\n".join(json.dumps({"text": text[::-1] + " rose"}) for text in TEXTS))
    return tmp_path


def arguments(folder, *more):
    return ["--hf", folder / "model", "--text", folder / "corpus.txt", "--context", 6, "--params", "last-block", *more]


def test_run(folder):
    result = invoke("run", *arguments(folder), "--candidates", 2, "--dim", 2, "--no-report", "--out", folder / "out")
    assert result.exit_code == 0, result.output
    assert (
        "2,208 probed (last-block), sdpa attention; 10 pieces of 6 tokens, the last 3 left out: 8 in" in result.output
    )
    assert "k = 8, 2 candidates" in result.stdout
    names = json.loads((folder / "out" / "result.json").read_text())["config"]["param_names"]
    assert names
    assert all(name.startswith("model.layers.1.") for name in names)


def test_candidates_of_a_file_plan_and_doctor(folder):
    more = arguments(folder, "--candidates", folder / "held_out.jsonl", "--k", 5)
    result = invoke("run", *more, "--dim", 2, "--out", folder / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    planned = invoke("plan", *more, "--dim", 2, "--json")
    assert planned.exit_code == 0, planned.output
    checked = invoke("doctor", *arguments(folder)[:-2], "--dim", 2)
    assert checked.exit_code == 0, checked.output
    assert "bfloat16" in checked.output
    part = invoke("doctor", *arguments(folder), "--dim", 2)
    assert part.exit_code == 0, part.output
    assert "2,208 probed (last-block)" in part.output


USAGE = {
    "neither": ([], "expected a task, file.py:function, or --hf and --text"),
    "both": (["a.py:task", "--hf", "x", "--text", "y"], "one of both"),
    "text of a task": (["a.py:task", "--text", "y"], "go with --hf"),
    "no text": (["--hf", "x"], "--hf needs --text"),
    "context": (["--hf", "x", "--text", "y", "--context", 1], "--context"),
}


@pytest.mark.parametrize(("options", "message"), USAGE.values(), ids=USAGE)
@pytest.mark.parametrize("command", ["run", "plan", "doctor"])
def test_wrong_usage(tmp_path, command, options, message):
    out = ["--out", tmp_path / "out"] if command == "run" else []
    result = invoke(command, *options, *out)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.replace("│", " ").split())


def test_a_missing_file_is_told_before_the_model_is_read(folder):
    result = invoke("run", "--hf", folder / "none", "--text", folder / "none.txt", "--out", folder / "out")
    assert result.exit_code == 1
    assert "none.txt' does not exist" in " ".join(result.output.split())


def test_what_is_not_probed_is_not_copied(folder):
    from curvprobe.cli.loading import Source, task_from

    task = task_from(Source(None, folder / "model", folder / "corpus.txt"), ["head"])
    risk = task.risk()
    assert risk.param_names == ["lm_head.weight"]
    lies = {p.data_ptr() for p in task.model.parameters() if not p.requires_grad}
    assert {tensor.data_ptr() for tensor in risk.probed.state.kept.values()} == lies
    assert risk.probed.state.kept["model.norm.weight"].dtype == torch.bfloat16
