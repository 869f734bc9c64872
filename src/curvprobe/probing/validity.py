"""Where the quadratic model may be trusted: its error against the true loss over a grid of sigmas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curvprobe.criteria.draws import check_sigma, mirrored_normal
from curvprobe.criteria.estimators import independent
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.criteria.verdicts import QuadraticValidity, is_clear, verdict_of
from curvprobe.curvature.matrix import hessian
from curvprobe.errors import ArgumentError
from curvprobe.probing.joining import Joining
from curvprobe.risk.displaced import displaced_losses, in_blocks
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.runtime import progress
from curvprobe.subspace.projection import mean_projection, project
from curvprobe.subspace.spaces import Subspace

FIRST_DRAWS = 4
"""Two mirrored pairs: draws after which a sigma whose verdict is clear is left, in an analysis."""

Directions = Callable[[slice], Iterable[Tensor]]
"""Those of the draws in a range, (N,) each."""


def quadratic_validity(
    risk: EmpiricalRisk,
    sigmas: Sequence[float],
    *,
    subspace: Subspace | None = None,
    new: EmpiricalRisk | None = None,
    num_probes: int = 16,
    seed: int = 0,
    threshold: float = 0.05,
) -> QuadraticValidity:
    r"""Relative error of the quadratic model of the loss, and of the increment, over a grid of sigmas.

    .. math:: \mathrm{rms}_z \left[ \Delta L(z) - (c^T z + z^T B z / 2) \right] / \mathrm{rms}_z [ \Delta L(z) ]

    The same directions serve every sigma. At small sigma the error is that of rounding, at large sigma that of the
    third derivative; the validated regime lies between.

    Args:
        risk: on the k examples.
        sigmas: standard deviations to try, in parameter units.
        subspace: Gaussian directions in this subspace; None takes isotropic ones in all N parameters.
        new: examples that join one at a time; their increments are judged too.
        num_probes: directions, at least 2; every sigma is judged at all of them.
        seed: of the directions.
        threshold: relative error up to which the model is called valid (up to 4 times it: marginal).

    Raises:
        ValueError: for sigmas, draws or a threshold that make no sense.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
        >>> x = torch.linspace(-2, 2, 20, dtype=torch.float64)[:, None]
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, x.sin()))
        >>> cp.quadratic_validity(risk, [1e-4, 10.0]).verdicts
        ('valid', 'invalid')
    """
    expect_risk(risk)
    if subspace is not None:
        if new is not None:
            Joining(risk, new)
        return subspace_validity(
            risk,
            sigmas,
            subspace,
            mean_projection(risk, subspace),
            mirrored_normal(num_probes, subspace.dim, seed),
            new=new,
            fresh=None if new is None else project(new, subspace),
            threshold=threshold,
        )
    _check_grid(sigmas, num_probes, threshold)
    if new is not None:
        Joining(risk, new)  # refuses another model's
    generator = torch.Generator().manual_seed(seed)
    directions = torch.empty(risk.probed.held, num_probes, dtype=risk.dtype, device=risk.device)
    for column in directions.T:
        column.copy_(risk.probed.draw(generator))
    others = [] if new is None else [new[[i]] for i in range(len(new))]
    models = [_along(part, directions) for part in [risk, *others]]
    return _judge(risk, new, sigmas, num_probes, lambda rows: directions.T[rows], models, threshold)


def subspace_validity(
    risk: EmpiricalRisk,
    sigmas: Sequence[float],
    subspace: Subspace,
    mean: ProjectedSample,
    z: Tensor,
    *,
    new: EmpiricalRisk | None = None,
    fresh: ProjectedSample | None = None,
    threshold: float = 0.05,
    wanted: float | Literal["auto"] | None = None,
) -> QuadraticValidity:
    """:func:`quadratic_validity` from projections and draws at hand: ``mean`` of the risk, ``fresh`` of the new
    examples, and coordinates ``z`` (S, D) of standard deviation 1.

    Where a sigma is ``wanted`` ("auto" is the largest validated one), that one and the next above it are judged at all
    draws; of the others those whose verdict is clear from the first :data:`FIRST_DRAWS` are left at these.
    """
    _check_grid(sigmas, len(z), threshold)
    if new is not None:
        Joining(risk, new)  # refuses another model's
    projected = [mean] if fresh is None else [mean, *(fresh[i] for i in range(len(fresh)))]
    models = [_Along(part.gradient[0] @ z.T, torch.einsum("sd,de,se->s", z, part.hessian[0], z)) for part in projected]

    def directions(rows: slice) -> Iterator[Tensor]:
        for some in torch.split(z[rows], risk.budget.directions_held()):
            yield from subspace.at(some.T).T

    return _judge(risk, new, sigmas, len(z), directions, models, threshold, wanted)


def _check_grid(sigmas: Sequence[float], num_probes: int, threshold: float) -> None:
    for sigma in sigmas:
        check_sigma(sigma)
    if len(sigmas) == 0:
        raise ArgumentError("sigmas is empty; expected at least one standard deviation")
    if num_probes < 2:
        raise ArgumentError(f"num_probes is {num_probes}; expected at least 2")
    if not 0 < threshold < 1:
        raise ArgumentError(f"threshold is {threshold}; expected a relative error between 0 and 1")


@dataclass(frozen=True)
class _Along:
    """First and second derivative of a mean loss along S directions, (S,) each, or (m, S)."""

    slope: Tensor
    curvature: Tensor

    def at(self, sigma: float) -> Tensor:
        """The quadratic model of the change at ``sigma`` times the directions."""
        return sigma * self.slope + sigma**2 * self.curvature / 2


def _along(risk: EmpiricalRisk, directions: Tensor) -> _Along:
    inner = risk.probed.vectors.inner
    slope = inner(directions.T, risk.gradient()).cpu()
    products = hessian(risk) @ directions
    pairs = zip(directions.T, products.T, strict=True)
    return _Along(slope, torch.stack([inner(direction[None], product)[0] for direction, product in pairs]).cpu())


def _judge(
    risk: EmpiricalRisk,
    new: EmpiricalRisk | None,
    sigmas: Sequence[float],
    count: int,
    directions: Directions,
    models: list[_Along],
    threshold: float,
    wanted: float | Literal["auto"] | None = None,
) -> QuadraticValidity:
    """The models of the risk and of the new examples, in this order, against the true changes."""
    grid = sorted(float(s) for s in sigmas)
    model = _Along(*(torch.stack([getattr(one, part) for one in models]) for part in ("slope", "curvature")))
    few = count if wanted is None else min(FIRST_DRAWS, count)

    def measured(sigmas: list[float], rows: slice) -> list[Tensor]:
        return _true_changes(risk, new, sigmas, directions, rows)

    # The smallest by itself: points evaluated together are compared once with one alone, and far out both are rounding.
    changes = [*measured(grid[:1], slice(0, few)), *measured(grid[1:], slice(0, few))]
    while True:
        found = _found(risk, grid, changes, model, threshold)
        left = [] if wanted is None else [i for i in _unsettled(found, wanted) if found.num_probes[i] < count]
        if not left:
            return found
        for i, others in zip(left, measured([grid[i] for i in left], slice(few, count)), strict=True):
            changes[i] = torch.cat([changes[i], others], dim=1)


def _unsettled(found: QuadraticValidity, wanted: float | Literal["auto"]) -> list[int]:
    """Positions of the sigmas whose verdict a few draws leave open, and of those that the result depends on."""
    errors = found.error.tolist()
    at = found.validated_sigma if wanted == "auto" else wanted
    chosen = int(found.error.argmin() if at is None else (found.sigmas - at).abs().argmin())
    return [i for i, error in enumerate(errors) if i in (chosen, chosen + 1) or not is_clear(error, found.threshold)]


def _true_changes(
    risk: EmpiricalRisk, new: EmpiricalRisk | None, sigmas: list[float], directions: Directions, rows: slice
) -> list[Tensor]:
    """Changes (1 + m, S) of the risk and of the m new examples' losses, at each sigma times these directions."""
    risks = [risk] if new is None else [risk, new]
    count, parts = rows.stop - rows.start, []
    with progress.bar("validity of the quadratic model (draws)", len(sigmas) * count) as advance:
        for block in in_blocks((sigma * one for sigma in sigmas for one in directions(rows)), *risks):
            old = (displaced_losses(risk, block, finite=False) - risk.losses()) @ risk.shares
            fresh = [] if new is None else [(displaced_losses(new, block, finite=False) - new.losses()).T]
            parts.append(torch.cat([old[None], *fresh]))
            advance(len(block))
    return list(torch.split(torch.cat(parts, dim=1), count, dim=1)) if parts else []


