"""The procedure of Kiselev & Grabovoy (2026), arXiv:2604.14870, in plain PyTorch: what curvprobe is compared with.

Written from the paper's description, not from its code, and without curvprobe's own solver or projections:

* stage I, the top eigenpairs of the Hessian of the mean loss by power iteration with deflation;
* stage II, level, slope and curvature of the increment as differences of two separately computed means;
* stage III, the second moment by direct Monte Carlo, Monte Carlo on the quadratic model, and the closed form.

Every mean is over all its examples in one batch, every Hessian-vector product builds its graph anew, and everything
is in the model's own precision. Where the description leaves a choice, the better one is taken: eigenvalues are signed
Rayleigh quotients, and the sample's own gradient is kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvprobe.losses import Loss

Batch = Tensor | tuple[Tensor, ...]


def take(batch: Batch, rows: slice | Tensor) -> Batch:
    """Some of the rows of a batch."""
    return batch[rows] if isinstance(batch, Tensor) else tuple(part[rows] for part in batch)


def join(first: Batch, second: Batch) -> Batch:
    """The rows of both batches."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    return tuple(torch.cat(parts) for parts in zip(first, second, strict=True))


def move(batch: Batch, device: torch.device) -> Batch:
    return batch.to(device) if isinstance(batch, Tensor) else tuple(part.to(device) for part in batch)


def num_rows(batch: Batch) -> int:
    return len(batch if isinstance(batch, Tensor) else batch[0])


def flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


@dataclass(frozen=True)
class MeanLoss:
    """The mean loss of a model over a batch, and its derivatives in all parameters as flat vectors (N,)."""

    module: nn.Module
    loss: Loss

    @property
    def params(self) -> list[nn.Parameter]:
        """In the model's own order, which is curvprobe's too."""
        return list(self.module.parameters())

    def __call__(self, batch: Batch) -> Tensor:
        """The mean loss, under the math attention kernel: fused attention has no second derivative."""
        with sdpa_kernel(SDPBackend.MATH):
            result: Any = self.loss(self.module(batch if isinstance(batch, Tensor) else batch[0]), batch)
        loss_sum, weight = result if isinstance(result, tuple) else (result, torch.ones_like(result))
        return loss_sum.sum() / weight.sum()

    def gradient(self, batch: Batch) -> Tensor:
        """Gradient of the mean loss."""
        return flat(torch.autograd.grad(self(batch), self.params))

    def hessian_product(self, batch: Batch, vector: Tensor) -> Tensor:
        """Hessian of the mean loss times a vector, by double backward."""
        params = self.params
        gradients = torch.autograd.grad(self(batch), params, create_graph=True)
        pieces = [piece.view_as(p) for p, piece in zip(params, _pieces(params, vector), strict=True)]
        return flat(torch.autograd.grad(gradients, params, pieces))


def _pieces(params: Sequence[Tensor], vector: Tensor) -> Sequence[Tensor]:
    return vector.split([p.numel() for p in params])


