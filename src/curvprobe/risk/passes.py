"""Passes over a sample, forward and backward: of this process alone, or each of its own examples."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from curvprobe.errors import NotFiniteError
from curvprobe.numerics.linalg import all_finite
from curvprobe.risk.contract import check_finite, check_weights
from curvprobe.runtime.memory import ran_out

if TYPE_CHECKING:
    from curvprobe.risk.empirical import EmpiricalRisk


T = TypeVar("T")


def on_own_examples(risk: EmpiricalRisk) -> AbstractContextManager[None]:
    """A block of work of this process's own on its examples: where it fails in one process, it fails in all."""
    if risk.probed.divided is not None:  # there are exchanges on the way
        return risk.ranks.told()
    first = risk.ranks.share(len(risk)).start
    return risk.ranks.together(f", counting from example {first} on" if first else "")


def over_examples(risk: EmpiricalRisk, *shape: int, work: Callable[[EmpiricalRisk], Tensor]) -> Tensor:
    """Rows (n, *shape), float64, which ``work`` makes of the examples: each process of its own, then all have them."""
    if not risk.ranks.several:
        return work(risk)
    with on_own_examples(risk):
        own = risk.own
        rows = torch.zeros(0, *shape, dtype=torch.float64, device="cpu") if own is None else work(own)
    held = risk.ranks.share(len(risk))
    return risk.ranks.whole(rows[: held.stop - held.start], len(risk), "what is found of examples")


def as_memory_allows(risk: EmpiricalRisk, work: Callable[[], T]) -> T:
    """What ``work`` on the risk's microbatches gives; done again with half as many examples at once where memory runs
    out, as on a machine that others use too."""
    if risk.probed.divided is not None:  # all processes keep one pace
        return work()
    while True:
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error) or min(len(risk), risk.microbatch_size) == 1:
                raise
        _halve(risk)  # here, where the error no longer holds what the work had taken


def _halve(risk: EmpiricalRisk) -> None:
    most = min(len(risk), risk.microbatch_size)
    risk.microbatch_size = most // 2
    said = f"memory ran out with {most} examples in one pass; {most // 2} at a time were taken from then on"
    risk.probed.passed["memory"] = said
    warnings.warn(said, stacklevel=2)


def forward_pass(risk: EmpiricalRisk, displacement: Tensor | None, *, finite: bool) -> tuple[Tensor, Tensor]:
    """Losses and weights of all examples at ``w* + displacement``, float64 (n,), without derivatives."""
    if risk.ranks.several:
        found = over_examples(risk, 2, work=lambda own: torch.stack(forward_pass(own, displacement, finite=False), 1))
        losses, weights = found.T.contiguous()
        if finite:
            check_finite(losses, 0, len(risk), displaced=displacement is not None)
        return losses, weights
    return as_memory_allows(risk, lambda: _evaluated(risk, displacement, finite=finite))


def _evaluated(risk: EmpiricalRisk, displacement: Tensor | None, *, finite: bool) -> tuple[Tensor, Tensor]:
    with risk.undisturbed():  # no parameter asks for a gradient; a model may differentiate in its inputs
        losses, weights = torch.empty(2, len(risk), dtype=torch.float64, device="cpu")
        at = risk.probed.state.probed if displacement is None else risk.probed.displaced(displacement)
        for microbatch in risk.microbatches():
            rows = microbatch.rows
            loss_sum, weight = risk.probed.batch_losses(at, microbatch)
            losses[rows] = loss_sum.detach().double().cpu() / weight.double().cpu()
            weights[rows] = weight.double().cpu()
            check_weights(weights[rows], rows.start)
            if finite:
                check_finite(losses[rows], rows.start, len(risk), displaced=displacement is not None)
    return losses, weights


def first_order_pass(risk: EmpiricalRisk, displacement: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and weights, float64 (n,), and the gradient of the risk (N,) at ``w* + displacement``."""
    losses, weights, total = _summed_gradient(risk, displacement)
    gradient: Tensor = (total / weights.sum()).to(risk.dtype)
    if not all_finite(gradient, risk.probed.vectors.sum_over):
        raise NotFiniteError("the gradient of the risk is not finite although the losses are; check the loss there")
    risk.sample.known.keep(weights=weights)
    return losses, weights, gradient


def _summed_gradient(risk: EmpiricalRisk, displacement: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and weights, and the gradient (N,) of the sum of all losses, float64."""
    if risk.ranks.several:
        total = torch.zeros(risk.probed.held, dtype=torch.float64, device=risk.device)

        def own_pass(own: EmpiricalRisk) -> Tensor:
            losses, weights, part = _summed_gradient(own, displacement)
            total.add_(part)
            return torch.stack([losses, weights], 1)

        losses, weights = over_examples(risk, 2, work=own_pass).T.contiguous()
        return losses, weights, total if risk.probed.divided is not None else risk.ranks.total(total)
    return as_memory_allows(risk, lambda: _differentiated(risk, displacement))


def _differentiated(risk: EmpiricalRisk, displacement: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    model = risk.probed
    with risk.undisturbed():
        losses, weights = torch.empty(2, len(risk), dtype=torch.float64, device="cpu")
        total = torch.zeros(model.held, dtype=torch.float64, device=risk.device)
        for microbatch in risk.microbatches():
            rows, leaves = microbatch.rows, model.leaves(displacement)
            loss_sum, weight = model.batch_losses(leaves, microbatch)
            total += model.flatten(model.first_order(microbatch.total(loss_sum), leaves))
            weights[rows] = weight.detach().double().cpu()
            losses[rows] = loss_sum.detach().double().cpu() / weights[rows]
            check_weights(weights[rows], rows.start)
            check_finite(losses[rows], rows.start, len(risk), displaced=displacement is not None)
    return losses, weights, total


def depends(risk: EmpiricalRisk) -> bool:
    """Whether any example's loss depends on a probed parameter."""
    model, risk = risk.probed, risk.by_itself()  # where memory runs out here, the others need not know

    def found() -> bool:
        with risk.undisturbed():
            return any(model.batch_losses(model.leaves(), part)[0].requires_grad for part in risk.microbatches())

    return as_memory_allows(risk, found)


def behaviour_beside(risk: EmpiricalRisk) -> tuple[list[str], Tensor]:
    """Two moments of the losses and the norm of the gradient at a point beside the solution, to four digits; weights.

    A loss may vanish at the solution itself.
    """
    model, generator = risk.probed, torch.Generator().manual_seed(0)
    if model.divided is None:
        step = torch.randn(risk.num_params, generator=generator, dtype=risk.dtype, device="cpu").to(risk.device)
    else:
        step = model.draw(generator)
    sizes = [torch.full_like(p, size) for p, size in zip(model.state.probed.values(), model.sizes(), strict=True)]
    try:
        losses, weights, gradient = first_order_pass(risk, 0.01 * step * model.flatten(sizes))
    except NotFiniteError:
        risk.losses()  # where it is so at the solution too, that is what to say
        raise
    numbers = (losses.mean(), losses.square().mean(), model.vectors.norm(gradient))
    return [f"{float(number):.3e}" for number in numbers], weights
