import json
from dataclasses import dataclass

import pytest
import torch

from curvprobe.runtime.plain import to_json
from curvprobe.runtime.store import Store, write_atomically


@dataclass(frozen=True, eq=False)
class Stage:
    values: torch.Tensor
    missing: torch.Tensor | None
    name: str
    pair: tuple[str, ...]
    number: float


def make() -> Stage:
    return Stage(torch.arange(3.0), None, "x", ("a", "b"), float("nan"))


def never() -> Stage:
    raise AssertionError("computed although it lies there")


def test_a_finished_stage_comes_back_as_it_was(tmp_path):
    store = Store(tmp_path)
    first, found = store.stage("s", [1, "k"], Stage, make)
    again, found_again = store.stage("s", [1, "k"], Stage, never)
    assert (found, found_again) == (False, True)
    assert torch.equal(first.values, again.values)
    assert again.values.dtype == torch.float32
    assert (again.missing, again.name, again.pair) == (None, "x", ("a", "b"))
    assert again.number != again.number


def test_another_key_is_computed_again(tmp_path):
    store = Store(tmp_path)
    store.stage("s", [1], Stage, make)
    _, found = store.stage("s", [2], Stage, make)
    assert not found


@pytest.mark.parametrize("ending", ["safetensors", "json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_damaged_stage_is_computed_again(tmp_path, ending, damage):
    store = Store(tmp_path)
    store.stage("s", [1], Stage, make)
    path = tmp_path / f"s.{ending}"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"{}")
    _, found = store.stage("s", [1], Stage, make)
    assert not found
    assert store.stage("s", [1], Stage, never)[1]


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store(None)
    assert store.stage("s", [1], Stage, make)[1] is False
    assert store.stage("s", [1], Stage, make)[1] is False
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_atomically(path, b"old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict():
    content = to_json({"a": float("inf"), "b": torch.tensor([1.0, float("nan")]), "c": (True, None)})
    assert json.loads(content, parse_constant=pytest.fail) == {"a": None, "b": [1.0, None], "c": [True, None]}
