"""The true loss increment at the draws of a probing law: direct and controlled Monte Carlo, and the closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from curvprobe import progress
from curvprobe.displaced import displaced_losses, in_blocks
from curvprobe.estimators import Estimate, check_draws, control, corrected, gaussian_moment, summarise
from curvprobe.full_space import full_space_moment, quadratic_model_at
from curvprobe.increment import QuadraticIncrement, increment
from curvprobe.memory import freed_memory_kept
from curvprobe.probes import FullSpaceLaw, PointProbe, Probe, SubspaceLaw
from curvprobe.projection import mean_projection
from curvprobe.risk import EmpiricalRisk


def direct_monte_carlo(
    risk: EmpiricalRisk, new: EmpiricalRisk, law: Probe, *, num_probes: int = 64, seed: int = 0, p: float = 2.0
) -> Estimate:
    r"""Monte-Carlo moment of the true loss increment when ``new`` joins the sample of ``risk``.

    .. math:: \frac1S \sum_s | f (\bar l_{new}(w_s) - L_k(w_s)) |^p, \quad w_s \sim q

    One forward pass per example and draw, by the exact identity.

    Args:
        risk: on the k examples.
        new: on the examples that join, of the same model (``risk.on(data)``).
        law: a probing law.
        num_probes: draws S, at least 2; an even number from 4 on comes in pairs of mirror images.
        seed: of the draws.
        p: power, at least 1.

    Raises:
        ValueError: for sizes that make no sense, or a loss that is not finite at a probe.

    Source: Kiselev & Grabovoy (2026), arXiv:2604.14870; any p and law.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0]]), torch.zeros(1, 1)))
        >>> new = risk.on((torch.tensor([[3.0]]), torch.zeros(1, 1)))
        >>> cp.direct_monte_carlo(risk, new, cp.PointProbe()).value
        16.0
    """
    check_draws(num_probes, p)
    if isinstance(law, PointProbe):
        level = increment_at(risk, new, None)
        return Estimate(abs(level) ** p, 0.0, p=p, shape=0.0)
    true = probe_increments(risk, new, law, num_probes, seed)
    return summarise(true, p, antithetic=getattr(law, "antithetic", False))


def controlled_monte_carlo(
    risk: EmpiricalRisk,
    new: EmpiricalRisk,
    law: SubspaceLaw | FullSpaceLaw,
    *,
    num_probes: int = 64,
    seed: int = 0,
) -> Estimate:
    r"""Second moment of the true loss increment, with its quadratic model as control variate on the same draws.

    .. math:: GM + \frac1S \sum_s (\Delta_s^2 - \hat\Delta_s^2)

    Unbiased for the true criterion, with a variance that is smaller than direct Monte Carlo's by orders of magnitude
    where the quadratic model is good; where it is invalid, compare the standard errors. ``value - GM`` with the
    standard error measures how wrong the model is.

    Args:
        risk: on the k examples.
        new: on the examples that join.
        law: Gaussian: in a subspace (:class:`SubspaceProbe`, :class:`LaplaceProbe`), where the closed form is exact for
            the model; or in all parameters (:class:`IsotropicProbe`, :class:`NormalizedProbe`), where it is that of
            :func:`full_space_moment`, from as many products more, and its standard error is in the result's. A law of
            your own counts if it has ``subspace``, ``scale`` and ``coordinates``, or ``deviation``.
        num_probes: draws S, at least 2; an even number from 4 on comes in pairs of mirror images.
        seed: of the draws, the same as direct Monte Carlo's.

    Raises:
        TypeError: for a law that is not Gaussian.

    Source: control variates; the surrogate is that of :func:`gaussian_moment`.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0]]), torch.zeros(1, 1)))
        >>> new = risk.on((torch.tensor([[3.0]]), torch.zeros(1, 1)))
        >>> law = cp.SubspaceProbe(cp.Subspace.from_basis(torch.eye(1)), sigma=0.5)
        >>> estimate = cp.controlled_monte_carlo(risk, new, law, num_probes=8)
        >>> round(estimate.value, 4), estimate.stderr < 1e-5   # 16 E (1 + z)^4, the loss being quadratic
        (43.0, True)
    """
    check_draws(num_probes)
    if isinstance(law, FullSpaceLaw):
        moment = full_space_moment(risk, new, sigma=law.deviation(risk), num_probes=num_probes, seed=seed + 1)
        surrogate = quadratic_model_at(risk, new, law.displacements(risk, num_probes, seed), num_probes)
        return corrected(moment, probe_increments(risk, new, law, num_probes, seed), surrogate)
    if not isinstance(law, SubspaceLaw):
        raise TypeError(f"the law is a {type(law).__name__}, which is not Gaussian; use direct_monte_carlo")
    model = quadratic_increment(risk, new, law)
    moment = gaussian_moment(model, sigma=law.scale)
    true = probe_increments(risk, new, law, num_probes, seed)
    return control(moment, model, true, law.coordinates(num_probes, seed))


def closed_form(
    risk: EmpiricalRisk, new: EmpiricalRisk, law: Probe, *, num_probes: int = 16, seed: int = 0
) -> Estimate:
    """Second moment of the quadratic model of the increment under any Gaussian law, without draws of the loss.

    Args:
        risk: on the k examples.
        new: on the examples that join.
        law: Gaussian: :class:`SubspaceProbe` and :class:`LaplaceProbe` give the exact moment, :class:`IsotropicProbe`
            and :class:`NormalizedProbe` one from stochastic traces, with its standard error.
        num_probes: Hessian products for the traces, where these are needed.
        seed: of the traces.

    Raises:
        TypeError: for a law that is not Gaussian.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0]]), torch.zeros(1, 1)))
        >>> new = risk.on((torch.tensor([[3.0]]), torch.zeros(1, 1)))
        >>> law = cp.SubspaceProbe(cp.Subspace.from_basis(torch.eye(1)), sigma=0.5)
        >>> [round(cp.closed_form(risk, new, one).value, 4) for one in (law, cp.IsotropicProbe(0.5))]
        [43.0, 43.0]
    """
    if isinstance(law, PointProbe):
        return direct_monte_carlo(risk, new, law)
    if isinstance(law, FullSpaceLaw):
        return full_space_moment(risk, new, sigma=law.deviation(risk), num_probes=num_probes, seed=seed)
    if isinstance(law, SubspaceLaw):
        return gaussian_moment(quadratic_increment(risk, new, law), sigma=law.scale)
    raise TypeError(f"the law is a {type(law).__name__}, which has no closed form; use direct_monte_carlo")


def quadratic_increment(risk: EmpiricalRisk, new: EmpiricalRisk, law: SubspaceLaw) -> QuadraticIncrement:
    """The quadratic model of the increment in the law's subspace: D Hessian-vector products on ``new`` alone, plus
    as many on ``risk`` where its projected Hessian is not known from the eigenvalues."""
    return increment(mean_projection(risk, law.subspace), mean_projection(new, law.subspace))


def increment_at(risk: EmpiricalRisk, new: EmpiricalRisk, displacement: Tensor | None) -> float:
    """The true increment at ``w* + displacement``, by the exact identity, in float64."""
    risk.check_same_model(new)
    factor = new.total_weight / (risk.total_weight + new.total_weight)
    return factor * (new.value(displacement) - risk.value(displacement))


def probe_increments(risk: EmpiricalRisk, new: EmpiricalRisk, law: Probe, num_probes: int, seed: int) -> Tensor:
    """True increments at the law's draws when all examples of ``new`` join at once, float64 (S,)."""
    factor, share = new.total_weight / (risk.total_weight + new.total_weight), new.weights / new.total_weight
    values, losses = _at_draws(risk, new, law, num_probes, seed)
    return factor * (losses @ share - values)


