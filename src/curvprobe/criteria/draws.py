"""Standard deviations, and draws of coordinates in a subspace."""

from __future__ import annotations

import torch
from torch import Tensor

from curvprobe.errors import ArgumentError, ArgumentTypeError


def check_sigma(sigma: float | Tensor, dim: int | None = None) -> Tensor:
    """Sigma as a positive float64 scalar, or one per direction (dim,)."""
    try:
        value = torch.as_tensor(sigma, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentTypeError(f"sigma is {sigma!r}; expected a positive number, in parameter units") from error
    if value.dim() and value.shape != (dim,):
        shape = "()" if dim is None else f"() or ({dim},)"
        raise ArgumentError(f"sigma has shape {tuple(value.shape)}; expected {shape}")
    if not bool(((value > 0) & value.isfinite()).all()):
        raise ArgumentError(f"sigma is {value.tolist()}; expected positive and finite, in parameter units")
    return value


def standard_normal(num_probes: int, dim: int, seed: int) -> Tensor:
    """Draws (S, D), float64, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_probes, dim, generator=generator, dtype=torch.float64, device="cpu")


def in_pairs(num_probes: int) -> bool:
    """Whether so many draws of an antithetic law come as pairs of mirror images."""
    return num_probes >= 4 and num_probes % 2 == 0


def mirrored_normal(num_probes: int, dim: int, seed: int) -> Tensor:
    """Draws (S, D), float64, in pairs of mirror images where their number allows it."""
    if not in_pairs(num_probes):
        return standard_normal(num_probes, dim, seed)
    half = standard_normal(num_probes // 2, dim, seed)
    return torch.stack([half, -half], dim=1).flatten(0, 1)
