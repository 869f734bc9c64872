"""Sets of examples of unequal weight that join together: each at its own total weight."""

from __future__ import annotations

import torch
from torch import Tensor

from curvprobe.numerics.intervals import standard_error

SETS = 4096
"""Random sets of candidates of unequal weight."""


def ratio_of_sets(moves: Tensor, weight: Tensor, before: float, b: int) -> tuple[float, float]:
    """The mean square move of ``b`` that join at their own total weight, over that at the mean weight; and its error.

    Over random sets of the candidates: the same sets serve both, so that little of their noise is left.
    """
    generator = torch.Generator().manual_seed(0)
    mean = before + b * float(weight.mean())
    plain, exact = list[Tensor](), list[Tensor]()
    for _ in range(SETS // 64):
        drawn = torch.randint(len(moves), (64, b), generator=generator, device="cpu")
        counts = torch.zeros(64, len(moves), dtype=torch.float64, device="cpu")
        counts.scatter_add_(1, drawn, torch.ones(64, b, dtype=torch.float64, device="cpu"))
        plain.append((counts @ moves).square().sum(1))
        exact.append(plain[-1] * (mean / (before + counts @ weight)).square())
    below, above = torch.cat(plain), torch.cat(exact)
    if not float(below.mean()) > 0:
        return 1.0, 0.0
    ratio = above.mean() / below.mean()
    return float(ratio), standard_error((above - ratio * below) / below.mean())
