"""Small pictures of candidates, as plain values for a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from curvprobe.errors import ArgumentError

SIDE = 32
"""Pixels of the longer side, at most."""

DRAWN = 100
"""Pictures on a page, at most: those of the candidates that would move it most."""


def thumbnails(pictures: Any, order: Sequence[int], count: int) -> list[dict[str, Any]]:
    """The first pictures in an order, each from its own darkest to its own lightest value.

    Args:
        pictures: (n, H, W) or (n, C, H, W) numbers with C of 1 or 3, or a sequence of n such arrays or tensors.
        order: positions, those to be drawn first.
        count: how many there have to be.

    Returns:
        Width, height, number of channels, and the values of the pixels by rows, base64 of a byte each.

    Raises:
        ValueError: for another number of pictures, or of another shape.
    """
    if len(pictures) != count:
        raise ArgumentError(f"{len(pictures)} pictures came for {count} candidates; expected as many")
    return [_thumbnail(torch.as_tensor(pictures[j], device="cpu").detach()) for j in order[:DRAWN]]


def _thumbnail(picture: Tensor) -> dict[str, Any]:
    values = picture[None] if picture.dim() == 2 else picture
    if values.dim() != 3 or len(values) not in (1, 3) or 0 in values.shape:
        raise ArgumentError(f"a picture is of shape {tuple(picture.shape)}; expected (H, W), (1, H, W) or (3, H, W)")
    values = values.double().nan_to_num()
    height, width = values.shape[1:]
    if max(height, width) > SIDE:
        size = [max(1, round(SIDE * side / max(height, width))) for side in (height, width)]
        values = torch.nn.functional.interpolate(values[None], size=size, mode="area")[0]
    low, high = float(values.min()), float(values.max())
    pixels = ((values - low) / ((high - low) or 1.0) * 255).round().to(torch.uint8)
    flat = bytes(pixels.movedim(0, -1).flatten().tolist())
    return {
        "width": values.shape[2],
        "height": values.shape[1],
        "channels": len(values),
        "pixels": base64.b64encode(flat).decode("ascii"),
    }
