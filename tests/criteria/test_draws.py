"""Draws in mirrored pairs, and which numbers of them come so."""

import pytest
import torch

from curvprobe.criteria.draws import in_pairs, mirrored_normal, standard_normal


@pytest.mark.parametrize(("count", "pairs"), [(2, False), (3, False), (4, True), (5, False), (6, True), (8, True)])
def test_even_numbers_from_four_on_come_in_pairs(count, pairs):
    assert in_pairs(count) is pairs
    z = mirrored_normal(count, 3, seed=1)
    assert z.shape == (count, 3)
    if pairs:
        assert torch.equal(z[1::2], -z[::2])
        assert torch.equal(z[::2], standard_normal(count // 2, 3, 1))
    else:
        assert torch.equal(z, standard_normal(count, 3, 1))
