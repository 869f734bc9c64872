"""The quadratic model of a loss increment in a subspace: level, slope and curvature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from curvprobe.criteria.sample import ProjectedSample
from curvprobe.errors import ArgumentError
from curvprobe.runtime.plain import brief


@dataclass(frozen=True, eq=False)
class QuadraticIncrement:
    r"""Quadratic model of one or several loss increments.

    .. math:: L_{k+1}(w^* + U z) - L_k(w^* + U z) \approx a + c^T z + z^T B z / 2

    Attributes:
        level: a (...), float64, loss units.
        slope: c (..., D).
        curvature: B (..., D, D), symmetric.

    Example:
        >>> import torch
        >>> QuadraticIncrement(torch.tensor(1.0), torch.ones(2), torch.eye(2)).at(torch.tensor([[1.0, 0.0]]))
        tensor([2.5000], dtype=torch.float64)
    """

    level: Tensor
    slope: Tensor
    curvature: Tensor

    __repr__ = brief

    def __post_init__(self) -> None:
        for name in ("level", "slope", "curvature"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), device="cpu").detach().double())
        batch, dim = self.level.shape, self.slope.shape[-1] if self.slope.dim() else 0
        if self.slope.shape != (*batch, dim) or self.curvature.shape != (*batch, dim, dim) or dim < 1:
            raise ArgumentError(
                f"level, slope and curvature have shapes {tuple(self.level.shape)}, {tuple(self.slope.shape)} and "
                f"{tuple(self.curvature.shape)}; expected (...), (..., D) and (..., D, D)"
            )

    @property
    def dim(self) -> int:
        """D."""
        return self.slope.shape[-1]

    def truncate(self, dim: int) -> QuadraticIncrement:
        """The increment on the span of the first ``dim`` basis vectors."""
        if not 1 <= dim <= self.dim:
            raise ArgumentError(f"dim is {dim}; expected 1 to {self.dim}")
        return QuadraticIncrement(self.level, self.slope[..., :dim], self.curvature[..., :dim, :dim])

    def at(self, coordinates: Tensor) -> Tensor:
        """The model at coordinates z (S, D), for each increment: (..., S)."""
        z = coordinates.double()
        second_order = torch.einsum("sd,...de,se->...s", z, self.curvature, z)
        return self.level[..., None] + self.slope @ z.T + second_order / 2


Weight = TypeVar("Weight", float, Tensor)


def joining_factor(before: Weight | float, joined: Weight) -> Weight:
    """``f = W_b / (W_k + W_b)``: the part of what joins, of weight ``joined``, in the mean of all."""
    return joined / (before + joined)


def increment(sample: ProjectedSample, new: ProjectedSample) -> QuadraticIncrement:
    r"""Quadratic model of ``L_{k+b} - L_k`` when ``new`` (b examples) joins ``sample`` (k examples).

    .. math:: a = f (\bar l_{new} - L_k), \; c = f U^T (\bar g_{new} - g^{(k)}), \;
        B = f U^T (\bar H_{new} - H^{(k)}) U, \quad f = W_b / (W_k + W_b)

    By the exact identity, never as a difference of two means.

    Args:
        sample: the k examples that define the risk (or their :meth:`ProjectedSample.mean`).
        new: the examples that join it, in the same subspace.

    Raises:
        ValueError: if the two have different dimensions D.

    Source: Kiselev & Grabovoy (2026), arXiv:2604.14870, with the sample's own gradient kept, and weights.

    Example:
        >>> import torch
        >>> from curvprobe.criteria.sample import ProjectedSample
        >>> both = ProjectedSample(torch.tensor([1.0, 3.0]), torch.ones(2), torch.eye(2), torch.zeros(2, 2, 2))
        >>> inc = increment(both[:1], both[1])
        >>> inc.level, inc.slope
        (tensor(1., dtype=torch.float64), tensor([-0.5000,  0.5000], dtype=torch.float64))
    """
    if sample.dim != new.dim:
        raise ArgumentError(f"the sample is projected on {sample.dim} directions and the new examples on {new.dim}")
    before, joined = sample.mean(), new.mean()
    factor = joining_factor(before.weight, joined.weight)
    return QuadraticIncrement(
        (factor * (joined.loss - before.loss))[0],
        (factor[:, None] * (joined.gradient - before.gradient))[0],
        (factor[:, None, None] * (joined.hessian - before.hessian))[0],
    )


def prefix_increments(sample: ProjectedSample, ks: Sequence[int] | None = None) -> QuadraticIncrement:
    """The increments of every prefix: the first k examples, and the sample's own example k + 1.

    Args:
        sample: n examples in order.
        ks: prefix lengths; None is 1 to n - 1.

    Returns:
        Increments with leading shape (K,).

    Example:
        >>> import torch
        >>> sample = ProjectedSample(torch.arange(4.0), torch.ones(4), torch.zeros(4, 1), torch.zeros(4, 1, 1))
        >>> prefix_increments(sample).level
        tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    sample.expect_whole()
    chosen = _prefix_lengths(ks, len(sample) - 1)
    before, following = prefix_means(sample, chosen), sample[chosen]
    factor = joining_factor(before.weight, following.weight)
    return QuadraticIncrement(
        factor * (following.loss - before.loss),
        factor[:, None] * (following.gradient - before.gradient),
        factor[:, None, None] * (following.hessian - before.hessian),
    )


