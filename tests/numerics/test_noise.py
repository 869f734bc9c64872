import math

import pytest
import torch
from scipy import stats

from curvprobe.numerics import noise

CPU = torch.device("cpu")
PIECE = 1 << 15
"""Hashes that a processor makes at a time."""


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return noise.normal_vector(draw(seed), size, dtype=dtype, device="cpu")


def signs(seed: int, size: int) -> torch.Tensor:
    return noise.sign_vector(draw(seed), size, dtype=torch.float32, device="cpu")


def test_the_hash_is_the_published_one():
    """The first numbers of SplitMix64 from the seed 1234567, as its authors' implementation gives them."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    key = 1234567 + 0x9E3779B97F4A7C15 - (1 << 64)
    ((start, found),) = noise.hashes(key, 4, CPU)
    assert start == 0
    assert [value % (1 << 64) for value in found.tolist()] == published


@pytest.mark.parametrize("size", [1, 2, 3, 2 * PIECE - 1, 2 * PIECE, 2 * PIECE + 1, 5 * PIECE + 7])
def test_a_number_depends_on_its_place_alone(size):
    longer = normal(3, 6 * PIECE)
    assert torch.equal(normal(3, size), longer[:size])
    assert torch.equal(signs(3, size), signs(3, 6 * PIECE)[:size])


def test_a_number_does_not_depend_on_how_many_are_made_at_once(monkeypatch):
    before = normal(5, 1001), signs(5, 1001)
    monkeypatch.setattr(noise, "_AT_ONCE", {"cpu": 7})
    assert torch.equal(normal(5, 1001), before[0])
    assert torch.equal(signs(5, 1001), before[1])


def test_numbers_are_those_of_box_and_muller():
    key = int(torch.randint(-(1 << 63), (1 << 63) - 1, (), generator=draw(0)))
    ((_, found),) = noise.hashes(key, 3, CPU)
    expected = []
    for value in found.tolist():
        upper, lower = (value % (1 << 64)) >> 32, value % (1 << 32)
        radius = math.sqrt(-2 * math.log((upper + 0.5) / 2**32))
        expected += [radius * math.cos(2 * math.pi * lower / 2**32), radius * math.sin(2 * math.pi * lower / 2**32)]
    assert normal(0, 6).tolist() == pytest.approx(expected, rel=1e-13)


def test_normal_numbers_are_normal():
    numbers = normal(1, 400_000)
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-3
    assert abs(float((numbers**4).mean()) - 3) < 0.06
    assert 4 < float(numbers.abs().max()) < 6.8
    for lag in (1, 2, 3):  # neighbours of a pair, and beyond
        assert abs(float(numbers[lag:] @ numbers[:-lag]) / len(numbers)) < 5 / math.sqrt(len(numbers))
        squares = numbers.square() - 1
        assert abs(float(squares[lag:] @ squares[:-lag]) / 2 / len(numbers)) < 5 / math.sqrt(len(numbers))


def test_signs_are_even_and_unrelated():
    found = signs(1, 400_000)
    assert set(found.tolist()) == {-1.0, 1.0}
    assert abs(float(found.mean())) < 5 / math.sqrt(len(found))
    assert abs(float(found[1:] @ found[:-1]) / len(found)) < 5 / math.sqrt(len(found))


def test_draws_after_one_another_and_of_other_seeds_are_unrelated():
    generator = draw(0)
    vectors = [noise.normal_vector(generator, 100_000, dtype=torch.float64, device="cpu") for _ in range(3)]
    vectors += [normal(seed, 100_000) for seed in (1, 2)]
    vectors = torch.stack(vectors)
    gram = vectors @ vectors.T / 100_000 - torch.eye(5)
    assert float(gram.abs().max()) < 5 * math.sqrt(2 / 100_000)


def test_the_same_numbers_in_every_precision():
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(normal(2, 1000, dtype), normal(2, 1000).to(dtype))


def test_nothing_else_is_drawn_from():
    state = torch.get_rng_state()
    normal(0, 10)
    signs(0, 10)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [7, 2 * (1 << 15) + 5])
def test_parts_of_a_vector_are_those_of_the_whole(dtype, size):
    """Wherever they begin and end: in the middle of a pair, and of what is drawn at a time."""

    for draw in (noise.normal_vector, noise.sign_vector):

        def drawn(*parts, draw=draw):
            generator = torch.Generator().manual_seed(3)
            return draw(generator, size, dtype=dtype, device="cpu", part=parts or None)

        whole = drawn()
        for begin, end in (
            (0, size),
            (0, 3),
            (1, 2),
            (3, 7),
            (2, 2),
            (size - 1, size),
            (size // 2, size),
            (5, size - 1),
        ):
            assert torch.equal(drawn(slice(begin, end)), whole[begin:end])
        some = slice(0, 1), slice(2, 2), slice(3, size - 2)
        assert torch.equal(drawn(*some), torch.cat([whole[part] for part in some]))
