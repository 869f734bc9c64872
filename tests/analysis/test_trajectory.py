"""Trajectories on least squares, where the dispersion at each solution is known."""

import math

import pytest
import torch
from torch import nn

import curvprobe as cp
from curvprobe.numerics.power_law import power_law


def fitted(k: int, n: int = 5) -> cp.EmpiricalRisk:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2000, n, generator=draw, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + torch.randn(2000, 1, generator=draw, dtype=torch.float64)
    model = nn.Linear(n, 1, bias=False).double()
    model.weight.data = torch.linalg.lstsq(x[:k], y[:k]).solution.T.contiguous()
    return cp.EmpiricalRisk(model, cp.losses.mse, (x[:k], y[:k]))


def test_the_dispersion_settles_where_the_solution_does():
    ks = [100, 200, 400, 800, 1600]
    path = cp.trajectory(fitted, ks, dim=2, sigma=0.01)
    assert path.ks.tolist() == ks
    for i, k in enumerate(ks):
        risk = fitted(k)
        sample = cp.project(risk, cp.top_eigenspace(risk, dim=2))
        pool = cp.expected_criterion(sample, None, 0.01)
        assert float(path.dispersion[i]) == pytest.approx(pool.value * k * (k + 1), rel=1e-4)
        assert float(path.dispersion_parts[i].sum()) == pytest.approx(float(path.dispersion[i]), rel=1e-10)
        assert path.expected[i].value == pytest.approx(pool.value, rel=1e-4)
        assert float(path.loss[i]) == pytest.approx(risk.value(), rel=1e-12)
    assert path.fit.interval[0] < 0.1  # no growth that the data would show: the squared noise has a fixed variance
    assert abs(path.fit.exponent) < 0.4
    assert bool((path.overlap > 0.2).all())
    assert "V grows as" in str(path)
    assert path._repr_html_().count("<tr>") == 1 + len(path.ks)
    assert "V grows as" in path._repr_html_()


def test_checkpoints_of_one_run_and_candidates():
    risks = [fitted(k) for k in (50, 100)]
    draw = torch.Generator().manual_seed(9)
    x = torch.randn(30, 5, generator=draw, dtype=torch.float64)
    new = (x, x.sum(1, keepdim=True))
    path = cp.trajectory(risks, candidates=new, dim=2, sigma=0.01)
    assert not path.expected[0].pool
    assert path.expected[1].num_candidates == 30
    assert path.fit.interval == (-math.inf, math.inf)
    space = cp.top_eigenspace(risks[1], dim=2)
    direct = cp.expected_criterion(cp.project(risks[1], space), cp.project(risks[1].on(new), space), 0.01)
    assert path.expected[1].value == pytest.approx(direct.value, rel=1e-4)


def test_a_warm_start_spares_products():
    same = fitted(1000, n=80)
    path = cp.trajectory([same, same], dim=4)
    assert int(path.num_matvecs[1]) < int(path.num_matvecs[0])
    assert float(path.overlap[0]) == pytest.approx(1.0, abs=1e-3)


def test_a_power_law_is_fitted_with_its_interval():
    ks = torch.tensor([10, 20, 40, 80, 160])
    exact = power_law(ks, 3.0 * ks.double() ** -1.5)
    assert exact.exponent == pytest.approx(-1.5, rel=1e-12)
    assert exact.at_one == pytest.approx(3.0, rel=1e-10)
    hits = 0
    for seed in range(500):
        noise = 0.2 * torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        low, high = power_law(ks, ks.double() ** 0.5 * noise.exp()).interval
        hits += low <= 0.5 <= high
    assert 460 <= hits <= 490


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="ks is None"):
        cp.trajectory(fitted)
    with pytest.raises(ValueError, match="expected at least 2 of them"):
        cp.trajectory(fitted, [100])
    with pytest.raises(ValueError, match="returned a risk on 60"):
        cp.trajectory(lambda _: fitted(60), [50, 60])


def test_sizes_beside_risks_are_refused():
    with pytest.raises(ValueError, match="ks came beside"):
        cp.trajectory([fitted(50), fitted(60)], [50, 60])


def test_checkpoints_of_one_size_are_kept_apart(tmp_path):
    x = torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None]
    risks = []
    for slope in (0.2, 0.7):
        model = torch.nn.Linear(1, 1, bias=False).double()
        torch.nn.init.constant_(model.weight, slope)
        risks.append(cp.EmpiricalRisk(model, cp.losses.mse, (x, x**3)))
    first = cp.trajectory(risks, dim=1, sigma=0.1, out=tmp_path)

    def written() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("trajectory-*")}

    before = written()
    assert len([name for name in before if name.endswith("eigenspace.json")]) == 2
    again = cp.trajectory(risks, dim=1, sigma=0.1, out=tmp_path)
    assert torch.equal(again.dispersion, first.dispersion)
    assert written() == before
