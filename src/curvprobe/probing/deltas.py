"""The stabilisation criteria, at one sample size and along the whole decay curve."""

from __future__ import annotations

from torch import Tensor

from curvprobe.criteria.estimators import Estimate
from curvprobe.probing.laws import IsotropicProbe, PointProbe, SubspaceProbe
from curvprobe.probing.monte_carlo import closed_form, direct_monte_carlo
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.subspace.spaces import Subspace


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
    return closed_form(risk, new, SubspaceProbe(subspace, sigma))
