import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import curvprobe
from curvprobe.cli import app
from tests.cli.conftest import TASK


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_run_prints_the_answer_and_leaves_the_files(task_file, tmp_path):
    result = invoke("run", f"{task_file}:task", "--dim", 3, "--k", 10, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "k = 10, 12 candidates" in result.stdout
    assert len(result.stdout.splitlines()) <= 10
    assert "Sample: 10 examples" not in result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"result.json", "eigenspace.safetensors", "decay.pdf", "validity.png", "shares.png"} <= names
    assert json.loads((tmp_path / "out" / "result.json").read_text())["sample"]["k"] == 10


def test_a_module_can_name_the_task(task_file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    result = invoke("run", "my_task:task", "--dim", 2, "--sigma", 0.01, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "sigma 0.01 (given)" in result.output


def test_all_tables_are_printed_where_they_are_asked_for(task_file, tmp_path):
    result = invoke("run", f"{task_file}:task", "--dim", 2, "--full", "--out", tmp_path)
    assert result.stdout.startswith("13 parameters (float64), k = ")
    assert "If the first candidate is added" in result.stdout


def test_json_alone_on_standard_output(task_file, tmp_path):
    result = invoke("run", f"{task_file}:task", "--dim", 2, "--json", "--out", tmp_path)
    printed, written = json.loads(result.stdout), json.loads((tmp_path / "result.json").read_text())
    assert printed == {name: written[name] for name in printed}


def test_quiet_prints_nothing_but_errors(task_file, tmp_path):
    result = invoke("run", f"{task_file}:task", "--dim", 2, "-q", "--out", tmp_path / "out")
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "out" / "result.json").exists()
    assert "returned a int" in invoke("run", f"{task_file}:wrong", "-q", "--out", tmp_path / "out").output


def test_a_part_of_the_parameters_is_chosen(task_file, tmp_path):
    options = ["--params", "0.weight", "--params", "*.bias", "--device", "cpu", "--dim", 2, "--sigma", 0.01]
    result = invoke("run", f"{task_file}:task", *options, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "result.json").read_text())["config"]["param_names"] == [
        "0.weight",
        "0.bias",
        "2.bias",
    ]


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("nowhere.py:task", [], "does not exist"),
        ("no_such_module:task", [], "was not found"),
        ("{file}", [], "expected file.py:function"),
        ("{file}:absent", [], "has no function 'absent'"),
        ("{file}:wrong", [], "returned a int; expected a curvprobe.Task"),
        ("{file}:noisy", [], "call model.eval()"),
        ("{file}:task", ["--k", 99], "--k is 99"),
        ("{file}:task", ["--dim", 1000], "dim is 1000"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_1(task_file, tmp_path, spec, options, message):
    result = invoke("run", spec.replace("{file}", str(task_file)), *options, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sigma", "big"], "it is 'big'; expected 'auto' or a positive number"),
        (["--sigma", "-1"], "it is '-1'; expected 'auto' or a positive number"),
        (["--dim", 0], "should be greater than or equal to 1"),
        (["--k", 0], "should be greater than or equal to 1"),
        (["--num-probes", 1], "should be greater than or equal to 2"),
        (["--p", 0.5], "should be greater than or equal to 1"),
        (["--tol", 0], "it is 0; expected a positive number"),
        (["--tolerance", -1], "it is -1; expected a positive number"),
        (["--tolerance-on", "shapes"], "'shapes' is not one of"),
        *((["--memory-budget", gib], f"it is {gib}; expected a positive number") for gib in (-1, 0, "nan", "inf")),
    ],
)
@pytest.mark.parametrize("command", ["run", "demo"])
def test_wrong_usage_is_refused_before_anything_is_done(task_file, tmp_path, command, options, message):
    task = [f"{task_file}:task"] if command == "run" else []
    result = invoke(command, *task, *options, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", "").split())
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_refused(task_file, tmp_path):
    result = invoke("run", f"{task_file}:task", "--device", "gpu", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "it is 'gpu'" in result.output


def test_an_error_in_the_tasks_own_code_is_shown_from_there_on(task_file, tmp_path):
    result = invoke("run", f"{task_file}:broken", "--out", tmp_path / "out")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith(f'  File "{task_file}", line ')
    assert lines[-1] == "ValueError: in the user's own code"
    assert "curvprobe/cli" not in result.output


def test_memory_that_does_not_suffice_is_no_fault(task_file, tmp_path, monkeypatch):
    def full(*_, **__):
        raise MemoryError("of 8 GiB")

    monkeypatch.setattr("curvprobe.cli.analysis.sample_of", full)
    result = invoke("run", f"{task_file}:task", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "the memory does not suffice: of 8 GiB; try a smaller --memory-budget" in " ".join(result.output.split())
    assert "report" not in result.output


def test_a_fault_of_our_own_is_shown_whole(task_file, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("within")

    monkeypatch.setattr("curvprobe.cli.analysis.sample_of", broken)
    monkeypatch.setattr("curvprobe.cli.messages._is_the_users", lambda _: False)
    result = invoke("run", f"{task_file}:task", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "RuntimeError: within" in result.output
    assert "please report it" in result.output


def test_the_doctor_says_a_line_for_each_check(task_file):
    result = invoke("doctor", f"{task_file}:task", "--dim", 2, "--k", 10)
    assert result.exit_code == 0, result.output
    assert "10 examples; one is a tuple of float64 (1, 1), float64 (1, 1)" in result.output
    assert "Checks: 14 passed." in result.output
    assert "an analysis takes about" in result.output


def test_the_doctor_fails_with_what_was_refused(task_file):
    result = invoke("doctor", f"{task_file}:noisy")
    assert result.exit_code == 1
    assert "fail   modes" in result.stdout
    assert "call model.eval()" in result.stdout


def test_the_doctor_refuses_its_own_arguments_as_run_does(task_file):
    result = invoke("doctor", f"{task_file}:task", "--k", 99)
    assert result.exit_code == 1
    assert "--k is 99" in result.output
    assert invoke("doctor", f"{task_file}:task", "--memory-budget", -1).exit_code == 2


def test_version_and_help():
    assert invoke("--version").output.strip() == f"curvprobe {curvprobe.__version__}"
    text = invoke("--help").output
    for word in ("demo", "run", "result.json", "Exit code"):
        assert word in text
    assert "--sigma" in invoke("run", "--help").output


def test_import_is_light():
    code = (
        "import sys, curvprobe as cp; [getattr(cp, name) for name in cp.__all__]; "
        "extras = {'matplotlib', 'sklearn', 'transformers', 'tokenizers', 'pandas', 'scipy', 'jinja2', 'altair'}; "
        "print(sorted(extras & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_output_path_that_is_a_file_is_refused_at_once(task_file, tmp_path):
    (tmp_path / "taken").touch()
    for command in (["run", f"{task_file}:task"], ["demo"]):
        result = invoke(*command, "--out", tmp_path / "taken")
        assert result.exit_code == 1
        assert "nothing can be written" in result.output


def test_a_task_function_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_task.py").write_text(TASK)
    (tmp_path / "late.py").write_text("def task():\n    from neighbour_of_task import task\n    return task()\n")
    result = invoke("run", f"{tmp_path / 'late.py'}:task", "--dim", 2, "--out", tmp_path / "[red]out[/b]")
    assert result.exit_code == 0, result.output


def test_the_memory_budget_is_in_gib(task_file, tmp_path, monkeypatch):
    monkeypatch.setattr("curvprobe.plots.save_figures", lambda *_: [])
    options = ["--dim", 2, "--sigma", 0.01, "--memory-budget", 0.5, "--out", tmp_path / "out"]
    result = invoke("run", f"{task_file}:task", *options)
    assert result.exit_code == 0, result.output
    engine = json.loads((tmp_path / "out" / "result.json").read_text())["config"]["engine"]
    assert (engine["memory_budget"], engine["compile"]) == (2**29, False)


@pytest.mark.parametrize("budget", ["1e-9", "1e-6"])
def test_memory_budgets_that_make_no_sense(task_file, tmp_path, budget):
    result = invoke("run", f"{task_file}:task", "--memory-budget", budget, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "memory" in result.output
    assert not result.exception or isinstance(result.exception, SystemExit)


def test_compile_is_passed_on(task_file, tmp_path, monkeypatch):
    asked = []

    def analyze(*_, compile, **__):  # noqa: A002 - the argument's name
        asked.append(compile)
        raise ValueError("enough")

    monkeypatch.setattr("curvprobe.cli.analysis.analyze", analyze)
    for options in ([], ["--compile"]):
        invoke("run", f"{task_file}:task", *options, "--out", tmp_path / "out")
    assert asked == [False, True]


def test_natural_duplicates_are_allowed_by_an_option(tmp_path):
    path = tmp_path / "my_task.py"
    path.write_text(TASK.replace("(x[1::2], x[1::2].sin())", "(x[:6], x[:6].sin())"))
    arguments = ["run", f"{path}:task", "--dim", 2, "--sigma", 0.01, "--out", tmp_path / "out"]
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "3 of 6 candidates" in " ".join(result.output.split())
    assert "--allow-overlap" in result.output
    result = invoke(*arguments, "--allow-overlap")
    assert result.exit_code == 0, result.output
    assert "checks DOUBT (overlap)" in result.output
    result = invoke(*arguments, "--allow-overlap", "--full")
    assert "3 of 6 candidates are in the sample too" in " ".join(result.output.split())


def test_the_demo_passes_its_options_on(task_file, tmp_path, monkeypatch):
    from curvprobe.cli import analysis as cli
    from curvprobe.tasks import load_task

    given = {}

    def analyze(*arguments, **options):
        given.update(options)
        return analyze.real(*arguments, **options)

    analyze.real = cli.analyze
    monkeypatch.setattr(cli, "analyze", analyze)
    monkeypatch.setattr("curvprobe.tasks.digits.digits", lambda **_: load_task(f"{task_file}:task"))
    options = ["--dim", "2", "--tolerance", "0.5", "--laws", "--concentration", "--seed", "3", "--num-probes", "8"]
    options += ["--allow-overlap", "--full", "--tolerance-on", "shape"]
    result = CliRunner().invoke(app, ["demo", *options, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    expected = {"dim": 2, "tolerance": 0.5, "laws": True, "concentration": True, "seed": 3, "num_probes": 8}
    expected |= {"compile": False, "allow_overlap": True, "tolerance_on": "shape"}
    assert {name: given[name] for name in expected} == expected
    assert "tolerance 0.5" in result.output
    assert "under other laws" in result.output
    assert (tmp_path / "out" / "concentration.png").exists()


TRAINING = """
import torch
import curvprobe as cp

def train(k):
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)[torch.randperm(40, generator=torch.manual_seed(0)), None]
    model = torch.nn.Linear(1, 1, bias=False).double()
    model.weight.data = torch.linalg.lstsq(x[:k], x[:k] ** 3).solution
    return cp.Task(model, cp.losses.mse, (x[:k], x[:k] ** 3), (x[k:], x[k:] ** 3), description=f"cubic through {k}")
"""


def test_a_trajectory_is_followed_and_goes_on(tmp_path):
    path = tmp_path / "training.py"
    path.write_text(TRAINING)
    arguments = (
        "trajectory",
        f"{path}:train",
        "--ks",
        "8,16,32",
        "--sigma",
        0.01,
        "--dim",
        1,
        "--out",
        tmp_path / "out",
    )
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "result.json").read_text())["config"]["train"] == f"{path}:train"
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["trajectory"]["ks"] == [8, 16, 32]
    assert record["trajectory"]["overlap"] == pytest.approx([1.0, 1.0])
    assert len(record["trajectory"]["expected"]) == 3
    assert (tmp_path / "out" / "trajectory.pdf").exists()
    assert "<title>out</title>" in (tmp_path / "out" / "report.html").read_text()
    assert "report.html" in result.stdout
    again = invoke("report", tmp_path / "out", "--title", "Sizes", "--out", tmp_path / "sizes.html")
    assert again.exit_code == 0, again.output
    assert "<title>Sizes</title>" in (tmp_path / "sizes.html").read_text()
    assert "a trajectory; it goes with an analysis" in invoke("report", tmp_path / "out", "--names", path).output
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.safetensors")}
    assert len(stamps) == 9
    assert invoke(*arguments, "--allow-overlap").exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


def test_a_trajectory_takes_natural_duplicates_where_that_is_said(tmp_path):
    path = tmp_path / "training.py"
    path.write_text(TRAINING.replace("(x[k:], x[k:] ** 3)", "(x[4:], x[4:] ** 3)"))
    sizes = ["--ks", "8,16", "--sigma", 0.01, "--dim", 1]
    arguments = ["trajectory", f"{path}:train", *sizes, "--out", tmp_path / "out"]
    assert "4 of 36 candidates" in " ".join(invoke(*arguments).output.split())
    assert invoke(*arguments, "--allow-overlap").exit_code == 0


@pytest.mark.parametrize(("ks", "message"), [("8,x", "whole numbers such as"), ("16,8", "ascending sample sizes")])
def test_sample_sizes_that_make_no_sense_are_refused(ks, message, tmp_path):
    path = tmp_path / "training.py"
    path.write_text(TRAINING)
    result = invoke("trajectory", f"{path}:train", "--ks", ks, "--sigma", 0.01, "--out", tmp_path)
    assert result.exit_code == 1
    assert message in result.output


def test_a_quick_run_says_what_it_left_out(task_file, tmp_path, monkeypatch):
    options = ("--dim", 2, "--no-report", "--out", tmp_path / "out")
    result = invoke("run", f"{task_file}:task", *options, "--stages", "quick")
    assert "left out: the criterion with isotropic probes, the picture of the loss (--stages full)" in result.stdout
    assert "5 figures" in result.stdout
    assert "left out" not in invoke("run", f"{task_file}:task", *options).stdout  # a small model
    monkeypatch.setattr("curvprobe.cli.loading.LARGE", 5)
    assert "left out" in invoke("run", f"{task_file}:task", *options).stdout
