"""Every benchmark in small, and its table in the docs."""

import json
import re
from pathlib import Path

import pytest
import torch

import curvprobe as cp
from curvprobe.criteria.sample_size import size_with
from curvprobe.numerics import intervals
from tests import cases

ROOT = Path(__file__).parents[2]


def run(script, tmp_path, options):
    """The result file's content."""
    out = tmp_path / "result.json"
    script.BENCHMARK.main([*options.split(), "--out", str(out)])
    return json.loads(out.read_text())


def small_task(name="mlp"):
    case = cases.make(name)
    return cp.Task(case.model, case.loss, case.data, case.candidates)


def rows_of(table):
    """Cells of every line of a table but its head."""
    return [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]


# ---- tables


def test_every_benchmark_has_its_result_its_table_and_its_turn():
    import table

    docs = "".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    for script, one in zip(table.SCRIPTS, table.BENCHMARKS, strict=True):
        assert one.name == script.__name__
        assert one.about == script.__doc__
        assert f"<!-- table {one.name} -->\n{one.table(json.loads(one.result.read_text()))}\n<!-- end -->" in docs
    in_turn = re.search(r"^bench:.*\n\tfor name in ([^;]*);", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(in_turn[1].split()) == {one.name for one in table.BENCHMARKS} - {"gpu", "gpu_parts", "versions"}


def test_only_what_is_marked_is_filled_in():
    import table

    filled = table.fill("before\n<!-- table limit -->\nold\n<!-- end -->\nafter <!-- table none -->\nx\n<!-- end -->")
    start, middle, end = re.fullmatch(r"(before\n.*?-->\n)(.*)(\n<!-- end -->\nafter .*)", filled, re.DOTALL).groups()
    assert start == "before\n<!-- table limit -->\n"
    assert middle == table.limit.table(json.loads(table.limit.BENCHMARK.result.read_text()))
    assert end == "\n<!-- end -->\nafter <!-- table none -->\nx\n<!-- end -->"


def test_tables_of_what_was_not_finished_have_the_same_columns():
    import peers
    import scaling

    result = json.loads(peers.BENCHMARK.result.read_text())
    whole = peers.table(result)
    result["models"]["mlp"]["rows"]["pyhessian"] = {"reached": False, "unfinished": {"reason": "more than 120 s"}}
    lines = peers.table(result).split("\n\n")[0].splitlines()
    assert "| mlp | pyhessian | | not finished: more than 120 s | | | | | |" in lines
    assert {line.count("|") for line in lines if line.startswith("|")} == {whole.splitlines()[0].count("|")}

    result = json.loads(scaling.BENCHMARK.result.read_text())
    one = scaling.table({name: result[name] for name in ("machine", "block")})
    assert one.splitlines()[:-1] == [*scaling.block_table(result["block"]).splitlines(), ""]
    assert one.split("\n\n")[0] in scaling.table(result)


# ---- against the paper's procedure


def test_comparison_with_the_paper_in_small(tmp_path, capsys):
    pytest.importorskip("transformers")
    import gpu

    size = {"hidden-size": 32, "layers": 1, "vocabulary": 300, "context": 16, "steps": 20, "dim": 3, "k": 4}
    options = {**size, "num-probes": 8, "repeats": 1, "device": "cpu"}
    result = run(gpu, tmp_path, " ".join(f"--{name}={value}" for name, value in options.items()))
    assert f"context 16: {result['num_params']} parameters, k = 4, the whole run" in capsys.readouterr().out

    ours, paper = result["stage1"]["ours"], result["stage1"]["paper"]
    assert ours["largest_residual"] <= 1e-3 < paper["largest_residual"]
    assert ours["orthogonality_error"] < 1e-6 < 1e-4 < paper["orthogonality_error"]
    assert paper["products"] <= 3 * 20

    errors = {side: result["stage2"][side]["curvature_error"] for side in ("ours", "paper", "paper_four_rows")}
    assert errors["ours"] < 1e-5
    assert errors["paper"] < 1e-2
    assert errors["paper_four_rows"] > 0.1

    for row in result["stage3"]:
        closed = row["ours"]["closed_form"]
        assert closed > 0
        assert row["ours"]["controlled"] == pytest.approx(closed, rel=0.1)
        assert row["paper"]["closed_form"] == pytest.approx(closed, rel=0.1)
        assert row["forwards_ratio"] > 10
        assert row["same_subspace_forwards_ratio"] > 10


def test_stages_of_every_dimension_are_rows(tmp_path, monkeypatch):
    import paper

    monkeypatch.setattr(paper, "nanochat", lambda k: small_task("attention"))
    result = run(paper, tmp_path, "--dims 1 2 --num-probes 8 --repeats 1 --repeats-stage1 1")
    assert [row["dim"] for row in result["rows"]] == [1, 2]
    rows = rows_of(paper.table(result))
    assert len(rows) == 2 * (5 + 3 + 2 * 3)
    products = result["rows"][1]["stage1"]
    assert rows[14 + 2][2:] == [
        str(products["paper"]["products"]),
        str(products["ours"]["products"]),
        f"{products['products_ratio']:.1f} |",
    ]


def test_costs_between_measured_sample_sizes_are_interpolated():
    import curve

    assert curve.spaced(5, None) == [1, 2, 3, 4, 5]
    assert curve.spaced(128, 6)[0] == 1
    assert curve.spaced(128, 6)[-1] == 128
    assert curve.summed([1, 3, 9], [1.0, 3.0, 9.0], 5) == pytest.approx(15.0)
    assert curve.exponent([32, 64, 128], [3.0, 12.0, 48.0]) == pytest.approx(2.0)


def test_both_ways_to_a_decay_curve_agree_where_their_subspace_is_the_same():
    pytest.importorskip("sklearn")
    import curve

    from curvprobe.tasks.digits import digits

    task = digits(12, rounds=1)
    ours, _ = curve.our_curve(task, 8, 2)
    theirs, products = curve.paper_point(task, 8, 8, 2)
    assert float(ours.value[-1, 0, 0]) == pytest.approx(theirs, rel=0.05)
    assert products >= 2 * 17


def test_curve_in_small(tmp_path, monkeypatch):
    import curve

    monkeypatch.setattr(curve, "MODELS", {"digits": lambda: curve.Setting(small_task(), dim=2, num_ks=2, repeats=1)})
    model = run(curve, tmp_path, "--models digits --sizes 2 4")["models"]["digits"]
    assert (model["measured_ks"], model["interpolated"]) == ([1, 4], True)
    first, last = model["rows"]
    assert (first["n"], last["n"]) == (2, 4)
    for row in model["rows"]:
        assert row["seconds_ratio"] == pytest.approx(row["paper_seconds"] / row["seconds"])
        assert row["products_ratio"] == pytest.approx(row["paper_example_products"] / row["example_products"])
    one, all_four = model["measured_seconds"]
    assert last["paper_seconds"] == pytest.approx(2 * (one + all_four))  # four points on a line
    growth = (torch.tensor(last["paper_seconds"]) / first["paper_seconds"]).log2()
    assert model["exponents"]["paper_seconds"] == pytest.approx(growth.item(), rel=1e-5)


# ---- the eigensolver's choices


def test_searches_that_end_too_early_miss_copies(monkeypatch):
    import solver

    from curvprobe.eigensolver import search

    monkeypatch.setattr(solver, "SIZE", 1000)
    monkeypatch.setattr("curvprobe.eigensolver.lanczos.LOOKS", 1)  # a second look finds what the first has missed
    before = vars(search).copy()
    rows = solver.by_search([2, 12], seeds=5)
    assert vars(search) == before
    short, long = rows[::2], rows[1::2]
    assert sum(row["missed"] for row in short) >= 5 > 1 >= sum(row["missed"] for row in long)
    assert all(a["search"] < b["search"] for a, b in zip(short, long, strict=True))


def test_a_signed_start_has_every_gradient_at_the_same_length():
    import solver

    whole, in_parts = (cases.make("mlp").risk(microbatch_size=size) for size in (6, 4))
    gradients = torch.stack([whole[[i]].gradient() for i in range(len(whole))], dim=1)
    signs = set()
    for seed in range(4):
        start = solver.signed_gradient(whole, seed)
        assert start.norm().item() == pytest.approx(1.0)
        assert torch.allclose(start, solver.signed_gradient(in_parts, seed), rtol=1e-10, atol=1e-12)
        parts = torch.linalg.lstsq(gradients, start).solution[:, 0]
        assert torch.allclose(parts.abs(), parts.abs().max().expand_as(parts), rtol=1e-8)
        signs.add(tuple(parts.sign().tolist()))
    assert len(signs) > 1


def test_choices_of_the_solver_in_small(tmp_path, monkeypatch):
    import solver

    monkeypatch.setattr(solver, "SIZE", 300)
    monkeypatch.setattr(solver, "mlp", lambda: wide_task(20))
    monkeypatch.setattr(solver, "nanochat", lambda k: wide_task(20))
    options = "--seeds 2 --search-steps 12 --search-seeds 1 --repeats 1 --microbatches 2 3"
    result = run(solver, tmp_path, options)
    assert [(part["dim"], row["basis"]) for part in result["bases"][:2] for row in part["rows"]] == [
        (dim, basis) for dim in (10, 45) for basis in ("D + 10", "1.5 D + 10", "unrestarted")
    ]
    assert all(len(counts) == 2 for counts in result["starts"].values())
    assert [row["microbatch_size"] for row in result["costs"]] == [2, 3]
    assert len(rows_of(solver.table(result))) == 4 * 3 + (1 + 2) + (1 + 3) + (1 + 2)


def wide_task(inputs):
    """A linear classifier of so many inputs."""
    draws = torch.Generator().manual_seed(0)
    data = torch.randn(6, inputs, generator=draws), torch.randint(3, (6,), generator=draws)
    return cp.Task(torch.nn.Linear(inputs, 3), cp.losses.cross_entropy, data)


def test_misses_in_small(tmp_path, monkeypatch):
    import misses

    monkeypatch.setattr(misses, "SIZE", 700)
    result = run(misses, tmp_path, "--seeds 1 --gaps 0.03")
    assert [row["dim"] for row in result["rows"]] == [10, 45, 100, 30, 50, 80]
    assert all(row["misses_without_a_doubt"] == 0 for row in result["rows"])
    assert all(row["certified_misses"] <= row["misses"] <= row["seeds"] == 1 for row in result["rows"])
    assert len(rows_of(misses.table(result))) == 6


def test_a_spectrum_for_the_search_is_what_it_says():
    import misses

    values = misses.triple_at_the_cut(0.017).sort(descending=True).values
    assert len(values) == misses.SIZE
    assert torch.equal(values[7:10], values[7].expand(3))
    assert float(values[10] / values[9]) == pytest.approx(1 - 0.017)
    doubled = misses.power_law(0.7, 20).sort(descending=True).values
    assert int((doubled[:100].diff() == 0).sum()) > 10


# ---- the checks


def test_the_cost_of_the_checks_in_small(tmp_path, monkeypatch):
    import front_door

    monkeypatch.setitem(front_door.TASKS, "digits", small_task)
    result = run(front_door, tmp_path, "--tasks digits --dim 2 --repeats 1")
    (row,) = result["rows"]
    assert 0 < row["check"] < row["solve"] + row["check"]
    assert row["summary"] == "14 passed"
    assert "| digits | " in front_door.table(result)


# ---- laws and intervals


def test_monte_carlo_in_small(tmp_path, monkeypatch):
    import monte_carlo

    monkeypatch.setattr(monte_carlo, "TASKS", {"digits": lambda **_: small_task()})
    result = run(monte_carlo, tmp_path, "--tasks digits --dim 2 --num-probes 16")
    task = result["tasks"]["digits"]
    assert [row["sigma"] for row in task["rows"]] == list(monte_carlo.SIGMAS)
    for row in task["rows"][:3]:  # the quadratic model is good there
        assert row["controlled"] == pytest.approx(row["closed_form"], rel=1e-3)
        assert abs(row["direct"] - row["closed_form"]) < 4 * row["direct_stderr"] + 1e-3 * row["closed_form"]
        assert row["variance_ratio"] > row["variance_ratio_of_pairs"] > 10
        assert row["direct"] != row["pairs"]
    assert len(rows_of(monte_carlo.table(result))) == 5


def test_coverage_in_small(tmp_path):
    import coverage_of_intervals as coverage

    result = run(coverage, tmp_path, "--repetitions 30 --populations t3 logistic --sizes 40 250")
    assert [(row["m"], row["what"]) for row in result["rows"][:2]] == [
        (40, "expected criterion"),
        (40, "required size"),
    ]
    for row in result["rows"]:
        assert row["covered"] >= 0.8
        assert row["lower_end_holds"] >= row["covered"]
        assert (row["bounded"] > 0.8) == (row["m"] == 250)
    assert "| t3 | 250 |" in coverage.table(result)


def test_the_formula_of_the_size_written_anew_is_that_of_the_package():
    import coverage_of_intervals as coverage

    sample, whole = coverage.errors(0.02)
    shift, spread = coverage.moments(sample, whole)
    size = coverage.size_at(shift, spread, len(sample), 1e-2)
    assert size_with(sample, whole[:20_000], coverage.SIGMA, 1e-2)[0] == pytest.approx(size, rel=0.2)
    exact = coverage.moments(sample, whole[:20_000])
    found = size_with(sample, whole[:20_000], coverage.SIGMA, 1e-2)[0]
    assert found == pytest.approx(coverage.size_at(*exact, len(sample), 1e-2), rel=1e-6)


def test_extremality_in_small(tmp_path, monkeypatch):
    import extremality

    monkeypatch.setattr(extremality, "digits", lambda _: small_task())
    rows = run(extremality, tmp_path, "--within 4 6 --dim 2 --candidates 3")["rows"]
    assert [(row["dim"], row["within"], row["next_examples"]) for row in rows] == [(2, 4, 3), (2, 6, 3)]
    assert all(row["best_over_leading"] >= 1 for row in rows)


def test_gates_in_small(tmp_path):
    import gates

    before = intervals.FEWEST_FOR_UPPER, intervals.ALLOWED_FOR
    result = run(gates, tmp_path, "--repetitions 40 --populations t3 --sizes 40")
    assert before == (intervals.FEWEST_FOR_UPPER, intervals.ALLOWED_FOR)
    none, narrow, _ = result["rows"]
    assert none["passed"] == 1
    assert narrow["passed"] < 1
    assert "| t3 | 40 |" in gates.table(result)


def test_more_data_in_small(tmp_path):
    import more_data

    result = run(more_data, tmp_path, "--k 60 --seeds 1")
    assert [row["kind"] for row in result["rows"]] == list(more_data.KINDS)
    assert all(row["test_loss"] > 0 and row["rms"] > 0 for row in result["rows"])
    assert "takes off" in more_data.table(result)


def test_coverage_of_errors_in_small(tmp_path):
    import coverage_of_errors as coverage

    options = "--repetitions 10 --draws 400 --candidates 3 --products 8 --num-probes 32"
    result = run(coverage, tmp_path, options)
    rows = result["rows"]
    assert [row["what"] for row in rows] == ["controlled Monte Carlo, 32 draws", "full-space moment, 8 products"]
    for row in rows:
        assert row["ours"] >= row["Student's, n - 1"] >= row["1.96 standard errors"] > 0.3
    assert "full-space moment" in coverage.table(result)


def test_concentration_in_small(tmp_path, monkeypatch):
    import concentration

    monkeypatch.setattr(concentration, "TASKS", {"digits": lambda **_: small_task()})
    figures = tmp_path / "figures"
    result = run(concentration, tmp_path, f"--tasks digits --dim 3 --sigma 0.01 --figures {figures}")
    shares = result["tasks"]["digits"]["subspaces"]
    assert shares["best possible"]["shape"][0] >= shares["random"]["shape"][0]
    assert "| best possible |" in concentration.table(result)
    assert (figures / "concentration_digits.png").exists()


# ---- seconds


def test_limit_in_small(tmp_path, monkeypatch):
    import limit

    monkeypatch.setattr(limit, "MODELS", {"mlp": lambda: small_task()})
    result = run(limit, tmp_path, "--models mlp --repeats 1 --size 16")
    model = result["models"]["mlp"]
    counts = model["operations"]
    assert counts["forward"] == 2 * 6 * (3 * 4 + 4 * 3)  # two layers, six examples
    assert counts["kept"] < counts["fresh"] < 9 * counts["forward"]
    assert counts["kept"] > (counts["fresh"] - counts["forward"]) / 2  # the gradient costs less than its derivative
    assert counts["library_later"] < counts["library_first"]
    rate = result["operations_per_second"]
    assert model["floor_seconds"] == {kind: pytest.approx(counts[kind] / rate) for kind in ("fresh", "kept")}
    over = model["seconds"]["later"] / model["floor_seconds"]["kept"]
    assert model["ratios"]["later_over_kept_floor"] == pytest.approx(over)
    assert len(rows_of(limit.table(result))) == 3


def test_rounds_are_in_turns_and_the_first_is_not_counted(monkeypatch):
    import scaling

    scripted = iter([99.0, 99.0, 1.0, 10.0, 3.0, 30.0, 2.0, 20.0])
    monkeypatch.setattr(scaling, "timed", lambda _, act: (act(), next(scripted)))
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert scaling.in_turns(functions, 3) == {"a": 2.0, "b": 20.0}
    assert calls == list("abababab")


def test_scaling_in_small(tmp_path, monkeypatch):
    import scaling

    monkeypatch.setattr(scaling, "mlp", small_task)
    monkeypatch.setattr(scaling, "nanochat", lambda k: small_task("attention"))
    monkeypatch.setattr(scaling, "in_turns", lambda functions, repeats: dict.fromkeys(functions, 3.0))
    result = run(scaling, tmp_path, "--parts block dimension --dims 1 3 --widths 1 2 --repeats 1")
    assert set(result) == {"machine", "block", "dimension"}
    assert [(row["dim"], row["converged"]) for row in result["dimension"]["rows"]] == [(1, True), (3, True)]
    for model in result["block"].values():
        assert [(row["seconds_per_vector"], row["over_first"]) for row in model["rows"]] == [(3.0, 1.0), (1.5, 0.5)]
    assert [row[:2] for row in rows_of(scaling.block_table(result["block"]))] == [["| 1", "3"], ["| 2", "1.5"]]
