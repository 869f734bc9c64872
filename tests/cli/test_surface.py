import json

import pytest
import torch

from tests.cli.test_cli import invoke

FIGURES = {"plane.png", "plane.pdf", "surface.png", "surface.pdf"}


@pytest.mark.parametrize("along", ["eigen", "filter"])
def test_a_plane_is_evaluated_and_drawn(task_file, tmp_path, along):
    out = tmp_path / "out"
    result = invoke("surface", f"{task_file}:task", "--along", along, "--points", 5, "--out", out)
    assert result.exit_code == 0, result.output
    assert "over 5 x 5 points along" in result.stdout
    assert "the quadratic model is within 10 % of the change up to" in result.stdout
    record = json.loads((out / "plane.json").read_text())
    assert len(record["loss"]) == len(record["x"]) == 5
    assert record["loss"][2][2] == pytest.approx(record["at_solution"])
    assert {path.name for path in out.iterdir()} == {"plane.json", ".lock", *FIGURES}
    name = {"eigen": "eigenvector 1", "filter": "direction 1"}[along]
    assert record["names"][0] == name
    if along == "filter":
        assert (record["x"][0], record["x"][-1]) == (-1.0, 1.0)


def test_other_axes_and_another_reach(task_file, tmp_path):
    options = ["--points", 3, "--axes", "3,1", "--reach", 0.25, "--out", tmp_path / "out"]
    result = invoke("surface", f"{task_file}:task", *options)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "plane.json").read_text())
    assert record["names"] == ["eigenvector 3", "eigenvector 1"]
    assert record["x"] == [-0.25, 0.0, 0.25]


def test_the_plane_to_two_checkpoints(task_file, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    other = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    save_file(other.state_dict(), tmp_path / "a.safetensors")
    torch.save({"state_dict": {name: 2 * p for name, p in other.state_dict().items()}}, tmp_path / "b.pt")
    files = ["--checkpoint", tmp_path / "a.safetensors", "--checkpoint", tmp_path / "b.pt"]
    options = ["--along", "checkpoints", "--points", 5, "--out", tmp_path / "out"]
    result = invoke("surface", f"{task_file}:task", *options, *files)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "plane.json").read_text())
    assert record["x"] == [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert record["names"] == ["to a.safetensors", "to b.pt"]
    x = torch.linspace(-2, 2, 24, dtype=torch.float64)[::2, None]
    assert record["loss"][1][3] == pytest.approx(((other(x) - x.sin()).square().mean()).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--axes", "1"], "--axes is '1'"),
        (["--axes", "2,2"], "--axes is '2,2'"),
        (["--axes", "0,1"], "--axes is '0,1'"),
        (["--along", "checkpoints"], "0 --checkpoint came"),
        (["--checkpoint", "a.pt"], "1 --checkpoint came"),
        (["--along", "filter", "--reach", "0"], "it is 0"),
    ],
)
def test_wrong_usage_is_told_before_anything_runs(tmp_path, options, message):
    result = invoke("surface", "no_such_file.py:task", *options, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"", b"no state dictionary"])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_checkpoint_that_cannot_be_read(task_file, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    files = ["--checkpoint", tmp_path / name, "--checkpoint", tmp_path / name]
    result = invoke("surface", f"{task_file}:task", "--along", "checkpoints", *files, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "no state dictionary could be read" in " ".join(result.output.split())


def test_a_file_of_something_else(task_file, tmp_path):
    torch.save(torch.ones(3), tmp_path / "a.pt")
    files = ["--checkpoint", tmp_path / "a.pt", "--checkpoint", tmp_path / "a.pt"]
    result = invoke("surface", f"{task_file}:task", "--along", "checkpoints", *files, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "holds a Tensor; expected a state dictionary" in " ".join(result.output.split())


def test_the_picture_of_a_run_can_be_left_out_or_finer(task_file, tmp_path):
    for points, figures in ((0, 5), (7, 6)):
        out = tmp_path / str(points)
        result = invoke("run", f"{task_file}:task", "--dim", 2, "--surface", points, "--no-report", "--out", out)
        assert f"{figures} figures" in result.stdout
        assert (out / "surface.json").exists() == bool(points)
    assert invoke("run", f"{task_file}:task", "--surface", 2, "--out", tmp_path / "x").exit_code == 2
