import json
import time
from dataclasses import dataclass

import pytest
import torch

from curvprobe.errors import ArgumentError
from curvprobe.runtime.plain import to_json
from curvprobe.runtime.store import Finished, Stage, Store, read_stage, write_atomically


@dataclass(frozen=True, eq=False)
class Found:
    values: torch.Tensor
    missing: torch.Tensor | None
    name: str
    pair: tuple[str, ...]
    number: float


def make() -> Found:
    return Found(torch.arange(3.0), None, "x", ("a", "b"), float("nan"))


def never():
    raise AssertionError("computed although it lies there")


def stage(key=1, compute=make, name="s", kind=Found) -> Stage:
    return Stage(name, [key, "k"], kind, compute)


def was_found(folder, **options) -> bool:
    store = Store(folder)
    store.result(stage(**options))
    return store.finished["s"].found


def test_a_finished_stage_comes_back_as_it_was(tmp_path):
    first, store = Store(tmp_path).result(stage()), Store(tmp_path)
    again = store.result(stage(compute=never))
    assert store.finished["s"].found
    assert torch.equal(first.values, again.values)
    assert again.values.dtype == torch.float32
    assert (again.missing, again.name, again.pair) == (None, "x", ("a", "b"))
    assert again.number != again.number


def test_a_stage_may_be_one_tensor_or_plain_values(tmp_path):
    plain = {"rows": ({"a": 1.5, "b": float("nan")},), "tensor": torch.arange(2)}
    for kind, made in ((torch.Tensor, torch.arange(4.0).double()), (dict, plain)):
        first = Store(tmp_path).result(Stage("s", kind.__name__, kind, lambda made=made: made))
        again = Store(tmp_path).result(Stage("s", kind.__name__, kind, never))
        if kind is torch.Tensor:
            assert torch.equal(first, again)
            assert again.dtype == torch.float64
        else:  # what is computed is what a later run finds
            assert first == again == {"rows": [{"a": 1.5, "b": None}], "tensor": [0, 1]}


def test_the_store_keeps_the_time_and_the_key_of_every_stage(tmp_path):
    store = Store(tmp_path)
    store.result(stage(compute=lambda: (time.sleep(0.02), make())[1]))
    computed = store.finished["s"]
    assert not computed.found
    assert store.seconds == computed.seconds >= 0.02
    again = Store(tmp_path)
    again.result(stage(compute=never))
    assert again.finished["s"] == Finished(computed.key, computed.seconds, True)
    assert len(computed.key) == 32


def test_a_result_names_the_stages_it_rests_on_and_goes_when_one_is_computed_anew(tmp_path):
    store = Store(tmp_path)
    store.result(stage())
    store.result(stage(name="other"))
    store.write_result({"value": 1.0})
    record = json.loads((tmp_path / "result.json").read_text())
    assert record == {"value": 1.0, "stages": {name: done.key for name, done in store.finished.items()}}
    Store(tmp_path).result(stage(compute=never))
    assert (tmp_path / "result.json").exists()
    Store(tmp_path).result(stage(key=2))
    assert not (tmp_path / "result.json").exists()


def test_another_key_is_computed_again(tmp_path):
    assert not was_found(tmp_path, key=1)
    assert not was_found(tmp_path, key=2)
    assert was_found(tmp_path, key=2, compute=never)


@pytest.mark.parametrize("ending", ["safetensors", "json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_damaged_stage_is_computed_again(tmp_path, ending, damage):
    Store(tmp_path).result(stage())
    path = tmp_path / f"s.{ending}"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"{}")
    assert not was_found(tmp_path)
    assert was_found(tmp_path, compute=never)


def test_a_stage_can_be_read_without_computing_it(tmp_path):
    assert read_stage(tmp_path, "s", Found) is None
    store = Store(tmp_path)
    store.result(stage())
    found, seconds = read_stage(tmp_path, "s", Found)
    assert torch.equal(found.values, make().values)
    assert seconds == store.seconds
    assert read_stage(tmp_path, "s", Found, store.finished["s"].key) is not None
    assert read_stage(tmp_path, "s", Found, "another") is None


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not was_found(None)
    assert not was_found(None)
    Store(None).write_result({"value": 1.0})
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


def unwritable(*_, **__):
    raise PermissionError("read-only file system")


def test_a_finished_run_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    store = Store.at(tmp_path)
    store.result(stage())
    store.write_result({"value": 1})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("curvprobe.runtime.store.write_atomically", unwritable)
    again = Store.at(tmp_path)
    assert not again.writable
    again.result(stage(compute=never))
    again.write_result({"value": 2})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ArgumentError, match="its stage s is not that of this model"):
        again.result(stage(key="another", compute=never))
    (tmp_path / "result.json").unlink()
    with pytest.raises(ArgumentError, match="nothing can be written to the folder"):
        Store.at(tmp_path)
