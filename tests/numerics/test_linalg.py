import math
from contextlib import contextmanager

import pytest
import torch

from curvprobe.numerics import linalg

LONG = 3_000_001

CHUNK = 1 << 20
"""Numbers that a processor takes to float64 at a time."""


def rows_of(m: int, n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_norm_of_millions_of_float32_is_exact():
    vector = torch.full((LONG,), 0.1)
    exact = math.sqrt(LONG) * float(vector[0])
    assert abs(linalg.norm(vector) / exact - 1) < 1e-11
    assert abs(float(vector.norm()) / exact - 1) > 1e-5  # float32 accumulation


def test_inner_accumulates_millions_of_float32_in_float64():
    vector = torch.full((LONG,), 1e-3)
    vector[0] = 1e8  # a float32 sum that starts from 1e16 would swallow every other term
    found = float(linalg.inner(vector[None], vector)[0])
    exact = math.fsum([float(vector[0]) ** 2, *[float(vector[1]) ** 2] * (LONG - 1)])
    alternating = torch.ones(LONG)
    alternating[1::2] = -1.0
    assert abs(found - exact) <= 2.0  # one unit in the last place of 1e16
    assert float(linalg.inner(vector[None, 1:], alternating[1:])[0]) == 0.0


def test_inner_of_float32_agrees_with_float64_to_the_last_digits():
    rows, vectors = rows_of(3, 400_000, torch.float32), rows_of(2, 400_000, torch.float32, seed=1).T
    exact = rows.double() @ vectors.double()
    found = linalg.inner(rows, vectors)
    assert found.dtype == torch.float64
    assert torch.allclose(found, exact, rtol=1e-12, atol=1e-10)
    assert torch.allclose(linalg.inner(rows, vectors[:, 1]), exact[:, 1], rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [23, CHUNK // 4, CHUNK // 4 + 1, CHUNK])
def test_every_number_of_chunks_gives_the_dense_result(dtype, columns):
    rows, vector = rows_of(4, columns, dtype), rows_of(1, columns, dtype, seed=1)[0]
    coefficients = rows_of(4, 3, torch.float64, seed=2)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}

    assert torch.allclose(linalg.inner(rows, vector), rows.double() @ vector.double(), rtol=1e-12, atol=1e-13)

    expected = vector.double() - coefficients[:, 0] @ rows.double()
    linalg.subtract_combination(vector, rows, coefficients[:, 0])
    assert vector.dtype == dtype
    assert torch.allclose(vector.double(), expected, **tolerance)

    before = rows.double().clone()
    linalg.rotate(rows, coefficients)
    assert torch.allclose(rows[:3].double(), coefficients.T @ before, **tolerance)
    assert torch.equal(rows[3].double(), before[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_rows_than_a_chunk_has_numbers_are_taken_column_by_column(dtype):
    tall, vector = rows_of(3, CHUNK + 1, dtype).T, rows_of(1, 3, dtype, seed=1)[0]
    coefficients = rows_of(1, CHUNK + 1, torch.float64, seed=2)[0]
    assert torch.allclose(linalg.inner(tall, vector), tall.double() @ vector.double(), rtol=1e-12, atol=1e-13)
    expected = vector.double() - coefficients @ tall.double()
    linalg.subtract_combination(vector, tall, coefficients)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}
    assert torch.allclose(vector.double(), expected, **tolerance)


def test_combination_of_float32_rows_rounds_once():
    rows = rows_of(40, 1000, torch.float32)
    coefficients = rows_of(1, 40, torch.float64, seed=1)[0]
    vector = torch.zeros(1000)
    linalg.subtract_combination(vector, rows, coefficients)
    assert torch.equal(vector, -(coefficients @ rows.double()).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, (1 << 14) - 1, 1 << 14, (1 << 14) + 1, 50_001])
def test_the_quick_inner_product_is_the_inner_product(dtype, size):
    rows, vectors = rows_of(3, size, dtype), rows_of(2, size, dtype, seed=1).T
    exact = rows.double() @ vectors.double()
    norms = rows.double().norm(dim=1)[:, None] * vectors.double().norm(dim=0)
    tolerance = 1e-7 if dtype == torch.float32 else 1e-15
    for found, true, scale in (
        (linalg.quick_inner(rows, vectors), exact, norms),
        (linalg.quick_inner(rows, vectors[:, 1]), exact[:, 1], norms[:, 1]),
        (linalg.inner_of_pieces(rows, vectors), exact, norms),
        (linalg.inner_of_pieces(rows.T.contiguous().T, vectors.contiguous()), exact, norms),
        (linalg.inner_of_pieces(rows, vectors[:, 1]), exact[:, 1], norms[:, 1]),
    ):
        assert found.dtype == torch.float64
        assert found.shape == true.shape
        assert bool(((found - true).abs() <= tolerance * scale).all())


def test_the_quick_inner_product_adds_its_parts_in_float64():
    """What a float32 sum over all terms would lose."""
    vector = torch.full((LONG,), 0.1)
    exact = LONG * float(vector[0]) ** 2
    assert abs(float(linalg.quick_inner(vector[None], vector)[0]) / exact - 1) < 2e-5
    gaussian, other = rows_of(2, LONG, torch.float32)
    scale, inner = float(gaussian.double().norm() * other.double().norm()), gaussian.double() @ other.double()
    for found in (linalg.quick_inner(gaussian[None], other)[0], linalg.inner_of_pieces(gaussian[None], other)[0]):
        assert abs(float(found - inner)) < 1e-8 * scale


def test_the_quick_inner_product_of_nothing():
    for way in (linalg.quick_inner, linalg.inner_of_pieces):
        assert way(torch.empty(0, 5), torch.ones(5)).shape == (0,)
        assert way(torch.empty(0, 1 << 15), torch.ones(1 << 15, 2)).shape == (0, 2)


@contextmanager
def lowered(backend):
    """float32 products of this backend may be made in less."""
    backend.matmul.fp32_precision = "bf16" if backend is torch.backends.mkldnn else "tf32"
    yield
    backend.matmul.fp32_precision = "none"


@pytest.fixture
def inexact_products():
    """float32 products as an accelerator may make them: then everything is combined in float64."""
    with lowered(torch.backends.mkldnn):
        yield


def test_lower_matmul_precision_does_not_reach_the_quick_inner_product(inexact_products):
    rows, vector = rows_of(3, 40_000, torch.float32), rows_of(1, 40_000, torch.float32, seed=1)[0]
    assert torch.equal(linalg.quick_inner(rows, vector), linalg.inner(rows, vector))


def test_a_precision_that_was_lowered_by_its_newer_name_is_seen_where_it_holds():
    rows, devices = rows_of(3, 500, torch.float32), [torch.device(name) for name in ("cpu", "cuda")]
    with lowered(torch.backends.cuda):
        on_accelerators = [linalg.lowered(device) for device in devices], linalg.multiplies_exactly(rows)
    with lowered(torch.backends.mkldnn):
        on_processors = [linalg.lowered(device) for device in devices], linalg.multiplies_exactly(rows)
    assert on_accelerators == (["", "tf32"], True)
    assert on_processors == (["bf16", ""], False)
    assert linalg.multiplies_exactly(rows)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_value_that_is_not_finite_is_noticed(value, dtype):
    values = torch.full((1000, 3), torch.finfo(dtype).max, dtype=dtype)  # their sum overflows
    assert linalg.all_finite(values)
    values[567, 1] = value
    assert not linalg.all_finite(values)


def test_a_vector_almost_inside_the_rows_is_left_orthogonal_to_them():
    rows = torch.linalg.qr(torch.randn(5000, 7, generator=torch.Generator().manual_seed(0))).Q.T.contiguous()
    draw = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    vector = 1e3 * rows.sum(0) + 1e-3 * draw
    before = vector.clone()
    taken = linalg.orthogonalise(vector, rows)
    assert float((rows.double() @ vector.double()).norm()) < 1e-6 * float(vector.norm())
    assert torch.allclose(before.double(), vector.double() + taken @ rows.double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("exactly", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_rotated_and_taken_out_either_way(dtype, exactly, request):
    if not exactly:
        request.getfixturevalue("inexact_products")
    draw = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(3000, 5, generator=draw, dtype=torch.float64)).Q.T.to(dtype).contiguous()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=draw, dtype=torch.float64)).Q[:, :3]
    expected = turn.T @ rows.double()
    turned = rows.clone()
    linalg.rotate(turned, turn)
    close = 1e-6 if dtype == torch.float32 else 1e-14
    assert turned.dtype == dtype
    assert float((turned[:3].double() - expected).abs().max()) < close
    assert torch.equal(turned[3:], rows[3:])
    vector = torch.randn(3000, generator=draw, dtype=torch.float64).to(dtype)
    before = vector.clone()
    found = linalg.orthogonalise(vector, rows)
    assert found.dtype == torch.float64
    assert vector.dtype == dtype
    assert float((rows.double() @ before.double() - found).abs().max()) < 20 * close
    assert float((rows.double() @ vector.double()).abs().max()) < 20 * close
    assert float((before.double() - found @ rows.double() - vector.double()).abs().max()) < 20 * close
