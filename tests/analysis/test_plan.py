"""The plan: the stages of a real result, the work that they do, and nothing left behind."""

import json

import pytest
import torch

import curvprobe as cp
from curvprobe.analysis import unit_costs
from curvprobe.analysis.plan import Plan, PlannedStage, rough_time
from curvprobe.analysis.unit_costs import Line, lines
from curvprobe.curvature.matrix import CurvatureMatrix
from curvprobe.risk.budget import Budget
from curvprobe.runtime.plain import in_bytes
from tests import cases


def rows_of(plan: Plan) -> dict[str, PlannedStage]:
    return {row.name: row for row in plan.stages}


# ---- what is planned is what is done -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"stages": "quick"}, {"p": 1.5}, {"surface": 0}, {"laws": True, "concentration": True, "surface": 5}],
    ids=["full", "quick", "another order", "no picture", "all there is"],
)
def test_the_stages_are_those_of_a_real_result(case, options):
    done = cp.analyze(case.risk(), case.candidates, dim=3, num_probes=8, **options)
    assert [row.name for row in cp.plan(case.risk(), case.candidates, dim=3, num_probes=8, **options).stages] == [
        *done.seconds
    ]


@pytest.fixture
def counted(monkeypatch):
    """Hessian products of every stage of an analysis, with how many examples; and losses at displaced points."""
    found: dict[str, dict[str, list[int]]] = {}
    at: list[str] = []
    multiply, evaluate = CurvatureMatrix.__matmul__, cp.EmpiricalRisk.losses

    def product(self, vectors):
        if at:
            columns = 1 if vectors.dim() == 1 else vectors.shape[1]
            found[at[-1]]["products"] += [len(self.risk)] * columns
        return multiply(self, vectors)

    def losses(self, displacement=None, **options):
        if at and displacement is not None:
            found[at[-1]]["losses"].append(len(self))
        return evaluate(self, displacement, **options)

    def told(name, index, count):
        at.append(name)
        found[name] = {"products": [], "losses": []}

    monkeypatch.setattr(CurvatureMatrix, "__matmul__", product)
    monkeypatch.setattr(cp.EmpiricalRisk, "losses", losses)
    monkeypatch.setattr(Budget, "points_at_once", lambda *_: 1)
    return found, told


@pytest.mark.parametrize("sigma", ["auto", 0.02])
@pytest.mark.parametrize("num_probes", [7, 12, 40])
def test_numbers_of_products_and_losses_are_the_real_ones(case, counted, sigma, num_probes):
    found, told = counted
    risk, options = case.risk(), {"dim": 3, "sigma": sigma, "num_probes": num_probes, "surface": 5}
    planned = rows_of(cp.plan(case.risk(), case.candidates, **options))
    cp.analyze(risk, case.candidates, progress=told, **options)
    for name, row in planned.items():
        if name == "examination":  # it takes other examples, in double precision
            continue
        products = found[name]["products"].count(len(risk))
        assert row.products[0] <= products <= row.products[1], name
        assert row.losses[0] <= sum(found[name]["losses"]) <= row.losses[1], name
        if name not in ("validity", "monte_carlo", "stationarity"):  # clear sigmas, those that move most, early ends
            assert row.losses[0] == row.losses[1], name
            assert row.products[0] == row.products[1], name
    assert planned["sample"].examples == 30
    assert planned["candidates"].examples == planned["gradient_norms"].examples == 10


def test_products_of_an_eigenspace_that_is_not_quick_are_between_two_numbers(case, monkeypatch):
    monkeypatch.setattr(unit_costs, "FEWEST", 8)
    exact = rows_of(cp.plan(case.risk(), case.candidates, dim=3, stages="quick"))["eigenspace"].products
    assert exact[0] == exact[1] == cp.top_eigenspace(case.risk(), dim=3).num_matvecs
    monkeypatch.setattr(unit_costs, "SOLVED", 0.0)
    low, high = rows_of(cp.plan(case.risk(), case.candidates, dim=3, stages="quick"))["eigenspace"].products
    assert 3 < low <= exact[0] <= high


def test_small_budgets_take_less_memory_and_a_graph_for_each_product(case):
    plenty = cp.plan(case.risk(), case.candidates, dim=2)
    few = rows_of(cp.plan(case.risk(microbatch_size=4), case.candidates, dim=2))
    assert few["isotropic_model"].memory < rows_of(plenty)["isotropic_model"].memory
    assert plenty.total.memory == max(row.memory for row in plenty.stages)