def candidate_increments(
    risk: EmpiricalRisk, candidates: EmpiricalRisk, law: Probe, num_probes: int, seed: int
) -> Tensor:
    """True increments at the law's draws when each of m candidates joins alone, float64 (S, m)."""
    factor = candidates.weights / (risk.total_weight + candidates.weights)
    values, losses = _at_draws(risk, candidates, law, num_probes, seed)
    return factor * (losses - values[:, None])


def _at_draws(risk: EmpiricalRisk, new: EmpiricalRisk, law: Probe, num_probes: int, seed: int) -> tuple[Tensor, Tensor]:
    """The risk (S,), and the losses (S, m) of the m examples of ``new``, at the law's draws."""
    if not isinstance(law, Probe):
        raise TypeError(f"the law is a {type(law).__name__}; expected a probing law such as SubspaceProbe(U, sigma)")
    risk.check_same_model(new)
    share = risk.weights / risk.total_weight
    values, losses = [], []
    with freed_memory_kept(), progress.bar("Monte Carlo (draws)", num_probes) as advance:
        for block in in_blocks(risk, law.displacements(risk, num_probes, seed)):
            values.append(displaced_losses(risk, block) @ share)
            losses.append(displaced_losses(new, block))
            advance(len(block))
    return torch.cat(values), torch.cat(losses)
