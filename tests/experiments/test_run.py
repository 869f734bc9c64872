"""From a name to a result: options, costs, keys of finished points, the command."""

import importlib.util

import pytest
import torch
from typer.testing import CliRunner

import curvprobe as cp
from curvprobe.cli import app
from curvprobe.experiments import validity
from curvprobe.experiments.cost import Cost, dry_run
from curvprobe.experiments.machine import code_of
from curvprobe.experiments.options import Options
from curvprobe.experiments.over_seeds import exponent
from curvprobe.experiments.run import EXPERIMENTS, check_options, rehearse, run_experiment
from curvprobe.losses import causal_lm
from tests.experiments.tiny import TINY, run, sequences


def test_changed_code_finds_no_points(tmp_path, monkeypatch):
    settings = validity.Settings(TINY, trained=8, sigmas=(1e-3, 1e-1), num_probes=2, seeds=1)
    run("validity", settings, tmp_path)
    monkeypatch.setattr(validity, "errors", None)
    run("validity", settings, tmp_path)  # found
    monkeypatch.setattr("curvprobe.experiments.each_model.code_of", lambda _: "another")
    with pytest.raises(TypeError):
        run("validity", settings, tmp_path)


def test_exponents_are_those_of_power_laws():
    ks = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    found = exponent(ks, torch.stack([3 * ks**-2, 5 * ks**-1.8]))
    low, high = found["interval"]
    assert found["value"] == pytest.approx(-1.9)
    assert high - low == pytest.approx(2 * 12.706 * 0.1, rel=1e-3)


def test_costs_add_up_and_give_seconds():
    one = Cost(trained=1, forwards=2, products=3, vectors=4)
    assert (one + Cost(1, 1, 1, 9)) * 2 == Cost(4, 6, 8, 9)
    risk = cp.EmpiricalRisk(TINY.model(0).eval(), causal_lm, sequences()[:4])
    assert (one * 100).seconds(risk) > 0


def test_a_dry_run_counts_parameters_operations_and_memory():
    risk = cp.EmpiricalRisk(TINY.model(0).eval(), causal_lm, sequences()[:2])
    found = dry_run(Cost(10, 10, 10, 7), TINY, risk, needed=30, available=20)
    assert "30 sequences are needed, and the text has 20: give a longer one" in str(found)
    assert found.num_params == sum(p.numel() for p in TINY.model(0).parameters())
    assert found.logits == (1, 12, 300)
    matrices = found.num_params - 300 * 16  # all but the embedding, which is looked up
    assert 2 * 12 * matrices <= found.forward_flops < 2.5 * 12 * matrices
    assert found.total_flops == found.forward_flops * 100
    assert found.bytes >= 7 * 4 * found.num_params
    assert "(1, 12, 300)" in str(found)


def test_a_rehearsal_of_digits_gives_seconds():
    assert rehearse("fc") > 0


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_preset_counts_its_cost(name):
    for settings in EXPERIMENTS[name].presets.values():
        cost = EXPERIMENTS[name].cost(settings, Options())
        assert cost.trained > 0
        assert cost.forwards > 0
        assert settings.seeds >= 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("validity", {"weights": "converged"}, "converged weights came for validity"),
        ("timing", {"literal": True}, "timing always has the paper's procedure beside"),
        ("fc", {"literal": True}, "literal came for fc"),
        ("fc", {"text": "x"}, "which needs none"),
        ("fc", {"device": "cuda"}, "runs on the cpu"),
        ("decay", {"text": "x", "weights": "converged"}, "which needs none"),
    ],
)
def test_options_without_a_use_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        check_options(EXPERIMENTS[name], Options(**options))


def test_an_unknown_experiment_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the experiment is 'decays'; expected one of decay, ratio"):
        run_experiment("decays", out=tmp_path)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_runs_an_experiment(tmp_path, monkeypatch):
    tiny = validity.Settings(TINY, trained=8, sigmas=(1e-3, 1e-1), num_probes=2, seeds=2)
    monkeypatch.setitem(validity.PRESETS, "cpu", tiny)
    result = invoke("experiment", "validity", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "estimate" in result.output
    assert "bfloat16" in result.output
    files = {"result.json", "validity.png", "validity.pdf"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*files, ".lock", "stages"}
    monkeypatch.chdir(tmp_path)
    assert invoke("experiment", "validity").exit_code == 0  # without a folder of its own it shares the stages
    assert {p.name for p in (tmp_path / "runs/experiments/validity").iterdir()} == {*files, ".lock"}
    assert len(list((tmp_path / "runs/experiments/stages").glob("weights-*.json"))) == 2
    dry = invoke("experiment", "validity", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "(1, 12, 300)" in dry.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fc", "--weights", "converged"), "expected for decay or ratio only"),
        (("decay", "--device", "nothing"), "--device is 'nothing'"),
        (("decay", "--text", "/nowhere/text"), "cannot be read"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message, tmp_path):
    result = invoke("experiment", *arguments, "--out", tmp_path)
    assert result.exit_code == 1
    assert message in result.output.replace("\n", " ")


def test_keys_of_points_do_not_depend_on_comments(tmp_path):
    plain = "def look(x):\n    return x + 1\n"
    told = '"""A module."""\n\n\ndef look(x):\n    """Add."""\n    return (x + 1)  # one more\n'
    found = []
    for name, text in (("plain", plain), ("told", told), ("other", plain.replace("1", "2"))):
        path = tmp_path / f"{name}_source.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(code_of(module.look))
    assert found[0] == found[1] != found[2]