def last_increments(sample: ProjectedSample) -> QuadraticIncrement:
    """The increments (n,) when each example is the next one of all others."""
    sample.expect_whole()
    if len(sample) < 2:
        raise ArgumentError("the sample has one example; without candidates the expectation needs at least 2")
    rest, mean = sample.weight.sum() - sample.weight, sample.mean()

    def gap(values: Tensor, whole: Tensor) -> Tensor:
        # x - (W m - w x) / (W - w) = W (x - m) / (W - w), times w / W
        return (sample.weight / rest).view(-1, *[1] * (values.dim() - 1)) * (values - whole)

    return QuadraticIncrement(
        gap(sample.loss, mean.loss), gap(sample.gradient, mean.gradient), gap(sample.hessian, mean.hessian)
    )


def fresh_increments(
    sample: ProjectedSample, fresh: ProjectedSample, ks: Sequence[int] | None = None
) -> Iterator[QuadraticIncrement]:
    """For every prefix of the sample, the increments (m,) when each of m fresh examples is the next one."""
    if sample.dim != fresh.dim:
        raise ArgumentError(f"the sample is projected on {sample.dim} directions and the fresh examples on {fresh.dim}")
    before = prefix_means(sample, _prefix_lengths(ks, len(sample), sample.size))
    for i in range(len(before)):
        factor = joining_factor(before.weight[i], fresh.weight)
        yield QuadraticIncrement(
            factor * (fresh.loss - before.loss[i]),
            factor[:, None] * (fresh.gradient - before.gradient[i]),
            factor[:, None, None] * (fresh.hessian - before.hessian[i]),
        )


def _prefix_lengths(ks: Sequence[int] | None, last: int, whole: int | None = None) -> list[int]:
    chosen = list(range(1, last + 1)) if ks is None else [int(k) for k in ks]
    if not chosen or min(chosen) < 1 or any(k > last and k != whole for k in chosen):
        beyond = "" if whole in (None, last) else f", or {whole}"
        raise ArgumentError(f"ks is {chosen}; expected prefix lengths from 1 to {last}{beyond}")
    return chosen


def spaced_sizes(sample: ProjectedSample, count: int) -> list[int]:
    """Some prefix lengths on a logarithmic scale, the last one the whole sample."""
    sizes = torch.logspace(0, math.log10(len(sample)), count, dtype=torch.float64, device="cpu").round()
    return sorted({*(min(len(sample), int(size)) for size in sizes), sample.size})


def prefix_means(sample: ProjectedSample, ks: list[int]) -> ProjectedSample:
    """Weighted mean of the first k examples for every k, as examples that carry the prefixes' total weights.

    Of drawn examples the first k are k of their kind, each of a weight as the whole has it on average; and what all
    stand for is the prefix of the whole.
    """
    sizes, n = torch.as_tensor(ks, device="cpu"), len(sample)
    rows = sizes.clamp_max(n) - 1
    sums = sample.weight.cumsum(0)[rows]

    def mean(values: Tensor) -> Tensor:
        column = (-1, *[1] * (values.dim() - 1))
        return (sample.weight.view(column) * values).cumsum(0)[rows] / sums.view(column)

    total = sums if sample.design is None else torch.where(sizes == sample.size, sums, sums * n / sample.size)
    return ProjectedSample(mean(sample.loss), total, mean(sample.gradient), mean(sample.hessian))
