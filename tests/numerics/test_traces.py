"""Trace moments against the dense matrix: unbiased, with honest errors, and cheap where few eigenvalues dominate."""

import math

import pytest
import torch

import curvprobe as cp
from tests.cases import symmetric

DOMINATED = [50.0, -40.0, 30.0, *(0.5 * math.sin(i) for i in range(64))]
FLAT = [1.0 + math.sin(i) for i in range(67)]


def moments(matrix, seed, num_products=24):
    return cp.trace_moments(
        lambda block: matrix @ block, len(matrix), num_products=num_products, seed=seed, dtype=torch.float64
    )


@pytest.mark.parametrize("spectrum", [DOMINATED, FLAT])
@pytest.mark.parametrize("num_products", [5, 24])  # without a sketch, and with one
def test_unbiased_with_honest_errors(spectrum, num_products):
    matrix = symmetric(spectrum)
    found = [moments(matrix, seed, num_products) for seed in range(400)]
    for name, truth in (
        ("trace", float(matrix.trace())),
        ("trace_squared", float(matrix.trace()) ** 2),
        ("frobenius_squared", float(matrix.square().sum())),
    ):
        values = torch.tensor([getattr(one, name) for one in found], dtype=torch.float64)
        assert abs(float(values.mean()) - truth) <= 4 * float(values.std()) / 20 + 1e-9 * abs(truth), name
        if name != "trace_squared":
            stated = torch.tensor([getattr(one, f"{name}_stderr") for one in found], dtype=torch.float64)
            assert float(stated.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.15)


def test_the_sketch_pays_where_few_eigenvalues_dominate():
    matrix = symmetric(DOMINATED)
    with_sketch = torch.tensor([moments(matrix, s, 24).frobenius_squared for s in range(50)]).std()
    without = torch.tensor([moments(matrix, s, 11).frobenius_squared for s in range(50)]).std()
    assert float(with_sketch) < 1e-2 * float(without)


def test_products_are_counted_and_a_small_or_vanishing_matrix_is_no_trouble():
    calls = []

    def matmul(block):
        calls.append(block.shape[1])
        return 0 * block

    found = cp.trace_moments(matmul, 40, num_products=15, dtype=torch.float64)
    assert found.num_products == sum(calls)
    assert found.trace == found.frobenius_squared == 0
    tiny = cp.trace_moments(lambda block: 3 * block, 2, num_products=30, dtype=torch.float64)
    assert (tiny.trace, tiny.frobenius_squared) == pytest.approx((6.0, 18.0), rel=1e-12)
    with pytest.raises(ValueError, match="num_products is 3"):
        cp.trace_moments(matmul, 40, num_products=3)


def counted(matrix, num_products, dtype=torch.float64, **options):
    """Moments, and the products that were really made."""
    made = []

    def matmul(block):
        made.append(block)
        return matrix @ block

    found = cp.trace_moments(matmul, len(matrix), num_products=num_products, dtype=dtype, **options)
    return found, made


def test_a_matrix_inside_the_sketch_is_exact():
    """Three eigenvalues and a sketch of four: nothing is left to the probes, and the fourth vector is none."""
    matrix = symmetric([5.0, -3.0, 2.0, *([0.0] * 37)])
    found, made = counted(matrix, 12)
    assert found.trace_terms.tolist() == pytest.approx([4.0] * 4)
    assert found.frobenius_terms.tolist() == pytest.approx([38.0] * 4)
    assert {found.trace_terms.dtype, found.frobenius_terms.dtype} == {torch.float64}
    assert found.num_products == len(made) == 11  # no product with the vector that is none
    assert found.trace_squared == pytest.approx(16.0)


@pytest.mark.parametrize(
    ("num_products", "num_params", "probes"), [(4, 40, 4), (11, 40, 11), (12, 40, 4), (12, 4, 12), (12, 5, 4)]
)
def test_when_there_is_a_sketch(num_products, num_params, probes):
    found, made = counted(symmetric([float(i + 1) for i in range(num_params)]), num_products)
    assert len(found.trace_terms) == probes
    assert found.num_products == len(made) == num_products


def test_the_draws_are_by_the_seed_alone():
    matrix = symmetric(FLAT)
    state = torch.get_rng_state()
    first, again, default, other = (
        counted(matrix, 15, **seed)[0] for seed in ({"seed": 0}, {"seed": 0}, {}, {"seed": 1})
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.trace_terms, again.trace_terms)
    assert torch.equal(first.trace_terms, default.trace_terms)
    assert not torch.equal(first.trace_terms, other.trace_terms)
    plain = cp.trace_moments(lambda block: matrix @ block, len(matrix), dtype=torch.float64)
    assert plain.num_products == 16
    signs = torch.cat(counted(matrix, 5)[1], dim=1)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    with pytest.raises(cp.ArgumentError, match="num_products is 3; expected at least 4"):
        counted(matrix, 3)
