"""Where the quadratic model may be trusted: its error against the true loss over a grid of sigmas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curvprobe import progress
from curvprobe.curvature import hessian
from curvprobe.displaced import displaced_losses, in_blocks
from curvprobe.estimators import independent
from curvprobe.linalg import inner
from curvprobe.probes import check_sigma, mirrored_normal
from curvprobe.projection import ProjectedSample, mean_projection, project
from curvprobe.risk import EmpiricalRisk
from curvprobe.subspace import Subspace

Verdict = Literal["valid", "marginal", "invalid"]

MARGINAL = 4.0
"""A model whose error is up to this many times the threshold is called marginal rather than invalid."""


@dataclass(frozen=True, eq=False)
class QuadraticValidity:
    """Relative error of the quadratic model over a grid of sigmas.

    Attributes:
        sigmas: (S,), ascending.
        loss_error: (S,), root-mean-square error of the model of ``L_k(w* + d) - L_k(w*)`` over that of the change
            itself.
        increment_error: (S,), the same for the increment's change ``Delta(w* + d) - Delta(w*)``, pooled over the new
            examples; None without any. The criteria rest on this one.
        threshold: error up to which the model is called valid.
        verdicts: one per sigma, by ``increment_error`` if there is one, else by ``loss_error``.
        num_probes: draws behind every number.
        stderr: (S,), standard error of the error that the verdicts go by, over the draws.
        change: (S,), root mean square of what the errors are relative to: the true change.
        loss: of the risk at the solution.
    """

    sigmas: Tensor
    loss_error: Tensor
    increment_error: Tensor | None
    threshold: float
    verdicts: tuple[Verdict, ...]
    num_probes: int
    stderr: Tensor
    change: Tensor
    loss: float

    @property
    def error(self) -> Tensor:
        """The error that the verdicts go by, (S,)."""
        return self.loss_error if self.increment_error is None else self.increment_error

    @property
    def validated_sigma(self) -> float | None:
        """The largest sigma up to which the model is valid without a gap from where it is best; None if nowhere."""
        best = int(self.error.nan_to_num(nan=torch.inf).argmin())
        if self.verdicts[best] != "valid":
            return None
        last = best
        while last + 1 < len(self.verdicts) and self.verdicts[last + 1] == "valid":
            last += 1
        return float(self.sigmas[last])

    @property
    def precision_floor(self) -> float | None:
        """The smallest sigma of the validated regime, where smaller ones of the grid fail by rounding; None else."""
        best = int(self.error.nan_to_num(nan=torch.inf).argmin())
        first = best
        while first > 0 and self.verdicts[first - 1] == "valid":
            first -= 1
        return float(self.sigmas[first]) if first > 0 and self.verdicts[best] == "valid" else None

    def rounding_floor(self, dtype: torch.dtype) -> float | None:
        """The sigma from which on the change is so large that losses rounded to ``dtype`` would show it.

        The roundoff of a loss of this size is then within the threshold of the change. None if that is nowhere.
        """
        seen = self.threshold * self.change >= torch.finfo(dtype).eps / 2 * abs(self.loss)
        hidden = int((~seen).nonzero().max()) + 1 if not bool(seen.all()) else 0
        return float(self.sigmas[hidden]) if hidden < len(self.sigmas) else None

    def error_at(self, sigma: float) -> float:
        """The error that the verdict goes by at the grid's sigma nearest to this one."""
        return float(self.error[(self.sigmas - sigma).abs().argmin()])

    def stderr_at(self, sigma: float) -> float:
        """Its standard error there."""
        return float(self.stderr[(self.sigmas - sigma).abs().argmin()])

    def verdict(self, sigma: float) -> Verdict:
        """The verdict at the grid's nearest sigma that is not smaller; beyond the grid, "invalid"."""
        above = (self.sigmas >= sigma * (1 - 1e-9)).nonzero().flatten()
        return self.verdicts[int(above[0])] if len(above) else "invalid"


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
        num_probes: directions, at least 2.
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
    _check_grid(sigmas, num_probes, threshold)
    if subspace is not None:
        sample = None if new is None else project(new, subspace)
        return subspace_validity(
            risk,
            sigmas,
            subspace,
            mean_projection(risk, subspace),
            mirrored_normal(num_probes, subspace.dim, seed),
            new=new,
            fresh=sample,
            threshold=threshold,
        )
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(risk.num_params, num_probes, generator=generator, dtype=risk.dtype).to(risk.device)
    others = [] if new is None else [new[[i]] for i in range(len(new))]
    models = [_along(part, directions) for part in [risk, *others]]
    return _judge(risk, sigmas, directions, models[0], new, models[1:], threshold)


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
) -> QuadraticValidity:
    """:func:`quadratic_validity` from projections and draws at hand: ``mean`` of the risk, ``fresh`` of the new
    examples, and coordinates ``z`` (S, D) of standard deviation 1."""
    _check_grid(sigmas, len(z), threshold)
    directions = subspace.basis @ z.T.to(dtype=subspace.basis.dtype, device=subspace.basis.device)
    projected = [mean] if fresh is None else [mean, *(fresh[i] for i in range(len(fresh)))]
    models = [(part.gradient[0] @ z.T, torch.einsum("sd,de,se->s", z, part.hessian[0], z)) for part in projected]
    return _judge(risk, sigmas, directions, models[0], new, models[1:], threshold)


