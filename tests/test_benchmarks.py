"""The comparison with the paper's procedure: its pieces against dense code, and a small run of the whole of it."""

import json
from pathlib import Path

import pytest
import torch

import curvprobe as cp
from tests import cases, reference

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

HESSIANS: dict[str, list[torch.Tensor]] = {}
"""Of the cases by name: row by row they take a second, and a case is the same every time."""


@pytest.fixture
def on_path(monkeypatch):
    """The scripts import one another as neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(params=["mlp", "attention"])
def plain(request, on_path):
    """A tiny model as the paper's side sees it, the k and the k + 1 examples, and their dense Hessians."""
    from curvprobe.experiments import paper_procedure as procedure

    case = cases.make(request.param)
    mean = procedure.MeanLoss(case.model, case.loss)
    before = case.data
    after = procedure.join(before, procedure.take(case.candidates, slice(0, 1)))
    if request.param not in HESSIANS:
        HESSIANS[request.param] = [dense_hessian(case, before), dense_hessian(case, after)]
    return procedure, mean, before, after, HESSIANS[request.param]


def dense_hessian(case, data):
    value = reference.risk_value(case.model, case.loss, case.batches(data))
    return reference.dense_hessian(value, reference.trainable(case.model))


def orthonormal(n, dim):
    draws = torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(draws).Q


def test_products_and_gradients_are_those_of_the_mean_loss(plain):
    _, mean, before, _, (H, _) = plain
    vector = orthonormal(len(H), 1)[:, 0]
    assert torch.allclose(mean.hessian_product(before, vector), H @ vector, rtol=1e-10, atol=1e-12)
    risk = cp.EmpiricalRisk(mean.module, mean.loss, before)
    assert mean(before).item() == pytest.approx(risk.value(), rel=1e-10)
    assert torch.allclose(mean.gradient(before), risk.gradient(), rtol=1e-10, atol=1e-12)


def test_a_batch_in_several_passes_has_the_same_mean(plain, monkeypatch):
    procedure, mean, before, _, (H, _) = plain
    vector = orthonormal(len(H), 1)[:, 0]
    value, gradient, product = mean(before), mean.gradient(before), mean.hessian_product(before, vector)
    monkeypatch.setattr(procedure, "ROWS", 3)
    assert len(procedure.passes(before)) > 1
    assert mean(before).item() == pytest.approx(value.item(), rel=1e-12)
    assert torch.allclose(mean.gradient(before), gradient, rtol=1e-10, atol=1e-14)
    assert torch.allclose(mean.hessian_product(before, vector), product, rtol=1e-10, atol=1e-14)


def test_power_iteration_without_signs_takes_the_norm_for_an_eigenvalue(plain):
    procedure, mean, before, _, _ = plain
    signed, unsigned = (
        procedure.power_iteration(mean, before, 1, iterations=100, tolerance=0.0, signed=s) for s in (True, False)
    )
    assert float(unsigned.eigenvalues[0]) == pytest.approx(abs(float(signed.eigenvalues[0])), rel=1e-6)
    assert bool((procedure.power_iteration(mean, before, 4, signed=False).eigenvalues >= 0).all())


def test_separate_hessians_are_on_rows_of_their_own(plain, monkeypatch):
    procedure, mean, before, after, (H, _) = plain
    drawn = []
    monkeypatch.setattr(
        procedure, "projected_hessian", lambda m, batch, U: drawn.append(batch) or torch.zeros(U.shape[1], U.shape[1])
    )
    procedure.coefficients_on_subsets(mean, orthonormal(len(H), 2), before, after, rows=2, seed=5)
    first = torch.randperm(procedure.num_rows(before), generator=torch.Generator().manual_seed(5))[:2]
    old = drawn[1] if isinstance(drawn[1], torch.Tensor) else drawn[1][0]
    iterated = procedure.take(before, first)
    iterated = iterated if isinstance(iterated, torch.Tensor) else iterated[0]
    assert old.shape == iterated.shape
    assert not torch.equal(old, iterated)  # not those that a power iteration of the same seed was given


