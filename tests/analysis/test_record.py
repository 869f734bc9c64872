"""Results that are read back from their files, of this version and of the one before."""

import copy
import json
import pickle
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import curvprobe as cp
from curvprobe import plots
from curvprobe.analysis.table import sections
from tests import cases
from tests.analysis.test_trajectory import fitted


def same(a, b) -> bool:
    """Whether two results hold the same; numbers that are not finite count as such."""
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, Tensor):
        return torch.equal(a.double().nan_to_num(posinf=-1.0), b.double().nan_to_num(posinf=-1.0))
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b or (a != a and b != b)


@pytest.fixture(scope="module")
def run(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    options = {"dim": 3, "tolerance": 1e-2, "laws": True, "concentration": True, "seed": 1}
    return folder, cp.analyze(case.risk(), case.candidates, out=folder, **options)


def as_first_version(record: dict) -> dict:
    """The same as the first version wrote it."""
    record = json.loads(json.dumps(record))
    record["schema_version"] = 1
    record["validity"]["num_probes"] = 16
    del record["stages"]
    for row in record["first_candidate"].values():
        del row["p"]
    del record["validity"]["change"], record["validity"]["loss"], record["concentration"]["num_params"]
    for name in ("expected", "doubling"):
        del record[name]["contributions"], record[name]["pool"]
    return record


def assert_absent(part, name: str) -> None:
    """Whatever is asked of what was not read, the answer is that it was not."""
    assert repr(part) == f"Absent(name='{name}')"
    assert copy.copy(part) == pickle.loads(pickle.dumps(part)) == part
    uses = (len, lambda p: p[0], lambda p: p.gradient, lambda p: p.truncate(1), lambda p: p.basis, list, bool)
    for use in uses:
        with pytest.raises(cp.ArgumentError, match=f"was read without its {name}: .*load the run's folder"):
            use(part)


def test_a_run_comes_back_from_its_folder_as_it_was(run, tmp_path):
    folder, analysis = run
    again = cp.load(folder)
    assert str(again) == str(analysis)
    assert again.table() == analysis.table()
    assert again.metrics() == analysis.metrics()
    for field in fields(analysis):
        if field.name not in ("config", "seconds"):
            assert same(getattr(again, field.name), getattr(analysis, field.name)), field.name
    assert len(plots.save_figures(again, tmp_path)) == 14


def test_a_result_file_alone_tells_all_but_the_bulk(run, tmp_path):
    folder, analysis = run
    (tmp_path / "mine.json").write_bytes((folder / "result.json").read_bytes())
    again = cp.load(tmp_path / "mine.json")
    assert str(again) == str(analysis)
    assert again.table() == analysis.table()
    for absent, name in ((again.subspace, "eigenspace"), (again.sample, "sample"), (again.fresh, "candidates")):
        assert_absent(absent, name)
    assert same(again.ranking, analysis.ranking)
    assert again.to_json()["decay"]["ks"].tolist() == analysis.decay.ks.tolist()


def test_stages_of_another_run_are_not_taken_for_the_results(run, case, tmp_path):
    folder, _ = run
    cp.analyze(case.risk(), case.candidates, dim=2, sigma=1e-2, out=tmp_path)
    (tmp_path / "result.json").write_bytes((folder / "result.json").read_bytes())
    again = cp.load(tmp_path)
    for absent, name in ((again.subspace, "eigenspace"), (again.sample, "sample"), (again.fresh, "candidates")):
        assert_absent(absent, name)


def test_the_first_version_is_read_too(run, tmp_path):
    folder, analysis = run
    for name in ("sample.json", "sample.safetensors", "result.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    record = as_first_version(json.loads((folder / "result.json").read_text()))
    (tmp_path / "result.json").write_text(json.dumps(record))
    again = cp.load(tmp_path)
    assert same(again.delta1, analysis.delta1)
    assert same(again.concentration, analysis.concentration)
    assert same(again.sample, analysis.sample)
    assert_absent(again.subspace, "eigenspace")
    assert_absent(again.fresh, "candidates")
    assert again.validity.change.shape == analysis.validity.change.shape
    assert again.validity.change.isnan().all()
    assert again.expected.interval == analysis.expected.interval
    assert again.metrics() == analysis.metrics()
    kept = [[s for s in sections(a) if "quadratic model" not in s.title] for a in (again, analysis)]
    assert kept[0] == kept[1]
    assert "bfloat16" not in again.table()  # what it is judged by was not written then


def test_a_record_with_one_number_of_draws_for_all_sigmas_is_read(run, tmp_path):
    folder, analysis = run
    record = json.loads((folder / "result.json").read_text())
    assert record["validity"]["num_probes"] == analysis.validity.num_probes.tolist()
    assert set(record["validity"]["num_probes"]) == {4, 16}
    record["schema_version"], record["validity"]["num_probes"] = 5, 16
    (tmp_path / "result.json").write_text(json.dumps(record))
    again = cp.load(tmp_path)
    assert again.validity.num_probes.tolist() == [16] * len(analysis.validity.sigmas)
    assert "it: 16 draws" in plots.plot_validity(again).axes[0].get_title(loc="left")
    assert "it: 4 or 16 draws" in plots.plot_validity(analysis).axes[0].get_title(loc="left")


def as_first_eigenspace(folder: Path, origin: str = "hessian") -> None:
    """Rewrite the stage as the first version wrote it; ``origin`` is what it called the matrix."""
    record = json.loads((folder / "eigenspace.json").read_text())
    record["values"].pop("matrix", None)
    record["values"]["origin"] = origin
    for later in ("schema_version", "checksum"):
        record.pop(later, None)
    (folder / "eigenspace.json").write_text(json.dumps(record))


def copied(run, folder: Path) -> Path:
    """A run of the first version with all its stages."""
    for name in ("eigenspace", "sample", "candidates"):
        for end in ("json", "safetensors"):
            shutil.copy(run / f"{name}.{end}", folder)
    record = as_first_version(json.loads((run / "result.json").read_text()))
    (folder / "result.json").write_text(json.dumps(record))
    as_first_eigenspace(folder)
    return folder


def test_stages_of_the_first_version_are_read(run, tmp_path):
    folder, analysis = run
    again = cp.load(copied(folder, tmp_path))
    assert same(again.subspace, analysis.subspace)
    assert again.subspace.matrix == "hessian"
    assert same(again.sample, analysis.sample)
    assert same(again.fresh, analysis.fresh)
    as_first_eigenspace(tmp_path, "deformation")
    assert cp.load(tmp_path).subspace.matrix == "gradient covariance"


def test_a_result_of_the_first_version_beside_stages_of_another_run(run, case, tmp_path):
    """It does not name its stages; what cannot be its own by the numbers is not taken."""
    folder, _ = run
    copied(folder, tmp_path)
    x, y = case.candidates
    other = tmp_path / "other"
    cp.analyze(case.risk(), (x[:-1], y[:-1]), dim=2, sigma=1e-2, out=other)
    for name in ("eigenspace", "candidates"):
        for end in ("json", "safetensors"):
            shutil.copy(other / f"{name}.{end}", tmp_path)
    as_first_eigenspace(tmp_path)
    again = cp.load(tmp_path)
    assert_absent(again.subspace, "eigenspace")
    assert_absent(again.fresh, "projections")
    assert len(again.sample) == again.k  # of the run itself


def test_a_stage_of_the_first_version_that_is_cut_short_is_absent(run, tmp_path):
    copied(run[0], tmp_path)
    (tmp_path / "eigenspace.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"eigenspace.safetensors does not hold .*; the stage eigenspace is not read"):
        assert_absent(cp.load(tmp_path).subspace, "eigenspace")


def test_a_trajectory_comes_back_and_so_does_one_of_the_first_version(tmp_path):
    risks = [fitted(k) for k in (50, 70, 100)]
    path = cp.trajectory(risks, dim=2, sigma=0.01, out=tmp_path)
    again = cp.load(tmp_path)
    assert same(again, path)
    assert str(again) == str(path)
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["config"] == {"ks": [50, 70, 100], "dim": 2, "sigma": 0.01, "tol": 1e-3, "seed": 0, "p": 2.0}
    record["schema_version"] = 1
    kept = ("value", "stderr", "rms", "rms_interval", "shape")
    record["trajectory"]["expected"] = [{name: e[name] for name in kept} for e in record["trajectory"]["expected"]]
    (tmp_path / "old.json").write_text(json.dumps(record))
    old = cp.load(tmp_path / "old.json")
    assert torch.equal(old.dispersion, path.dispersion)
    assert old.expected[0].rms_interval == pytest.approx(path.expected[0].rms_interval, rel=1e-12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no result could be read"),
        ("{", "no result could be read"),
        ("[]", "something else than an analysis"),
        ('{"experiment": "decay", "schema_version": 1}', "something else than an analysis"),
        ('{"first_candidate": {}, "schema_version": 99}', "schema version 99; this version of curvprobe reads 1 to 7"),
        ('{"first_candidate": {}}', "schema version None"),
        ('{"first_candidate": {}, "schema_version": 2}', "not a whole result"),
        ('{"trajectory": {}, "schema_version": 2}', "not a whole result"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, content, message):
    path = tmp_path / "result.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(cp.ArgumentError, match=message):
        cp.load(path)


def test_the_picture_of_the_loss_comes_back_with_the_run(tmp_path):
    case = cases.make("mlp")
    first = cp.analyze(case.risk(), case.candidates, dim=2, surface=5, out=tmp_path)
    again = cp.load(tmp_path)
    assert torch.equal(again.plane.loss, first.plane.loss)
    assert str(again.plane) == str(first.plane)
    (tmp_path / "surface.json").unlink()
    assert cp.load(tmp_path).plane is None
    without = cp.analyze(case.risk(), case.candidates, dim=2, surface=0, out=tmp_path)
    assert without.plane is None
    assert "surface" not in without.seconds
    assert cp.load(tmp_path).plane is None
    assert cp.analyze(case.risk(), case.candidates, dim=1).plane is None
