"""Thumbnails: small, in the order of the ranking, and refused where they are none."""

import base64

import numpy
import pytest
import torch

import curvprobe as cp
from curvprobe.report.pictures import DRAWN, SIDE, thumbnails


def pixels(found):
    return list(base64.b64decode(found["pixels"]))


def test_each_goes_from_its_darkest_to_its_lightest():
    grey = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[5.0, 5.0], [5.0, 5.0]]])
    first, second = thumbnails(grey, [1, 0], 2)
    assert pixels(first) == [0, 0, 0, 0]
    assert pixels(second) == [0, 64, 128, 255]
    assert (second["width"], second["height"], second["channels"]) == (2, 2, 1)


def test_channels_come_last_and_large_ones_are_made_small():
    colour = torch.zeros(3, 2, 1)
    colour[0, 0], colour[2, 1] = 1.0, 0.5
    (found,) = thumbnails([colour], [0], 1)
    assert pixels(found) == [255, 0, 0, 0, 0, 128]
    (large,) = thumbnails(numpy.arange(100 * 40.0).reshape(1, 1, 100, 40), [0], 1)
    assert (large["height"], large["width"]) == (SIDE, round(SIDE * 0.4))
    assert len(pixels(large)) == large["height"] * large["width"]
    assert pixels(large) == sorted(pixels(large))


def test_a_hundred_at_most():
    assert len(thumbnails(torch.zeros(DRAWN + 5, 2, 2), range(DRAWN + 5), DRAWN + 5)) == DRAWN


@pytest.mark.parametrize("shape", [(2, 4), (2, 2, 4, 4), (2, 3, 0, 4), (2, 1, 1, 4, 4)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(cp.ArgumentError, match=r"expected \(H, W\), \(1, H, W\) or \(3, H, W\)"):
        thumbnails(torch.zeros(shape), [0, 1], 2)
    with pytest.raises(cp.ArgumentError, match="2 pictures came for 3 candidates"):
        thumbnails(torch.zeros(2, 4, 4), [0, 1], 3)