def test_power_iteration_finds_the_leading_eigenpairs(plain):
    procedure, mean, before, _, (H, _) = plain
    pairs = procedure.power_iteration(mean, before, 2, iterations=250, tolerance=0.0)
    exact = torch.linalg.eigvalsh(H)
    exact = exact[exact.abs().argsort(descending=True)][:2]
    assert torch.allclose(pairs.eigenvalues, exact, rtol=1e-6)
    assert torch.allclose(H @ pairs.basis, pairs.basis * exact, atol=1e-4 * float(exact[0].abs()))
    assert pairs.num_matvecs == 500


def test_power_iteration_stops_when_the_eigenvalue_stands_still(plain):
    procedure, mean, before, _, _ = plain
    pairs = procedure.power_iteration(mean, before, 3)
    assert 6 <= pairs.num_matvecs <= 60
    loose = procedure.power_iteration(mean, before, 3, tolerance=0.5)
    assert loose.num_matvecs < pairs.num_matvecs


def test_coefficients_on_all_rows_are_those_of_the_dense_increment(plain):
    procedure, mean, before, after, (H, H_after) = plain
    U = orthonormal(len(H), 3)
    found = procedure.coefficients(mean, U, before, after)
    exact = U.T @ (H_after - H) @ U
    assert torch.allclose(found.curvature, exact, rtol=1e-8, atol=1e-10)

    risk = cp.EmpiricalRisk(mean.module, mean.loss, before)
    new = risk.on(procedure.take(after, slice(len(risk), None)))
    subspace = cp.Subspace.from_basis(U)
    ours = cp.increment(cp.project(risk, subspace), cp.project(new, subspace))
    assert torch.allclose(found.level, ours.level, rtol=1e-8)
    assert torch.allclose(found.slope, ours.slope, rtol=1e-8, atol=1e-10)
    assert procedure.closed_form(found, 0.1) == pytest.approx(cp.gaussian_moment(ours, sigma=0.1).value, rel=1e-8)

    shortcut = procedure.coefficients_on_subsets(mean, U, before, after)
    assert (shortcut.curvature - exact).norm() > 0.5 * exact.norm()
    assert torch.equal(shortcut.slope, found.slope)


def test_monte_carlo_of_the_paper_agrees_with_ours_and_leaves_the_weights(plain):
    procedure, mean, before, after, (H, _) = plain
    U = orthonormal(len(H), 2)
    risk = cp.EmpiricalRisk(mean.module, mean.loss, before)
    new = risk.on(procedure.take(after, slice(len(risk), None)))
    law = cp.SubspaceProbe(cp.Subspace.from_basis(U), 0.01)
    z = law.coordinates(8, 0)
    weights = [p.detach().clone() for p in mean.params]
    increments = procedure.direct_increments(mean, before, after, (U @ row for row in z))
    ours = cp.direct_monte_carlo(risk, new, law, num_probes=8)
    assert float(increments.square().mean()) == pytest.approx(ours.value, rel=1e-8)
    assert all(torch.equal(p, w) for p, w in zip(mean.params, weights, strict=True))

    model = procedure.coefficients(mean, U, before, after)
    quadratic = procedure.quadratic_increments(model, z)
    assert float(quadratic.square().mean()) == pytest.approx(
        cp.quadratic_monte_carlo(quadratic_increment(model), sigma=0.01, num_probes=8).value, rel=1e-10
    )


def quadratic_increment(model):
    return cp.QuadraticIncrement(model.level, model.slope, model.curvature)


def test_comparison_with_the_paper_in_small(on_path, tmp_path, capsys):
    pytest.importorskip("transformers")
    import gpu

    out = tmp_path / "gpu.json"
    size = {"hidden-size": 32, "layers": 1, "vocabulary": 300, "context": 16, "steps": 20, "dim": 3, "k": 4}
    options = {**size, "num-probes": 8, "repeats": 1, "device": "cpu", "out": out}
    gpu.main([f"--{name}={value}" for name, value in options.items()])
    result = json.loads(out.read_text())
    assert f"written to {out}" in capsys.readouterr().out

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


