import json
import logging
import time
import warnings
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
@pytest.mark.parametrize("damage", ["cut", "gone", "other", "list"])
def test_a_damaged_stage_is_computed_again(tmp_path, ending, damage):
    Store(tmp_path).result(stage())
    path = tmp_path / f"s.{ending}"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"{}" if damage == "other" else b"[3]")
    if ending == "json" and damage in ("gone", "other"):  # the JSON comes last: a stage that was not finished
        assert not was_found(tmp_path)
    else:
        with pytest.warns(UserWarning, match=rf"s\.{ending} .*; the stage s is computed again") as told:
            assert not was_found(tmp_path)
        assert len(told) == 1
    assert was_found(tmp_path, compute=never)


def test_every_flipped_bit_is_noticed(tmp_path):
    """In a tensor, in a number, in the key, in the name of an entry; but for what JSON does not tell apart."""
    store = Store(tmp_path)
    store.result(stage())
    key = store.finished["s"].key
    for path in (tmp_path / "s.json", tmp_path / "s.safetensors"):
        whole = path.read_bytes()
        for place in range(0, len(whole), 3):
            for bit in (0, 3, 6):
                path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    found = read_stage(tmp_path, "s", Found, key)
                if found is None:
                    assert len(told) == 1 or b'"key"' not in path.read_bytes() or key.encode() not in path.read_bytes()
                else:
                    assert not told
                    assert torch.equal(found[0].values, make().values)
                    assert (found[0].name, found[0].pair, found[1]) == ("x", ("a", "b"), store.seconds)
        path.write_bytes(whole)


def test_a_stage_of_a_newer_version_is_explained_and_one_of_an_earlier_is_another(tmp_path, caplog):
    Store(tmp_path).result(stage())
    path = tmp_path / "s.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "schema_version": 9}))
    with pytest.warns(UserWarning, match=r"s\.json has schema version 9, and this version of curvprobe reads up to 3"):
        assert not was_found(tmp_path)
    del record["schema_version"], record["checksum"]
    path.write_text(json.dumps(record))
    assert read_stage(tmp_path, "s", Found, record["key"]) is not None
    with caplog.at_level(logging.INFO, "curvprobe"):
        assert not was_found(tmp_path)
        assert not was_found(tmp_path, key=2)
    assert "s.json is of an earlier version" in caplog.text
    assert "s.json is of another model, other data or other settings" in caplog.text


def test_damage_is_told_where_nothing_can_be_written(tmp_path):
    Store(tmp_path).result(stage())
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(ArgumentError, match=r"its stage s is damaged: .*s\.json is cut short or changed"):
        Store(tmp_path, writable=False).result(stage(compute=never))


def test_damage_is_told_where_a_stage_is_only_read(tmp_path):
    Store(tmp_path).result(stage())
    (tmp_path / "s.json").write_text("{")
    with pytest.warns(UserWarning, match="the stage s is not read"):
        assert read_stage(tmp_path, "s", Found) is None


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