def _found(
    risk: EmpiricalRisk, grid: list[float], changes: list[Tensor], model: _Along, threshold: float
) -> QuadraticValidity:
    """What changes (1 + m, S) at every sigma say of the model."""
    rows = []
    for sigma, true in zip(grid, changes, strict=True):
        guess = model.at(sigma)[:, : true.shape[1]]
        loss_error = _relative(true[0], guess[0])
        if len(true) > 1:  # the factor f is common to both and drops out of the ratio
            true, guess = true[1:] - true[0], guess[1:] - guess[0]
        change = true.square().mean().sqrt()
        rows.append(torch.stack([loss_error, _relative(true, guess), _stderr(true.T, guess.T), change]))
    loss_error, error, stderr, change = torch.stack(rows, dim=1)
    joined = len(changes[0]) > 1
    return QuadraticValidity(
        sigmas=torch.tensor(grid, dtype=torch.float64, device="cpu"),
        loss_error=loss_error,
        increment_error=error if joined else None,
        threshold=threshold,
        verdicts=tuple(verdict_of(one, threshold) for one in error.tolist()),
        num_probes=torch.tensor([true.shape[1] for true in changes], device="cpu"),
        stderr=stderr,
        change=change.nan_to_num(nan=torch.inf),
        loss=float(risk.losses() @ risk.shares),
    )


def _relative(true: Tensor, predicted: Tensor) -> Tensor:
    error = (true - predicted).square().mean().sqrt() / true.square().mean().sqrt()
    return error.nan_to_num(nan=torch.inf)


def _stderr(true: Tensor, predicted: Tensor) -> Tensor:
    """Standard error of the relative error of (S, m) values, over the S draws; mirror images are one draw."""
    off, size = (independent(part.square().mean(1)) for part in (true - predicted, true))
    ratio = _relative(true, predicted)
    relative = off / off.mean() - size / size.mean()  # to first order, of the squared ratio
    return (ratio / 2 * relative.std() / math.sqrt(len(relative))).nan_to_num(nan=0.0 if ratio == 0 else math.inf)