def test_times_are_medians_and_ratios_medians_of_the_repeats(monkeypatch):
    from curvprobe.experiments import comparison

    case = cases.make("mlp")
    task = cp.Task(case.model, case.loss, case.data, case.candidates)
    scripted = iter([8.0, 1.0, 9.0, 9.0, 9.0, 3.0, *(60.0, 30.0, 6.0), *(40.0, 60.0, 2.0), *(80.0, 5.0, 5.0)])
    monkeypatch.setattr(comparison, "timed", lambda _, act, *given, **named: (act(*given, **named), next(scripted)))

    sides = comparison.both_sides(task)
    stage1, risk, subspace, pairs = comparison.eigenspaces(task, sides, 2, repeats=3, seed=0)
    assert (stage1["paper"]["seconds"], stage1["ours"]["seconds"], stage1["seconds_ratio"]) == (9.0, 3.0, 3.0)
    stage2 = comparison.increments(sides, risk, subspace, pairs, repeats=3)[0]
    seconds = [stage2[side]["seconds"] for side in ("paper", "paper_four_rows", "ours")]
    assert seconds == [60.0, 30.0, 5.0]
    assert (stage2["seconds_ratio"], stage2["four_rows_seconds_ratio"]) == (16.0, 5.0)


def test_searches_that_end_too_early_miss_copies(on_path, monkeypatch):
    import solver

    from curvprobe.eigensolver import search

    monkeypatch.setattr(solver, "SIZE", 1000)
    before = vars(search).copy()
    rows = solver.by_search([2, 12], seeds=5)
    assert vars(search) == before
    short, long = rows[::2], rows[1::2]
    assert sum(row["missed"] for row in short) >= 5 > 1 >= sum(row["missed"] for row in long)
    assert all(a["search"] < b["search"] for a, b in zip(short, long, strict=True))


def test_costs_between_measured_sample_sizes_are_interpolated(on_path):
    import curve

    assert curve.spaced(5, None) == [1, 2, 3, 4, 5]
    assert curve.spaced(128, 6)[0] == 1
    assert curve.spaced(128, 6)[-1] == 128
    assert curve.summed([1, 3, 9], [1.0, 3.0, 9.0], 5) == pytest.approx(15.0)
    assert curve.exponent([32, 64, 128], [3.0, 12.0, 48.0]) == pytest.approx(2.0)


def test_both_ways_to_a_decay_curve_agree_where_their_subspace_is_the_same(on_path):
    pytest.importorskip("sklearn")
    import curve

    from curvprobe.tasks.digits import digits

    task = digits(12, rounds=1)
    ours, _ = curve.our_curve(task, 8, 2)
    theirs, products = curve.paper_point(task, 8, 8, 2)
    assert float(ours.value[-1, 0, 0]) == pytest.approx(theirs, rel=0.05)
    assert products >= 2 * 17


def test_coverage_in_small(on_path, tmp_path):
    import coverage_of_intervals as coverage

    coverage.main(["--repetitions", "40", "--populations", "3000", "--out", str(tmp_path / "coverage.json")])
    result = json.loads((tmp_path / "coverage.json").read_text())
    assert len(result["rows"]) == 15
    for row in result["rows"]:
        assert row["covered"] >= 0.8
        assert row["covered"] == pytest.approx(1 - (row["below"] + row["above"]) / 40)
    assert "required size, pool" in coverage.table(result)


def test_concentration_in_small(on_path, tmp_path, monkeypatch):
    import concentration

    case = cases.make("mlp")
    task = cp.Task(case.model, case.loss, case.data, case.candidates)
    monkeypatch.setattr(concentration, "TASKS", {"digits": lambda **_: task})
    out, figures = tmp_path / "concentration.json", tmp_path / "figures"
    options = ["--tasks", "digits", "--dim", "3", "--sigma", "0.01", "--out", str(out), "--figures", str(figures)]
    concentration.main(options)
    result = json.loads(out.read_text())
    shares = result["tasks"]["digits"]["subspaces"]
    assert shares["best possible"]["shape"][0] >= shares["random"]["shape"][0]
    assert "| best possible |" in concentration.table(result)
    assert (figures / "concentration_digits.png").exists()
