"""The full space number by number: the same probes, with dense Hessians, written out."""

import pytest
import torch

import curvprobe as cp
from curvprobe.numerics.noise import sign_vector

S, SIGMA, SEED = 6, 0.7, 3


@pytest.fixture(scope="module")
def network() -> tuple[cp.EmpiricalRisk, cp.EmpiricalRisk]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
        x, y = torch.randn(14, 3, dtype=torch.float64), torch.randint(2, (14,))
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x[:10], y[:10]))
    return risk, risk.on((x[10:], y[10:]))


def dense(risk: cp.EmpiricalRisk) -> torch.Tensor:
    return cp.hessian(risk) @ torch.eye(risk.num_params, dtype=torch.float64)


def pairs(x: torch.Tensor) -> float:
    """The mean product of two different ones."""
    n = len(x)
    return float((x.sum() ** 2 - x.square().sum()) / (n * (n - 1)))


@pytest.mark.parametrize("by_parameter", [False, True])
def test_every_part_of_every_candidate(network, by_parameter):
    risk, new = network
    scale = SIGMA * (
        torch.linspace(0.5, 2, risk.num_params, dtype=torch.float64)
        if by_parameter
        else torch.ones(26, dtype=torch.float64)
    )
    found = cp.full_space_parts(risk, new, sigma=scale if by_parameter else SIGMA, num_probes=S, seed=SEED)
    generator, place = torch.Generator().manual_seed(SEED), {"dtype": torch.float64, "device": "cpu"}
    signs, factor = torch.stack([sign_vector(generator, risk.num_params, **place) for _ in range(S)]), 1 / 11
    value_terms, shape_terms = torch.zeros(2, S, dtype=torch.float64)
    for j in range(len(new)):
        one = new[[j]]
        level = factor * (one.value() - risk.value())
        slope = factor * (one.gradient() - risk.gradient())
        bend = factor * scale[:, None] * (dense(one) - dense(risk)) * scale
        images = signs @ bend
        x = level + (images * signs).sum(1) / 2
        squares = images.square().sum(1) / 2
        assert float(found.level[j]) == pytest.approx(pairs(x), rel=1e-8)
        assert float(found.slope[j]) == pytest.approx(float((scale * slope).square().sum()), rel=1e-9)
        assert float(found.curvature[j]) == pytest.approx(float(squares.mean()), rel=1e-8)
        rest = [pairs(x[torch.arange(S) != s]) for s in range(S)]
        value_terms += torch.tensor([S * pairs(x) - (S - 1) * r for r in rest], dtype=torch.float64) / len(
            new
        ) + squares / len(new)
        shape_terms += squares / len(new)
    torch.testing.assert_close(found.value_terms, value_terms, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found.shape_terms, shape_terms, rtol=1e-8, atol=1e-12)
    assert {part.dtype for part in (found.level, found.slope, found.curvature)} == {torch.float64}
    expected = found.expected
    stderr = (float(found.value.var()) / len(new) + float(value_terms.var()) / S) ** 0.5
    assert expected.stderr == pytest.approx(stderr, rel=1e-8)
    assert expected.value == pytest.approx(float(found.value.mean()), rel=1e-12)
    assert expected.shape == pytest.approx(float((found.slope + found.curvature).mean()), rel=1e-12)
    assert expected.num_probes == S


def test_the_number_of_probes_and_their_seed(network):
    risk, new = network
    plain, same = cp.full_space_parts(risk, new, sigma=1.0), cp.full_space_parts(risk, new, sigma=1.0, seed=0)
    assert len(plain.value_terms) == 16
    assert torch.equal(plain.curvature, same.curvature)
    assert len(cp.full_space_parts(risk, new, sigma=1.0, num_probes=4).value_terms) == 4
    with pytest.raises(cp.ArgumentError, match="num_probes is 3; expected at least 4"):
        cp.full_space_parts(risk, new, sigma=1.0, num_probes=3)


def test_one_candidate_has_no_scatter(network):
    risk, new = network
    found = cp.full_space_parts(risk, new[:1], sigma=1.0, num_probes=S)
    assert found.expected.stderr == pytest.approx(float(found.value_terms.std()) / S**0.5, rel=1e-9)
