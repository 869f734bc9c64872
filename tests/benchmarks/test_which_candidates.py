"""The benchmark of which candidates to add in small, and what counts as a win."""

import json

import pytest
import torch

import curvprobe as cp
from tests.benchmarks.test_benchmarks import rows_of, run


def test_every_choice_is_tested_in_small(tmp_path):
    pytest.importorskip("sklearn")
    import which_candidates as which

    options = "--sets cancer --noise 0.2 --seeds 2 --draws 2 --dim 3 --iterations 30"
    result = run(which, tmp_path, options)
    (cell,) = result["cells"]
    assert set(cell["less"]["test_loss"]) == set(which.CHOICES)
    assert cell["means"]["all"]["wrong"] == pytest.approx(0.2)
    assert cell["means"]["largest loss"]["wrong"] > 0.5 > cell["means"]["smallest loss"]["wrong"]
    first, second = (row["choices"] for row in result["rows"])
    less = [row["largest shape"]["error"] - row["random"]["error"] for row in (first, second)]
    found = cell["less"]["error"]["largest shape"]["random"]
    assert found == pytest.approx({"mean": sum(less) / 2, "stderr": abs(less[0] - less[1]) / 2})
    tables = which.table(result).split("\n\n")
    assert [len(rows_of(part)) for part in tables] == [1, 10, 10, 11, 0]


def test_tenths_are_the_ends_of_each_column():
    import which_candidates as which

    rising = torch.arange(10, dtype=torch.float64)
    others = {name: rising for name in which.COLUMNS if name != "loss"}
    found = which.chosen(cp.Ranking(loss=-rising, **others), count=2, draws=3, seed=0)
    assert set(found) == {*which.CHOICES, *which.REFERENCES}
    assert sorted(found["largest total"][0]) == sorted(found["smallest loss"][0]) == [8, 9]
    assert sorted(found["smallest total"][0]) == sorted(found["largest loss"][0]) == [0, 1]
    assert [len(set(rows)) for rows in found["random"]] == [2, 2, 2]


def test_wrong_labels_are_other_labels_of_candidates_only():
    import which_candidates as which

    x = torch.arange(100, dtype=torch.float64)[:, None]
    y = torch.arange(100) % 3
    setting = which.Setting(lambda: (x, y), k=20, candidates=50, test=100, hidden=1, decay=0.0)
    parts = which.split(setting, (x, y), noise=0.2, seed=0)
    parted = (parts.sample, parts.candidates, parts.test)
    off = [labels != y[inputs[:, 0].long()] for inputs, labels in parted]
    assert [int(part.sum()) for part in off] == [0, 10, 0]
    assert torch.equal(off[1], parts.wrong)
    assert sorted(torch.cat([inputs[:, 0] for inputs, _ in parted]).tolist()) == x[:, 0].tolist()


def test_a_verdict_is_what_the_interval_says():
    import which_candidates as which

    assert which.quantile(8) == pytest.approx(4.029, abs=1e-3)  # of 7 degrees of freedom, at 99.75 %
    said = [which.verdict({"mean": mean, "stderr": 1.0}, 4.0) for mean in (-4.1, -3.9, 3.9, 4.1)]
    assert said == [-1, 0, 0, 1]


def test_the_committed_tables_have_every_cell():
    import which_candidates as which

    result = json.loads(which.BENCHMARK.result.read_text())
    assert [(cell["set"], cell["noise"]) for cell in result["cells"]] == [
        (name, noise) for name in which.SETS for noise in (0.0, 0.2)
    ]
    assert len(result["rows"]) == 6 * result["seeds"]
    assert result["quantile"] == pytest.approx(which.quantile(result["seeds"]))
