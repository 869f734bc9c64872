"""What is done with finished runs: reports, comparisons, conditions."""

import json
from xml.etree import ElementTree

import pytest
import torch

import curvprobe as cp
from curvprobe.cli import formats
from curvprobe.cli.loading import pictures_of
from tests.cli.test_cli import invoke


def test_finished_runs_are_compared(task_file, tmp_path):
    for sigma in (0.01, 0.02):
        invoke(
            "run",
            f"{task_file}:task",
            "--dim",
            2,
            "--sigma",
            sigma,
            "--no-report",
            "-q",
            "--out",
            tmp_path / f"at{sigma}",
        )
    result = invoke("compare", tmp_path / "at0.01", tmp_path / "at0.02")
    assert result.exit_code == 0, result.output
    assert "sigma 0.01 for all" in result.stdout
    assert "at0.02" in result.stdout
    record = json.loads(invoke("compare", tmp_path / "at0.01", tmp_path / "at0.02", "--json").stdout)
    assert [run["name"] for run in record["runs"]] == ["at0.01", "at0.02"]
    written = invoke("compare", tmp_path / "at0.01", tmp_path / "at0.02", "--html", tmp_path / "both.html")
    assert written.stdout == result.stdout
    assert f"written to {tmp_path / 'both.html'}" in written.stderr
    assert "<title>at0.01, at0.02</title>" in (tmp_path / "both.html").read_text()
    assert invoke("compare", tmp_path / "at0.01").exit_code == 1


def test_a_report_is_written_and_written_anew(task_file, tmp_path):
    result = invoke("run", f"{task_file}:task", "--dim", 2, "--out", tmp_path / "out")
    assert "result.json, report.html, 6 figures" in result.stdout
    assert "<title>out</title>" in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "names.txt").write_text("".join(f"sine {j}\n" for j in range(12)))
    more = ["--title", "A sine", "--names", tmp_path / "names.txt", "--out", tmp_path / "other.html"]
    result = invoke("report", tmp_path / "out", *more)
    assert result.exit_code == 0, result.output
    html = (tmp_path / "other.html").read_text()
    assert "<title>A sine</title>" in html
    assert "sine 11" in html
    assert invoke("report", tmp_path / "out", "--names", tmp_path / "none.txt").exit_code == 1
    assert "no result could be read" in " ".join(invoke("report", tmp_path / "nothing").output.split())
    left = invoke("run", f"{task_file}:task", "--dim", 2, "--no-report", "--out", tmp_path / "plain")
    assert "report.html" not in left.stdout
    assert not (tmp_path / "plain" / "report.html").exists()


def test_a_condition_that_is_met_ends_with_code_3(task_file, tmp_path):
    options = ["--dim", 2, "--out", tmp_path / "out"]
    result = invoke("run", f"{task_file}:task", *options, "--fail-if", "loss > 0", "--fail-if", "sigma > 1e9")
    assert result.exit_code == 3
    assert "Failed: loss > 0: it is " in result.output
    assert "sigma > 1e+09" not in result.output
    assert (tmp_path / "out" / "result.json").exists()
    assert invoke("run", f"{task_file}:task", *options, "--fail-if", "loss < 0").exit_code == 0
    result = invoke("run", f"{task_file}:task", *options, "--fail-if", "loss is 0")
    assert result.exit_code == 2
    assert "expected one such as" in " ".join(result.output.replace("│", "").split())


CONDITIONS = ("--fail-if", "gradient_norm > 0", "--fail-if", "loss > 1e6")


def test_a_pipeline_reads_junit(task_file, tmp_path):
    options = ("--dim", 2, "--no-report", *CONDITIONS, "--report-format", "junit", "--out", tmp_path / "out")
    result = invoke("run", f"{task_file}:task", *options)
    assert result.exit_code == 3
    suite = ElementTree.parse(tmp_path / "out" / "junit.xml").getroot()
    cases = {case.get("name"): case for case in suite}
    failed = cases["gradient_norm > 0"].find("failure")
    assert "gradient_norm" in failed.get("message")
    assert cases["loss > 1e6"].find("failure") is None
    assert cases["minimum"].find("skipped") is not None  # an untrained net
    assert cases["minimum"].get("classname") == "curvprobe.trust"
    assert cases["eigenspace"].find("skipped") is None
    counted = [len(suite.findall(f"testcase{kind}")) for kind in ("", "/failure", "/skipped")]
    assert [int(suite.get(name)) for name in ("tests", "failures", "skipped")] == counted
    assert "NO ANSWER" in suite.find("system-out").text


def test_a_pipeline_reads_annotations(task_file, tmp_path):
    options = ("--dim", 2, "--no-report", *CONDITIONS, "--report-format", "github", "--out", tmp_path / "out")
    lines = [line for line in invoke("run", f"{task_file}:task", *options).stdout.splitlines() if line[:2] == "::"]
    assert lines[0].startswith("::error title=curvprobe::gradient_norm > 0: ")
    assert any(line.startswith("::warning title=curvprobe::minimum") for line in lines)
    assert lines[-1].startswith("::notice title=curvprobe::NO ANSWER")
    assert not any("loss > 1e6" in line for line in lines)
    assert "%25" in formats.workflow_commands(replace_finding("0.1 % of it"), {})[-1]


def test_what_prints_json_prints_nothing_else(task_file, tmp_path):
    options = ("--dim", 2, "--no-report", "--json", "--report-format", "github", "--out", tmp_path / "out")
    result = invoke("run", f"{task_file}:task", *options)
    assert json.loads(result.stdout)["schema_version"] > 0
    assert "::notice title=curvprobe::" in result.stderr


def test_junit_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(cp.ArgumentError, match=r"junit\.xml' cannot be written"):
        formats.write_junit(tmp_path / "file", replace_finding("none"), {})


def replace_finding(text):
    return cp.Answer("model", (text,), None, "", (), "", "")


def test_inputs_that_are_images_are_shown():
    images, labels = torch.rand(5, 3, 4, 4), torch.zeros(5)
    model = torch.nn.Linear(1, 1)
    for candidates in ((images, labels), images, {"label": labels, "pixel_values": images}):
        assert pictures_of(cp.Task(model, cp.losses.mse, None, candidates)) is images
    for candidates in (None, (labels, labels), torch.rand(5, 7, 4, 4), [images]):
        assert pictures_of(cp.Task(model, cp.losses.mse, None, candidates)) is None
    given = torch.rand(5, 2, 2)
    assert pictures_of(cp.Task(model, cp.losses.mse, None, images, pictures=given)) is given


def test_names_and_pictures_that_are_not_as_many_are_refused_before_the_work(tmp_path):
    path = tmp_path / "named.py"
    path.write_text(
        "import curvprobe as cp, torch\n"
        "def task():\n"
        "    x = torch.rand(9, 2)\n"
        "    loss, model = cp.losses.mse, torch.nn.Linear(2, 1)\n"
        "    return cp.Task(model, loss, (x[:6], x[:6, :1]), (x[6:], x[6:, :1]), names=['a'])\n"
    )
    result = invoke("run", f"{path}:task", "--dim", 1, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "the task has 1 names for 3 candidates; expected as many" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()
