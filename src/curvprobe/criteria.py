"""The stabilisation criteria, at one sample size and along the whole decay curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe.estimators import Estimate, gaussian_moment, moment_parts
from curvprobe.increment import QuadraticIncrement, fresh_increments, prefix_increments
from curvprobe.monte_carlo import direct_monte_carlo, quadratic_increment
from curvprobe.probes import IsotropicProbe, PointProbe, SubspaceProbe, check_sigma
from curvprobe.projection import ProjectedSample
from curvprobe.risk import EmpiricalRisk
from curvprobe.subspace import Subspace


def delta1(risk: EmpiricalRisk, new: EmpiricalRisk) -> Estimate:
    r"""Pointwise criterion at the solution.

    .. math:: \Delta_1 = | L_{k+1}(w^*) - L_k(w^*) |

    Args:
        risk: on the k examples.
        new: on the example(s) that join.

    Returns:
        Value in loss units; exact.

    Source: Kiselev & Grabovoy (2026), arXiv:2604.14870.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0]]), torch.zeros(1, 1)))
        >>> cp.delta1(risk, risk.on((torch.tensor([[3.0]]), torch.zeros(1, 1)))).value
        4.0
    """
    return direct_monte_carlo(risk, new, PointProbe(), p=1.0)


def delta2(risk: EmpiricalRisk, new: EmpiricalRisk, *, sigma: float, num_probes: int = 64, seed: int = 0) -> Estimate:
    r"""Isotropic criterion, by Monte Carlo on the true loss.

    .. math:: \Delta_2 = E | L_{k+1}(w) - L_k(w) |^2, \quad w \sim N(w^*, \sigma^2 I_N)

    Args:
        risk: on the k examples.
        new: on the example(s) that join.
        sigma: standard deviation of every parameter.
        num_probes: draws, at least 2.
        seed: of the draws.

    Returns:
        Value in squared loss units, with its standard error.

    Source: Kiselev & Grabovoy (2026), arXiv:2604.14870.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0]]), torch.zeros(1, 1)))
        >>> new = risk.on((torch.tensor([[3.0]]), torch.zeros(1, 1)))
        >>> estimate = cp.delta2(risk, new, sigma=1e-3)
        >>> round(estimate.value, 3), estimate.stderr < 1e-3
        (16.0, True)
    """
    return direct_monte_carlo(risk, new, IsotropicProbe(sigma), num_probes=num_probes, seed=seed)


def delta2_subspace(risk: EmpiricalRisk, new: EmpiricalRisk, subspace: Subspace, *, sigma: float | Tensor) -> Estimate:
    r"""Curvature-aligned criterion, in closed form on the quadratic model.

    .. math:: \Delta_2^{(D)} = E | L_{k+1}(w^* + U z) - L_k(w^* + U z) |^2, \quad z \sim N(0, \sigma^2 I_D)

    For the true loss instead of its quadratic model use :func:`curvprobe.controlled_monte_carlo`.

    Args:
        risk: on the k examples.
        new: on the example(s) that join.
        subspace: U; the paper takes the top-D Hessian eigenspace of ``risk``.
        sigma: standard deviation in parameter units, scalar or (D,).

    Returns:
        Value in squared loss units with its level, slope and curvature parts.

    Source: Kiselev & Grabovoy (2026), arXiv:2604.14870.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0]]), torch.zeros(1, 1)))
        >>> new = risk.on((torch.tensor([[3.0]]), torch.zeros(1, 1)))
        >>> round(cp.delta2_subspace(risk, new, cp.top_eigenspace(risk, dim=1), sigma=0.5).value, 4)
        43.0
    """
    return gaussian_moment(quadratic_increment(risk, new, SubspaceProbe(subspace, sigma)), sigma=sigma)


@dataclass(frozen=True, eq=False)
class DecayCurve:
    """Criteria of the quadratic model at many k, sigmas and dimensions, float64.

    Attributes:
        ks: int (K,), sample sizes; the next example is the (k+1)-th.
        sigmas: (S,).
        dims: int (M,).
        delta1: (K,), pointwise criterion, loss units.
        level, slope, curvature: (K, M, S), parts of Delta_2^(D), squared loss units.
        stderr, shape_stderr: (K, M, S), standard errors of ``value`` and ``shape`` over the fresh examples; zero for a
            single next example, where the closed form is exact.
    """

    ks: Tensor
    sigmas: Tensor
    dims: Tensor
    delta1: Tensor
    level: Tensor
    slope: Tensor
    curvature: Tensor
    stderr: Tensor
    shape_stderr: Tensor

    @property
    def value(self) -> Tensor:
        """Delta_2^(D), (K, M, S)."""
        return self.level + self.slope + self.curvature

    @property
    def shape(self) -> Tensor:
        """Shape criterion, (K, M, S): the value without its level part."""
        return self.slope + self.curvature


def decay_curve(
    sample: ProjectedSample,
    ks: Sequence[int] | None = None,
    sigma: float | Sequence[float] = 1e-3,
    dims: Sequence[int] | None = None,
    *,
    fresh: ProjectedSample | None = None,
) -> DecayCurve:
    r"""Delta_1 and Delta_2^(D) at every k, every D' <= D and any sigma, from one projection.

    .. math:: \Delta_2^{(D)}(k+1) = f^2 | \psi_{k+1} - \bar\psi_k |^2, \quad
        \psi_i = ( l_i + \sigma^2 \mathrm{tr} B_i / 2, \; \sigma c_i, \; \sigma^2 \mathrm{vec} B_i / \sqrt 2 )

    The solution and the subspace stay fixed while k grows.

    Args:
        sample: n examples in order.
        ks: sample sizes; None is every one.
        sigma: one or several standard deviations in parameter units.
        dims: dimensions D'; None is the sample's own D.
        fresh: examples outside the sample; each is tried as the next one and the criteria are averaged. None takes
            the sample's own example k + 1.

    Raises:
        ValueError: for a k, sigma or dimension out of range.

    Source: derived in docs/theory.md from the closed form of Kiselev & Grabovoy (2026), arXiv:2604.14870.

    Example:
        >>> import torch
        >>> from curvprobe.projection import ProjectedSample
        >>> sample = ProjectedSample(torch.arange(4.0), torch.ones(4), torch.zeros(4, 1), torch.zeros(4, 1, 1))
        >>> decay_curve(sample, ks=[1, 3], sigma=0.1).delta1
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    sigmas = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1)
    if len(sigmas) == 0:
        raise ValueError("sigma is empty; expected at least one standard deviation")
    for value in sigmas:
        check_sigma(value)
    chosen_dims = [sample.dim] if dims is None else [int(d) for d in dims]
    if not chosen_dims or not all(1 <= d <= sample.dim for d in chosen_dims):
        raise ValueError(f"dims is {chosen_dims}; expected dimensions from 1 to {sample.dim}")
    last = len(sample) - (fresh is None)
    chosen_ks = list(range(1, last + 1)) if ks is None else [int(k) for k in ks]

    def parts_of(increments: QuadraticIncrement) -> Tensor:
        """Level, slope and curvature parts at every dimension and sigma, (3, ..., M, S)."""
        cells = [
            torch.stack([torch.stack(moment_parts(increments.truncate(d), value)) for value in sigmas], dim=-1)
            for d in chosen_dims
        ]
        return torch.stack(cells, dim=-2)

    if fresh is None:
        increments = prefix_increments(sample, chosen_ks)
        parts, first = parts_of(increments), increments.level.abs()
        stderr = torch.zeros_like(parts[:2])
    else:
        rows = []
        for increments in fresh_increments(sample, fresh, chosen_ks):  # one k at a time bounds memory
            by_candidate = parts_of(increments)
            both = torch.stack([by_candidate.sum(0), by_candidate[1:].sum(0)])  # value and shape
            spread = both.std(1) if len(fresh) > 1 else torch.full_like(both[:, 0], math.nan)
            rows.append((by_candidate.mean(1), increments.level.abs().mean(), spread / math.sqrt(len(fresh))))
        means, firsts, errors = zip(*rows, strict=True)
        parts, first, stderr = torch.stack(means, dim=1), torch.stack(firsts), torch.stack(errors, dim=1)
    return DecayCurve(torch.as_tensor(chosen_ks), sigmas, torch.as_tensor(chosen_dims), first, *parts, *stderr)
