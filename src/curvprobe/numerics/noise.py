"""Random vectors of the parameters' size, drawn where they are needed and the same on every device.

A number is a hash of its place and of a key, not the successor of another: so an accelerator draws all at once, and
nothing crosses from the host. Signs are equal to the bit everywhere; normal numbers to the rounding of their logarithm
and cosine in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_AT_ONCE = {"cpu": 1 << 15}
"""Hashes made at a time: a processor's cache holds them."""

_MANY_AT_ONCE = 1 << 24

_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIXERS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)), (31, 1))
"""Increment, and shifts and multipliers of the mixing function; as signed numbers, which wrap around the same."""

_HALF = (1 << 32) - 1


def normal_vector(
    generator: torch.Generator,
    size: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    part: Sequence[slice] | None = None,
) -> Tensor:
    """Standard normal numbers (size,), with a key that is drawn from ``generator``; or some parts of them only.

    Source: Box & Muller (1958) on the two halves of a hash; the hash is that of Steele, Lea & Flood (2014), "Fast
    splittable pseudorandom number generators".
    """
    key = _key(generator)
    return _filled([slice(0, size)] if part is None else part, dtype, device, lambda *place: _put_normal(key, *place))


def _filled(
    parts: Sequence[slice],
    dtype: torch.dtype,
    device: torch.device | str,
    put: Callable[[Tensor, int], None],
) -> Tensor:
    """Parts of a long vector, one after the other, into each of which numbers are put from its place on."""
    sizes = [part.stop - part.start for part in parts]
    vector = torch.empty(sum(sizes), dtype=dtype, device=device)
    for piece, part in zip(torch.split(vector, sizes), parts, strict=True):
        put(piece, part.start)
    return vector


def _put_normal(key: int, vector: Tensor, begin: int) -> None:
    for start, found in hashes(key, (begin + len(vector) + 1) // 2, vector.device, begin // 2):
        upper = ((found >> 32) & _HALF).double().add_(0.5).mul_(2.0**-32)  # never zero
        angle = (found & _HALF).double().mul_(2 * math.pi * 2.0**-32)
        radius = upper.log_().mul_(-2).sqrt_()
        pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1).flatten()
        before = max(0, begin - 2 * start)  # of a pair that a part begins in the middle of
        place = vector[2 * start + before - begin :][: len(pairs) - before]
        place.copy_(pairs[before : before + len(place)])


def sign_vector(
    generator: torch.Generator,
    size: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    part: Sequence[slice] | None = None,
) -> Tensor:
    """Random signs (size,), with a key that is drawn from ``generator``; or some parts of them only."""
    key = _key(generator)
    return _filled([slice(0, size)] if part is None else part, dtype, device, lambda *place: _put_signs(key, *place))


def _put_signs(key: int, vector: Tensor, begin: int) -> None:
    for start, found in hashes(key, begin + len(vector), vector.device, begin):
        vector[start - begin :][: len(found)] = (found >> 63).mul_(2).add_(1)  # the highest bit, -1 or 0


def _key(generator: torch.Generator) -> int:
    return int(torch.randint(-(1 << 63), (1 << 63) - 1, (), generator=generator, device="cpu"))


def hashes(key: int, count: int, device: torch.device, first: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Hashes of 64 bits, int64, of the places from ``first`` to ``count``, in pieces with the place of their first."""
    at_once = _AT_ONCE.get(device.type, _MANY_AT_ONCE)
    for start in range(first, count, at_once):
        found = torch.arange(start, min(count, start + at_once), device=device).mul_(_STEP).add_(key)
        for shift, multiplier in _MIXERS:
            found.bitwise_xor_((found >> shift) & ((1 << (64 - shift)) - 1)).mul_(multiplier)
        yield start, found