def _check_grid(sigmas: Sequence[float], num_probes: int, threshold: float) -> None:
    for sigma in sigmas:
        check_sigma(sigma)
    if len(sigmas) == 0:
        raise ValueError("sigmas is empty; expected at least one standard deviation")
    if num_probes < 2:
        raise ValueError(f"num_probes is {num_probes}; expected at least 2")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; expected a relative error between 0 and 1")


def _along(risk: EmpiricalRisk, directions: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative of the risk along each direction, (S,) each."""
    slope = inner(directions.T, risk.gradient()).cpu()
    products = hessian(risk) @ directions
    bent = torch.stack([inner(d[None], p)[0] for d, p in zip(directions.T, products.T, strict=True)]).cpu()
    return slope, bent


def _judge(
    risk: EmpiricalRisk,
    sigmas: Sequence[float],
    directions: Tensor,
    model: tuple[Tensor, Tensor],
    new: EmpiricalRisk | None,
    new_models: list[tuple[Tensor, Tensor]],
    threshold: float,
) -> QuadraticValidity:
    grid = torch.as_tensor(sorted(float(s) for s in sigmas), dtype=torch.float64)
    count = directions.shape[1]
    share = risk.weights / risk.weights.sum()
    loss_errors, increment_errors, changes, errors = [], [], [], []
    with progress.bar("validity of the quadratic model (draws)", len(grid) * count) as advance:
        for sigma in grid.tolist():
            true, new_true = [], []
            for block in in_blocks(risk, (sigma * direction for direction in directions.T)):
                true.append((displaced_losses(risk, block, finite=False) - risk.losses()) @ share)
                if new is not None:
                    new_true.append(displaced_losses(new, block, finite=False) - new.losses())
                advance(len(block))
            predicted = sigma * model[0] + sigma**2 * model[1] / 2
            old = torch.cat(true)
            loss_errors.append(_relative(old, predicted))
            if new is None:
                changes.append(old.square().mean().sqrt())
                errors.append(_stderr(old[:, None], predicted[:, None]))
            else:
                slopes, bends = (torch.stack([pair[part] for pair in new_models]) for part in (0, 1))
                new_predicted = sigma * slopes + sigma**2 * bends / 2
                # The factor f is common to both and drops out of the ratio.
                moved = torch.cat(new_true).T - old
                increment_errors.append(_relative(moved, new_predicted - predicted))
                changes.append(moved.square().mean().sqrt())
                errors.append(_stderr(moved.T, (new_predicted - predicted).T))
    loss_error = torch.stack(loss_errors)
    increment_error = torch.stack(increment_errors) if increment_errors else None
    judged = loss_error if increment_error is None else increment_error
    verdicts = tuple(_verdict(float(error), threshold) for error in judged)
    change = torch.stack(changes).nan_to_num(nan=torch.inf)
    return QuadraticValidity(
        grid,
        loss_error,
        increment_error,
        threshold,
        verdicts,
        count,
        torch.stack(errors),
        change,
        float(risk.losses() @ share),
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


def _verdict(error: float, threshold: float) -> Verdict:
    if error <= threshold:
        return "valid"
    return "marginal" if error <= MARGINAL * threshold else "invalid"
