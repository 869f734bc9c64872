"""What a loss must be and return, and what a sample's losses must be like."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from curvprobe.errors import CannotProbeError, CannotProbeTypeError, NotFiniteError


def split_loss(result: Any, rows: int) -> tuple[Tensor, Tensor]:
    """Summed losses and weights (n,) from what the user's loss returned."""
    pair = isinstance(result, tuple) and len(result) == 2
    loss_sum = result[0] if pair else result
    if not isinstance(loss_sum, Tensor) or not loss_sum.is_floating_point():
        raise CannotProbeTypeError(
            f"the loss returned {type(result).__name__}; expected a floating-point tensor of one loss per example "
            "(n,), or (loss_sum (n,), weight (n,))"
        )
    if loss_sum.dim() == 0:
        raise CannotProbeError(
            f"the loss returned a scalar for {rows} examples; expected one loss per example, shape ({rows},): "
            "use reduction='none', or a ready loss from curvprobe.losses"
        )
    if loss_sum.shape != (rows,):
        raise CannotProbeError(
            f"the loss has shape {tuple(loss_sum.shape)} for {rows} examples; expected ({rows},): average over an "
            "example's own terms, or return (loss_sum, weight)"
        )
    if not pair:
        return loss_sum, torch.ones_like(loss_sum)
    weight = torch.as_tensor(result[1], device=loss_sum.device)
    if weight.shape != (rows,):
        raise CannotProbeError(f"the weights have shape {tuple(weight.shape)} for {rows} examples; expected ({rows},)")
    return loss_sum, weight.detach().to(loss_sum.dtype)


def check_finite(losses: Tensor, start: int, total: int, *, displaced: bool = False) -> None:
    """Refuse losses that are not finite; the first is example ``start`` of ``total``."""
    bad = (~losses.isfinite()).nonzero().flatten()
    if len(bad):
        where = "at the displaced parameters; take a smaller sigma" if displaced else "at the solution; check its data"
        row = int(bad[0])
        raise NotFiniteError(f"the loss of example {start + row} of {total} is {float(losses[row])} {where}")


def check_weights(weights: Tensor, start: int) -> None:
    """Refuse weights that are not positive; the first is of example ``start``."""
    bad = (~((weights > 0) & weights.isfinite())).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise CannotProbeError(
            f"example {start + row} has weight {float(weights[row])}; expected a positive number of loss terms: "
            "leave out examples without any"
        )


def check_loss(loss: Any) -> None:
    """Refuse what is no loss of two arguments that gives one value an example."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    if isinstance(loss, nn.Module) or getattr(loss, "__module__", "") == "torch.nn.functional":
        name = type(loss).__name__ if isinstance(loss, nn.Module) else loss.__name__
        if isinstance(loss, nn.Module) and not type(loss).__module__.startswith("torch.nn"):
            return
        raise CannotProbeTypeError(
            f"loss is torch's {name}, which takes (input, target) and reduces over the batch; expected "
            "loss(outputs, batch) giving one loss per example: use curvprobe.losses, or write one"
        )
    if not callable(loss):
        raise CannotProbeTypeError(f"loss is a {type(loss).__name__}; expected a function loss(outputs, batch)")


def check_depends(loss_sum: Tensor) -> None:
    """Refuse losses that depend on no parameter."""
    if not loss_sum.requires_grad:
        raise CannotProbeError(
            "the loss depends on no parameter of the model; expected one that can be differentiated: neither the "
            "model nor the loss may detach, convert to NumPy or run under torch.no_grad()"
        )


def check_repeatable(first: Tensor, again: Tensor, tolerance: float) -> None:
    """Refuse losses that differ from one evaluation to the next."""
    if not torch.allclose(first, again, rtol=tolerance, atol=tolerance):
        raise CannotProbeError(
            "two evaluations of the same examples gave different losses; expected a deterministic model. "
            "Call model.eval(), and take out functional dropout and other noise"
        )


def check_independent(together: Tensor, alone: Tensor, tolerance: float) -> None:
    """Refuse losses that depend on the rest of the batch."""
    scale = max(float(together.abs().max()), 1e-3)
    for row in range(len(together)):
        if abs(float(alone[row]) - float(together[row])) > tolerance * scale:
            raise CannotProbeError(
                f"the loss of example {row} is {float(alone[row]):.8g} by itself and {float(together[row]):.8g} in a "
                f"batch of {len(together)}; expected losses that do not depend on the rest of the batch. Reduce over "
                "the example's own terms only, and take out layers that mix examples"
            )
