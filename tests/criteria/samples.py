"""Projected samples that are drawn at random."""

import torch
from torch import Tensor

import curvprobe as cp

SIGMA = 0.3


def sample_of(n: int, dim: int = 2, seed: int = 0, *, weighted: bool = False, shift: float = 0.0) -> cp.ProjectedSample:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    hessian = normal(n, dim, dim)
    weight = torch.randint(1, 9, (n,), generator=draw) if weighted else torch.ones(n)
    return cp.ProjectedSample(normal(n).exp() + shift, weight, normal(n, dim), hessian + hessian.mT)


def joined(sample: cp.ProjectedSample, new: cp.ProjectedSample, sigma: float | Tensor = SIGMA) -> cp.Estimate:
    return cp.gaussian_moment(cp.increment(sample, new), sigma=sigma)