# ---- stage I


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues (D,) in the order found, unit vectors as columns of ``basis`` (N, D), and the products used."""

    eigenvalues: Tensor
    basis: Tensor
    num_matvecs: int


def power_iteration(
    mean: MeanLoss, batch: Batch, dim: int, *, iterations: int = 20, tolerance: float = 1e-4, seed: int = 0
) -> Eigenpairs:
    """Leading eigenpairs one after another, each on the Hessian from which those before have been subtracted.

    A vector is done when its eigenvalue changes by less than ``tolerance`` of itself, or after ``iterations``.
    """
    like = mean.params[0]
    num_params = sum(p.numel() for p in mean.params)
    generator = torch.Generator(like.device).manual_seed(seed)
    vectors = torch.zeros(dim, num_params, dtype=like.dtype, device=like.device)
    eigenvalues = torch.zeros(dim, dtype=like.dtype, device=like.device)
    num_matvecs = 0
    for i in range(dim):
        v = torch.randn(num_params, generator=generator, dtype=like.dtype, device=like.device)
        v /= v.norm()
        value = math.inf
        for _ in range(iterations):
            product = mean.hessian_product(batch, v)
            num_matvecs += 1
            product -= (eigenvalues[:i] * (vectors[:i] @ v)) @ vectors[:i]
            previous, value = value, float(v @ product)
            v = product / product.norm()
            if abs(value - previous) < tolerance * abs(value):
                break
        vectors[i], eigenvalues[i] = v, value
    return Eigenpairs(eigenvalues, vectors.T, num_matvecs)


# ---- stage II


@dataclass(frozen=True)
class Coefficients:
    """Quadratic model of the increment in a subspace: level a, slope c (D,) and curvature B (D, D)."""

    level: Tensor
    slope: Tensor
    curvature: Tensor


def projected_hessian(mean: MeanLoss, batch: Batch, basis: Tensor) -> Tensor:
    """``U^T H U`` (D, D), by D Hessian-vector products."""
    return torch.stack([basis.T @ mean.hessian_product(batch, u) for u in basis.T], dim=1)


def coefficients(mean: MeanLoss, basis: Tensor, before: Batch, after: Batch) -> Coefficients:
    """The increment's quadratic model from k examples and the same with one more, each mean on all its rows."""
    curvature = projected_hessian(mean, after, basis) - projected_hessian(mean, before, basis)
    return _with_level_and_slope(mean, basis, before, after, curvature)


def coefficients_on_subsets(
    mean: MeanLoss, basis: Tensor, before: Batch, after: Batch, *, rows: int = 4, seed: int = 0
) -> Coefficients:
    """The same with each Hessian on a few rows of its own, drawn at random: the shortcut of the paper's timings."""
    generator = torch.Generator().manual_seed(seed)
    old, new = (
        take(batch, torch.randperm(num_rows(batch), generator=generator)[:rows].to(basis.device))
        for batch in (before, after)
    )
    curvature = projected_hessian(mean, new, basis) - projected_hessian(mean, old, basis)
    return _with_level_and_slope(mean, basis, before, after, curvature)


def _with_level_and_slope(
    mean: MeanLoss, basis: Tensor, before: Batch, after: Batch, curvature: Tensor
) -> Coefficients:
    slope = basis.T @ mean.gradient(after) - basis.T @ mean.gradient(before)
    with torch.no_grad():
        level = mean(after) - mean(before)
    return Coefficients(level, slope, curvature)


# ---- stage III


def direct_increments(mean: MeanLoss, basis: Tensor, before: Batch, after: Batch, coordinates: Tensor) -> Tensor:
    """True increments (S,) at ``w* + U z`` for every row z of ``coordinates`` (S, D); 2k + 1 examples a draw."""
    params = mean.params
    solution = [p.detach().clone() for p in params]
    increments = []
    with torch.no_grad():
        try:
            for z in coordinates:
                for p, w, step in zip(params, solution, _pieces(params, basis @ z), strict=True):
                    p.copy_(w + step.view_as(w))
                increments.append(mean(after) - mean(before))
        finally:
            for p, w in zip(params, solution, strict=True):
                p.copy_(w)
    return torch.stack(increments)


def quadratic_increments(model: Coefficients, coordinates: Tensor) -> Tensor:
    """The quadratic model's increments (S,) at ``coordinates`` (S, D)."""
    return model.level + coordinates @ model.slope + ((coordinates @ model.curvature) * coordinates).sum(1) / 2


def closed_form(model: Coefficients, sigma: float) -> float:
    """Second moment of the quadratic model for z ~ N(0, sigma^2 I), as the paper expands it."""
    a, c, B = model.level, model.slope, model.curvature
    trace = B.trace()
    moment = a**2 + a * sigma**2 * trace + sigma**2 * c @ c + sigma**4 / 4 * (2 * (B * B).sum() + trace**2)
    return float(moment)
