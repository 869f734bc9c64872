"""The procedure of Kiselev & Grabovoy (2026), arXiv:2604.14870, in plain PyTorch: what curvprobe is compared with.

Written from the paper's description, not from its code, and without curvprobe's own solver or projections:

* stage I, the top eigenpairs of the Hessian of the mean loss by power iteration with deflation;
* stage II, level, slope and curvature of the increment as differences of two separately computed means;
* stage III, the second moment by direct Monte Carlo, Monte Carlo on the quadratic model, and the closed form.

Every Hessian-vector product builds its graph anew, and everything is in the model's own precision. Where the
description leaves a choice, the better one is taken unless asked otherwise: eigenvalues are signed Rayleigh quotients
(the released scripts take the norm of the product, which has no sign), and the sample's own gradient is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    return tuple(torch.cat(parts) for parts in zip(first, second, strict=True))


ROWS = 32
"""Rows of one pass: a batch of more goes through the model in parts, each with a graph of its own."""


def passes(batch: Batch) -> list[Batch]:
    """The batch in parts of at most ``ROWS`` rows."""
    return [take(batch, slice(i, i + ROWS)) for i in range(0, num_rows(batch), ROWS)]


def move(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return batch.to(device) if isinstance(batch, Tensor) else tuple(part.to(device) for part in batch)


def num_rows(batch: Batch) -> int:
    """Its length."""
    return len(batch if isinstance(batch, Tensor) else batch[0])


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Parts of any shapes as one vector."""
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

    def sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum of the loss and of the weights, under the math attention kernel: fused attention has no second
        derivative."""
        with sdpa_kernel(SDPBackend.MATH):
            result: Any = self.loss(self.module(batch if isinstance(batch, Tensor) else batch[0]), batch)
        loss_sum, weight = result if isinstance(result, tuple) else (result, torch.ones_like(result))
        return loss_sum.sum(), weight.sum()

    def __call__(self, batch: Batch) -> Tensor:
        """The mean loss, in passes over so many rows at once."""
        parts = [self.sums(part) for part in passes(batch)]
        return torch.stack([part[0] for part in parts]).sum() / torch.stack([part[1] for part in parts]).sum()

    def gradient(self, batch: Batch) -> Tensor:
        """Gradient of the mean loss."""
        total, weights = torch.zeros_like(flat(self.params)), []
        for part in passes(batch):
            loss_sum, weight = self.sums(part)
            total = total + flat(torch.autograd.grad(loss_sum, self.params))
            weights.append(weight)
        return total / torch.stack(weights).sum()

    def hessian_product(self, batch: Batch, vector: Tensor) -> Tensor:
        """Hessian of the mean loss times a vector, by double backward."""
        params = self.params
        pieces = [piece.view_as(p) for p, piece in zip(params, _pieces(params, vector), strict=True)]
        total, weights = torch.zeros_like(vector), []
        for part in passes(batch):
            loss_sum, weight = self.sums(part)
            gradients = torch.autograd.grad(loss_sum, params, create_graph=True)
            total = total + flat(torch.autograd.grad(gradients, params, pieces))
            weights.append(weight)
        return total / torch.stack(weights).sum()


def _pieces(params: Sequence[Tensor], vector: Tensor) -> Sequence[Tensor]:
    return torch.split(vector, [p.numel() for p in params])


# ---- stage I


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues (D,) in the order found, unit vectors as columns of ``basis`` (N, D), and the products used."""

    eigenvalues: Tensor
    basis: Tensor
    num_matvecs: int


def power_iteration(
    mean: MeanLoss,
    batch: Batch,
    dim: int,
    *,
    iterations: int = 20,
    tolerance: float = 1e-4,
    seed: int = 0,
    signed: bool = True,
) -> Eigenpairs:
    """Leading eigenpairs one after another, each on the Hessian from which those before have been subtracted.

    A vector is done when its eigenvalue changes by less than ``tolerance`` of itself, or after ``iterations``. With
    ``signed=False`` an eigenvalue is the norm of the product, as in the released scripts: a negative one then is
    taken for positive, and subtracting it makes it larger.
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
            previous, value = value, float(v @ product if signed else product.norm())
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

    def truncate(self, dim: int) -> Coefficients:
        """On the first ``dim`` directions."""
        return Coefficients(self.level, self.slope[:dim], self.curvature[:dim, :dim])


def projected_hessian(mean: MeanLoss, batch: Batch, basis: Tensor) -> Tensor:
    """``U^T H U`` (D, D), by D Hessian-vector products."""
    return torch.stack([basis.T @ mean.hessian_product(batch, u) for u in basis.T], dim=1)


def coefficients(mean: MeanLoss, basis: Tensor, before: Batch, after: Batch) -> Coefficients:
    """The increment's quadratic model from k examples and the same with one more, each mean on all its rows."""
    curvature = projected_hessian(mean, after, basis) - projected_hessian(mean, before, basis)
    return _with_level_and_slope(mean, basis, before, after, curvature)


_OWN_ROWS = 1_000_003
"""Added to a seed, so that these rows are not those that a power iteration of the same seed was given."""


def coefficients_on_subsets(
    mean: MeanLoss, basis: Tensor, before: Batch, after: Batch, *, rows: int = 4, seed: int = 0
) -> Coefficients:
    """The same with each Hessian on a few rows of its own, drawn at random: the shortcut of the paper's timings."""
    generator = torch.Generator().manual_seed(seed + _OWN_ROWS)
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


def direct_increments(mean: MeanLoss, before: Batch, after: Batch, displacements: Iterable[Tensor]) -> Tensor:
    """True increments (S,) at ``w* + d`` for every displacement d (N,); 2k + 1 examples a draw."""
    params = mean.params
    solution = [p.detach().clone() for p in params]
    increments = []
    with torch.no_grad():
        try:
            for displacement in displacements:
                for p, w, step in zip(params, solution, _pieces(params, displacement), strict=True):
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
