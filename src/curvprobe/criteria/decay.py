"""The criteria at every sample size, dimension and sigma, from one projection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvprobe.criteria.distribution import absolute_moments
from curvprobe.criteria.drawn import draw_error
from curvprobe.criteria.draws import check_sigma
from curvprobe.criteria.estimators import check_power, moment_parts
from curvprobe.criteria.increment import QuadraticIncrement, fresh_increments, prefix_increments
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.errors import ArgumentError
from curvprobe.numerics.strata import errors
from curvprobe.runtime.plain import brief, numbers


@dataclass(frozen=True, eq=False)
class DecayCurve:
    """Criteria of the quadratic model at many k, sigmas and dimensions, float64.

    Attributes:
        ks: int (K,), sample sizes; the next example is the (k+1)-th.
        sigmas: (S,).
        dims: int (M,).
        delta1: (K,), pointwise criterion, loss units.
        value: (K, M, S), Delta_2^(D), or the criterion of order p; loss units to the power p.
        level, slope, curvature: (K, M, S), parts of Delta_2^(D), squared loss units.
        stderr, shape_stderr: (K, M, S), standard errors of ``value`` and ``shape`` over the fresh examples; zero for a
            single next example, where the closed form is exact.
        p: order of ``value``; the parts and the shape are those of the second.
    """

    ks: Tensor
    sigmas: Tensor
    dims: Tensor
    delta1: Tensor
    value: Tensor
    level: Tensor
    slope: Tensor
    curvature: Tensor
    stderr: Tensor
    shape_stderr: Tensor
    p: float = 2.0

    __repr__ = brief

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("ks", "sigmas", "dims", "delta1", "value", "stderr", "level", "slope", "curvature", "shape")
        return {name: getattr(self, name) for name in (*names, "shape_stderr", "p")}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> DecayCurve:
        """What :meth:`to_json` has written."""
        whole = {name: torch.tensor(record[name], device="cpu") for name in ("ks", "dims")}
        names = ("sigmas", "delta1", "value", "level", "slope", "curvature", "stderr", "shape_stderr")
        return cls(**whole, **{name: numbers(record[name]) for name in names}, p=record.get("p", 2.0))

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for every k, dimension and sigma."""
        import pandas

        grid = torch.cartesian_prod(*(torch.arange(len(at), device="cpu") for at in (self.ks, self.dims, self.sigmas)))
        k, dim, sigma = grid.view(-1, 3).unbind(1)
        names = ("value", "level", "slope", "curvature", "shape", "stderr", "shape_stderr")
        columns = {name: getattr(self, name)[k, dim, sigma].numpy() for name in names}
        at = {"k": self.ks[k].numpy(), "dim": self.dims[dim].numpy(), "sigma": self.sigmas[sigma].numpy()}
        return pandas.DataFrame({**at, "delta1": self.delta1[k].numpy(), **columns})

    @property
    def shape(self) -> Tensor:
        """Shape criterion, (K, M, S): the second moment without its level part."""
        return self.slope + self.curvature


