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