# ---- nothing is left behind ---------------------------------------------------------------------------------------


def test_a_plan_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = cases.make("attention")
    risk = case.risk()
    before = cases.state_of(case.model)
    known, passed, fast = (
        vars(risk.sample.known).copy(),
        dict(risk.probed.passed),
        dict(risk.probed.fast_paths.verdicts),
    )
    cp.plan(risk, case.candidates, dim=2)
    assert cases.state_of(case.model) == before
    assert vars(risk.sample.known) == known
    assert (risk.probed.passed, risk.probed.fast_paths.verdicts) == (passed, fast)
    assert list(tmp_path.iterdir()) == []


def test_what_an_analysis_refuses_a_plan_refuses(case):
    for options in (
        {"dim": 0},
        {"num_probes": 1},
        {"stages": "all"},
        {"sigma": -1.0},
        {"surface": 2},
        {"p": 0.5},
        {"tol": 2.0},
    ):
        with pytest.raises(cp.ArgumentError) as refused:
            cp.plan(case.risk(), case.candidates, **options)
        with pytest.raises(cp.ArgumentError) as same:
            cp.analyze(case.risk(), case.candidates, **options)
        assert str(refused.value) == str(same.value)
    with pytest.raises(cp.ArgumentError, match="candidates are in the sample"):
        cp.plan(case.risk(), case.data)


# ---- how it is told -----------------------------------------------------------------------------------------------


def test_the_table_is_narrow_and_ends_in_the_sum():
    rows = (
        PlannedStage("eigenspace", (31, 64), 0, (0, 0), (200.0, 9000.0), 3 * 2**30),
        PlannedStage("sample", (0, 0), 100000, (0, 0), (3000.0, 3000.0), 2**20),
        PlannedStage("surface", (2, 2), 0, (44100000, 44100000), (0.25, 0.251), 2**20),
    )
    plan = Plan(rows)
    lines = str(plan).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["eigenspace", "31-64", "3.3", "min-2.5", "h", "3", "GiB"]
    assert lines[4].split() == ["surface", "2", "44,100,000", "0.25", "s", "1", "MiB"]
    assert lines[6].split() == ["in", "all", "33-66", "100,000", "44,100,000", "53", "min-3.3", "h", "3", "GiB"]
    record = json.loads(json.dumps(plan.to_json()))
    assert record["stages"][0]["products"] == [31, 64]
    assert record["total"]["seconds"] == [pytest.approx(3200.25), pytest.approx(12000.251)]


def test_time_and_memory_are_told_in_their_own_units():
    assert [rough_time(s) for s in (0.0123, 3.21, 119.0, 120.0, 7200.0)] == [
        "0.012 s",
        "3.2 s",
        "119 s",
        "2 min",
        "2 h",
    ]
    assert [in_bytes(count) for count in (5, 3000, 5 * 2**20, 2**33)] == ["5 B", "2.93 KiB", "5 MiB", "8 GiB"]


# ---- what parts cost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("once", [0.0, 1.0], ids=["at once", "after a second of preparation"])
def test_costs_of_some_examples_are_extended_to_all_without_what_is_done_once(once):
    asked = []

    def work(rows: int) -> tuple[float, ...]:
        asked.append(rows)
        return 0.05 + 0.002 * rows + (once if len(asked) == 1 else 0), 0.25

    line, level = lines(work, 1000)
    assert max(asked) < 1000
    assert line.of(1000, 1000) == pytest.approx(2.05)
    assert line.of(1000, 300) == pytest.approx(4 * 0.05 + 2.0)
    assert (level.fixed, level.each) == (pytest.approx(0.25), 0.0)


def test_costs_that_fall_are_level_and_others_in_proportion():
    (line,) = lines(lambda rows: (1.0 / rows,), 4)
    assert line == Line(0.25, 0.0)
    (line,) = lines(lambda rows: (9.0 * rows,), 100)
    assert line == Line(0.0, 9.0)
    assert line.of(7, 2) == 63.0


def test_the_spread_examples_are_from_all_over_and_unknown():
    risk = cases.make("mlp").risk()
    risk.losses()
    some = unit_costs.spread(risk, 3)
    assert torch.equal(some.losses(), risk.losses()[[0, 2, 5]])
    assert unit_costs.spread(risk, 6).sample.known.losses is None