def decay_curve(
    sample: ProjectedSample,
    ks: Sequence[int] | None = None,
    sigma: float | Sequence[float] = 1e-3,
    dims: Sequence[int] | None = None,
    *,
    fresh: ProjectedSample | None = None,
    p: float = 2.0,
) -> DecayCurve:
    r"""Delta_1 and Delta_2^(D) at every k, every D' <= D and any sigma, from one projection.

    .. math:: \Delta_2^{(D)}(k+1) = f^2 | \psi_{k+1} - \bar\psi_k |^2, \quad
        \psi_i = ( l_i + \sigma^2 \mathrm{tr} B_i / 2, \; \sigma c_i, \; \sigma^2 \mathrm{vec} B_i / \sqrt 2 )

    The solution and the subspace stay fixed while k grows.

    Args:
        sample: n examples in order.
        ks: sample sizes; None is every one. Of m examples that were drawn of k: up to m, and k itself.
        sigma: one or several standard deviations in parameter units.
        dims: dimensions D'; None is the sample's own D.
        fresh: examples outside the sample; each is tried as the next one and the criteria are averaged. None takes
            the sample's own example k + 1.
        p: order of the criterion, at least 1. Another than 2 takes an eigendecomposition for every k, dimension, sigma
            and candidate, and an integral where it is not even.

    Raises:
        ValueError: for a k, sigma or dimension out of range.

    Source: derived in docs/theory.md from the closed form of Kiselev & Grabovoy (2026), arXiv:2604.14870.

    Example:
        >>> import torch
        >>> from curvprobe.criteria.sample import ProjectedSample
        >>> sample = ProjectedSample(torch.arange(4.0), torch.ones(4), torch.zeros(4, 1), torch.zeros(4, 1, 1))
        >>> decay_curve(sample, ks=[1, 3], sigma=0.1).delta1
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    check_power(p)
    sigmas = _checked_sigmas(sigma)
    chosen_dims = [sample.dim] if dims is None else [int(d) for d in dims]
    if not chosen_dims or not all(1 <= d <= sample.dim for d in chosen_dims):
        raise ArgumentError(f"dims is {chosen_dims}; expected dimensions from 1 to {sample.dim}")
    last = len(sample) - (fresh is None)
    chosen_ks = list(range(1, last + 1)) if ks is None else [int(k) for k in ks]
    if fresh is None:
        increments = prefix_increments(sample, chosen_ks)
        parts, first = parts_by_dim_and_sigma(increments, chosen_dims, sigmas), increments.level.abs()
        value, stderr = _values(increments, parts, chosen_dims, sigmas, p), torch.zeros_like(parts[:2])
    else:
        rows = []
        for increments in fresh_increments(sample, fresh, chosen_ks):  # one k at a time bounds memory
            by_candidate = parts_by_dim_and_sigma(increments, chosen_dims, sigmas)
            values = _values(increments, by_candidate, chosen_dims, sigmas, p)
            both = torch.stack([values, by_candidate[1:].sum(0)])  # value and shape
            spread = both.std(1) if len(fresh) > 1 else torch.full_like(both[:, 0], math.nan)
            rows.append(
                (values.mean(0), by_candidate.mean(1), increments.level.abs().mean(), spread / math.sqrt(len(fresh)))
            )
        found, means, firsts, spreads = zip(*rows, strict=True)
        value, parts, first, stderr = (
            torch.stack(found),
            torch.stack(means, dim=1),
            torch.stack(firsts),
            _with_draw(torch.stack(spreads, dim=1), sample, fresh, chosen_ks, chosen_dims, sigmas),
        )
    at = (torch.as_tensor(chosen_ks, device="cpu"), sigmas, torch.as_tensor(chosen_dims, device="cpu"))
    level, slope, curvature = parts
    return DecayCurve(*at, first, value, level, slope, curvature, stderr[0], stderr[1], p)


def _with_draw(
    stderr: Tensor, sample: ProjectedSample, fresh: ProjectedSample, ks: list[int], dims: list[int], sigmas: Tensor
) -> Tensor:
    """Standard errors (2, K, M, S), at the whole sample with that of having drawn its examples."""
    if sample.design is None:
        return stderr
    of_draw = torch.stack(
        [
            torch.stack(
                [errors(draw_error(sample.truncate(dim), fresh.truncate(dim), sigma)) for sigma in sigmas], dim=1
            )
            for dim in dims
        ],
        dim=1,
    )
    whole = torch.tensor([k == sample.size for k in ks], device="cpu")[:, None, None]
    return torch.where(whole, torch.hypot(stderr, of_draw[:, None]), stderr)


def _checked_sigmas(sigma: float | Sequence[float]) -> Tensor:
    sigmas = torch.as_tensor(sigma, dtype=torch.float64, device="cpu").reshape(-1)
    if len(sigmas) == 0:
        raise ArgumentError("sigma is empty; expected at least one standard deviation")
    for value in sigmas:
        check_sigma(value)
    return sigmas


def _values(increments: QuadraticIncrement, parts: Tensor, dims: Sequence[int], sigmas: Tensor, p: float) -> Tensor:
    """The criterion of order p at every dimension and sigma, (..., M, S)."""
    if p == 2:
        return parts.sum(0)
    cells = [
        torch.stack([absolute_moments(increments.truncate(dim), sigma, p) for sigma in sigmas], dim=-1) for dim in dims
    ]
    return torch.stack(cells, dim=-2)


def parts_by_dim_and_sigma(increments: QuadraticIncrement, dims: Sequence[int], sigmas: Tensor) -> Tensor:
    """Level, slope and curvature parts of the moment at every dimension and sigma, (3, ..., M, S)."""
    cells = [
        torch.stack([torch.stack(moment_parts(increments.truncate(dim), sigma)) for sigma in sigmas], dim=-1)
        for dim in dims
    ]
    return torch.stack(cells, dim=-2)
