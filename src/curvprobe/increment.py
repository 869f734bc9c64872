"""The quadratic model of a loss increment in a subspace: level, slope and curvature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe.projection import ProjectedSample


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

    def __post_init__(self) -> None:
        for name in ("level", "slope", "curvature"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).detach().double().cpu())
        batch, dim = self.level.shape, self.slope.shape[-1] if self.slope.dim() else 0
        if self.slope.shape != (*batch, dim) or self.curvature.shape != (*batch, dim, dim) or dim < 1:
            raise ValueError(
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
            raise ValueError(f"dim is {dim}; expected 1 to {self.dim}")
        return QuadraticIncrement(self.level, self.slope[..., :dim], self.curvature[..., :dim, :dim])

    def at(self, coordinates: Tensor) -> Tensor:
        """The model at coordinates z (S, D), for each increment: (..., S)."""
        z = coordinates.double()
        bent = torch.einsum("sd,...de,se->...s", z, self.curvature, z)
        return self.level[..., None] + self.slope @ z.T + bent / 2


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
        >>> from curvprobe.projection import ProjectedSample
        >>> both = ProjectedSample(torch.tensor([1.0, 3.0]), torch.ones(2), torch.eye(2), torch.zeros(2, 2, 2))
        >>> inc = increment(both[:1], both[1])
        >>> inc.level, inc.slope
        (tensor(1., dtype=torch.float64), tensor([-0.5000,  0.5000], dtype=torch.float64))
    """
    if sample.dim != new.dim:
        raise ValueError(f"the sample is projected on {sample.dim} directions and the new examples on {new.dim}")
    before, joined = sample.mean(), new.mean()
    factor = joined.weight / (before.weight + joined.weight)
    return QuadraticIncrement(
        (factor * (joined.loss - before.loss))[0],
        (factor[:, None] * (joined.gradient - before.gradient))[0],
        (factor[:, None, None] * (joined.hessian - before.hessian))[0],
    )


def prefix_increments(
    sample: ProjectedSample, ks: Sequence[int] | None = None, fresh: ProjectedSample | None = None
) -> QuadraticIncrement:
    """The increments of every prefix: the first k examples, and the next one.

    Args:
        sample: n examples in order.
        ks: prefix lengths; None is 1 to n - 1 (to n with ``fresh``).
        fresh: None takes the sample's own example k + 1; otherwise every one of these m examples is tried as the next.

    Returns:
        Increments with leading shape (K,), or (K, m) with ``fresh``.
    """
    last = len(sample) - (fresh is None)
    chosen = torch.as_tensor(list(range(1, last + 1)) if ks is None else [int(k) for k in ks])
    if len(chosen) == 0 or int(chosen.min()) < 1 or int(chosen.max()) > last:
        raise ValueError(f"ks is {list(chosen.tolist())}; expected prefix lengths from 1 to {last}")
    weight = sample.weight
    total = weight.cumsum(0)[chosen - 1]

    def prefix_mean(values: Tensor) -> Tensor:
        column = (-1, *[1] * (values.dim() - 1))
        return (weight.view(column) * values).cumsum(0)[chosen - 1] / total.view(column)

    following = sample[chosen] if fresh is None else fresh
    if fresh is None:
        factor = following.weight / (total + following.weight)
    else:
        factor = fresh.weight / (total[:, None] + fresh.weight)

    def difference(name: str) -> Tensor:
        new, old = getattr(following, name), prefix_mean(getattr(sample, name))
        return new - old if fresh is None else new[None] - old[:, None]

    return QuadraticIncrement(
        factor * difference("loss"),
        factor[..., None] * difference("gradient"),
        factor[..., None, None] * difference("hessian"),
    )
