"""The true loss increment at the draws of a probing law: direct and controlled Monte Carlo, and the closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from curvprobe.criteria.estimators import Estimate, check_draws, control, corrected, gaussian_moment, summarise
from curvprobe.criteria.increment import QuadraticIncrement, increment
from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.probing.full_space import full_space_moment, quadratic_model_at
from curvprobe.probing.joining import Joining
from curvprobe.probing.laws import FullSpaceLaw, Probe, SubspaceLaw, form_of
from curvprobe.risk.displaced import in_blocks
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.runtime import progress
from curvprobe.runtime.memory import freed_memory_kept
from curvprobe.subspace.projection import mean_projection
from curvprobe.subspace.spaces import Subspace


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
    joining = Joining(risk, new)
    if form_of(law) == "point":
        return Estimate(abs(joining.increment_at()) ** p, 0.0, p=p, shape=0.0)
    true = probe_increments(joining, law, num_probes, seed)
    return summarise(true, p, antithetic=getattr(law, "antithetic", False))


def controlled_monte_carlo(
    risk: EmpiricalRisk,
    new: EmpiricalRisk,
    law: Probe,
    *,
    num_probes: int = 64,
    seed: int = 0,
    p: float = 2.0,
) -> Estimate:
    r"""Moment of the true loss increment, with its quadratic model as control variate on the same draws.

    .. math:: GM_p + \frac1S \sum_s (|\Delta_s|^p - |\hat\Delta_s|^p)

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
        p: power, at least 1; a law in all parameters has a closed form for 2 only.

    Raises:
        TypeError: for a law that is not Gaussian.
        ValueError: for another p than 2 in all parameters.

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
    check_draws(num_probes, p)
    joining = Joining(risk, new)
    match form_of(law):
        case "full space":
            wide = cast(FullSpaceLaw, law)
            _second_only(p)
            moment = full_space_moment(risk, new, sigma=wide.deviation(risk), num_probes=num_probes, seed=seed + 1)
            surrogate = quadratic_model_at(joining, law.displacements(risk, num_probes, seed), num_probes)
            return corrected(moment, probe_increments(joining, law, num_probes, seed), surrogate)
        case "subspace":
            narrow = cast(SubspaceLaw, law)
            model = quadratic_increment(joining, narrow.subspace)
            moment = gaussian_moment(model, sigma=narrow.scale, p=p)
            true = probe_increments(joining, law, num_probes, seed)
            return control(moment, model, true, narrow.coordinates(num_probes, seed))
    raise ArgumentTypeError(f"the law is a {type(law).__name__}, which is not Gaussian; use direct_monte_carlo")


def closed_form(
    risk: EmpiricalRisk, new: EmpiricalRisk, law: Probe, *, num_probes: int = 16, seed: int = 0, p: float = 2.0
) -> Estimate:
    """Moment of the quadratic model of the increment under any Gaussian law, without draws of the loss.

    Args:
        risk: on the k examples.
        new: on the examples that join.
        law: Gaussian: :class:`SubspaceProbe` and :class:`LaplaceProbe` give the exact moment, :class:`IsotropicProbe`
            and :class:`NormalizedProbe` one from stochastic traces, with its standard error.
        num_probes: Hessian products for the traces, where these are needed.
        seed: of the traces.
        p: power, at least 1; a law in all parameters has a closed form for 2 only.

    Raises:
        TypeError: for a law that is not Gaussian.
        ValueError: for another p than 2 in all parameters.

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
    expect_risk(risk)
    match form_of(law):
        case "point":
            return direct_monte_carlo(risk, new, law, p=p)
        case "full space":
            _second_only(p)
            deviation = cast(FullSpaceLaw, law).deviation(risk)
            return full_space_moment(risk, new, sigma=deviation, num_probes=num_probes, seed=seed)
        case "subspace":
            narrow = cast(SubspaceLaw, law)
            return gaussian_moment(quadratic_increment(Joining(risk, new), narrow.subspace), sigma=narrow.scale, p=p)
    raise ArgumentTypeError(f"the law is a {type(law).__name__}, which has no closed form; use direct_monte_carlo")


def _second_only(p: float) -> None:
    if p != 2:
        raise ArgumentError(
            f"p is {p!r}; in all parameters the closed form is known for p = 2 only: take direct_monte_carlo, or a law "
            "in a subspace"
        )


def quadratic_increment(joining: Joining, subspace: Subspace) -> QuadraticIncrement:
    """The quadratic model of the increment in a subspace: D Hessian-vector products on the new examples alone, plus
    as many on the sample where its projected Hessian is not known from the eigenvalues."""
    return increment(mean_projection(joining.risk, subspace), mean_projection(joining.new, subspace))


def probe_increments(joining: Joining, law: Probe, num_probes: int, seed: int) -> Tensor:
    """True increments at the law's draws when all new examples join at once, float64 (S,)."""
    return _at_draws(joining.increments, joining, law, num_probes, seed)


def candidate_increments(joining: Joining, law: Probe, num_probes: int, seed: int) -> Tensor:
    """True increments at the law's draws when each of the m new examples joins alone, float64 (S, m)."""
    return _at_draws(joining.single_increments, joining, law, num_probes, seed)


def _at_draws(look: Callable[[Tensor], Tensor], joining: Joining, law: Probe, num_probes: int, seed: int) -> Tensor:
    """What ``look`` tells of blocks of displacements (b, N), at all of the law's draws."""
    form_of(law)  # refuses what is no law
    found = []
    with freed_memory_kept(), progress.bar("Monte Carlo (draws)", num_probes) as advance:
        for block in in_blocks(law.displacements(joining.risk, num_probes, seed), joining.risk, joining.new):
            found.append(look(block))
            advance(len(block))
    return torch.cat(found)
