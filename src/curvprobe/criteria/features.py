"""Every example as one vector: the squared distance of two is the closed form of the criterion."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvprobe.criteria.draws import check_sigma
from curvprobe.criteria.sample import ProjectedSample


def features(sample: ProjectedSample, sigma: float | Tensor) -> Tensor:
    r"""Feature vectors whose squared distance is the closed form, float64 (n, 1 + D + D^2).

    .. math:: \psi_i = ( l_i + \sigma^2 \mathrm{tr} B_i / 2, \; \sigma c_i, \; \sigma^2 \mathrm{vec} B_i / \sqrt 2 )
    """
    scale = check_sigma(sigma, sample.dim).expand(sample.dim)
    scaled = sample.hessian * scale[:, None] * scale
    level = sample.loss + scaled.diagonal(dim1=-2, dim2=-1).sum(-1) / 2
    return torch.cat([level[:, None], sample.gradient * scale, scaled.flatten(1) / math.sqrt(2)], dim=1)


def membership(dim: int) -> Tensor:
    """Which part each feature belongs to, float64 (1 + D + D^2, 3)."""
    part = torch.tensor([0] + [1] * dim + [2] * dim**2, device="cpu")
    return torch.nn.functional.one_hot(part, 3).double()


def along_directions(dim: int) -> Tensor:
    """Which direction each feature belongs to, float64 (1 + D + D^2, D): its slope, and its row of the curvature."""
    own = torch.eye(dim, dtype=torch.float64, device="cpu")
    level = torch.zeros(1, dim, dtype=torch.float64, device="cpu")
    return torch.cat([level, own, own.repeat_interleave(dim, dim=0)])
