"""What a loss must be and return, and what a sample's losses must be like."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from curvprobe.errors import CannotProbeError, CannotProbeTypeError, NotFiniteError, checking

_REMEDY = "return the losses alone, or (loss_sum, weight) with the number of loss terms of every example"


def split_loss(result: Any, rows: int) -> tuple[Tensor, Tensor]:
    """Summed losses and weights (n,) from what the user's loss returned."""
    pair = isinstance(result, tuple) and len(result) == 2
    loss_sum = result[0] if pair else result
    if isinstance(result, tuple) and not pair:
        raise CannotProbeTypeError(f"the loss returned {len(result)} things; {_REMEDY}")
    if isinstance(result, Mapping):
        raise CannotProbeTypeError(f"the loss returned a {type(result).__name__}; {_REMEDY}")
    if not isinstance(loss_sum, Tensor) or not loss_sum.is_floating_point():
        raise CannotProbeTypeError(
            f"the loss returned {_kind(result)}; expected a floating-point tensor of one loss per example (n,), or "
            "(loss_sum (n,), weight (n,)): see curvprobe.losses for ready ones"
        )
    if loss_sum.dim() == 0:
        raise CannotProbeError(
            f"the loss returned a scalar for {rows} examples; expected one loss per example, shape ({rows},): "
            "use reduction='none', or a ready loss from curvprobe.losses; a mean over the batch, such as the .loss of "
            "a Hugging Face model, does not tell one example from another (curvprobe.losses.model_loss does)"
        )
    if loss_sum.shape != (rows,):
        raise CannotProbeError(
            f"the loss has shape {tuple(loss_sum.shape)} for {rows} examples; expected ({rows},): average over an "
            "example's own terms, or return (loss_sum, weight)"
        )
    return loss_sum, _weights(result[1], loss_sum) if pair else torch.ones_like(loss_sum)


def _kind(result: Any) -> str:
    """What came, and where None comes from."""
    if result is None:
        return (
            "None (a function without return, or the .loss of a Hugging Face model, which is not given the labels here)"
        )
    return f"a tensor of {result.dtype}" if isinstance(result, Tensor) else f"a {type(result).__name__}"


def _weights(given: Any, loss_sum: Tensor) -> Tensor:
    """Weights (n,) in the losses' dtype: a tensor, or numbers in a list or a NumPy array."""
    try:
        listed = not isinstance(given, Tensor) and not hasattr(given, "dtype")  # such numbers have no precision yet
        weight = torch.as_tensor(given, dtype=loss_sum.dtype if listed else None, device=loss_sum.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CannotProbeTypeError(
            f"the loss returned its losses and a {type(given).__name__}, which is no weight; {_REMEDY}"
        ) from error
    if weight.shape != loss_sum.shape:
        rows = len(loss_sum)
        raise CannotProbeError(f"the weights have shape {tuple(weight.shape)} for {rows} examples; expected ({rows},)")
    if weight.requires_grad:
        raise CannotProbeError(
            "the weights that the loss returned depend on the model's parameters (weight.requires_grad), and the "
            "derivatives would lack their part; expected the number of loss terms of every example, from the data "
            "alone: multiply the losses by such a factor and return them alone, or detach it if it is a constant"
        )
    return weight.detach().to(loss_sum.dtype)


def check_finite(losses: Tensor, start: int, total: int, *, displaced: bool = False) -> None:
    """Refuse losses that are not finite; the first is example ``start`` of ``total``."""
    bad = (~losses.isfinite()).nonzero().flatten()
    if len(bad):
        where = (
            "at the displaced parameters; take a smaller sigma"
            if displaced
            else "at the solution; check its data (an ignored label, -100, must be left out)"
        )
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


def unlike_losses(first: Tensor, again: Tensor, dtype: torch.dtype) -> Tensor:
    """Positions at which losses of a later pass differ from those of the first one by more than usual rounding.

    Compared relative to their size, down to where terms of size 1 are rounded in ``dtype``.

    Args:
        first, again: losses of the same examples, float64 (n,); what is not finite is left to other checks.
        dtype: that the losses were computed in.
    """
    relative = 1e-8 if dtype == torch.float64 else 1e-3
    allowed = relative * torch.maximum(first.abs(), again.abs()) + 32 * torch.finfo(dtype).eps
    return ((again - first).abs() > allowed).nonzero().flatten()


def refuse_change(row: int, first: float, again: float) -> NoReturn:
    """Refuse losses that are others in a later pass."""
    raise CannotProbeError(
        f"the loss of example {row} was {first:.8g} in the first pass and is {again:.8g} in a later one; expected "
        "losses that are the same in every pass. They depend on the rest of their batch or are random: reduce over the "
        "example's own terms only, call model.eval(), and take out layers that mix examples and noise"
    )


@checking("determinism")
def refuse_noise(row: int, first: float, again: float) -> NoReturn:
    """Refuse losses that differ from one evaluation to the next."""
    raise CannotProbeError(
        f"two evaluations of example {row} in the same batch gave the losses {first:.8g} and {again:.8g}; expected a "
        "deterministic model. Call model.eval(), and take out functional dropout, other noise, and state that is kept "
        "from one batch to the next"
    )


@checking("independence")
def refuse_dependence(row: int, losses: tuple[float, float], sizes: tuple[int, int]) -> NoReturn:
    """Refuse losses that depend on the rest of the batch."""
    if sizes[1] == 1:
        losses, sizes = losses[::-1], sizes[::-1]
    places = ["by itself" if size == 1 else f"in a batch of {size}" for size in sizes]
    if places[0] == places[1]:
        places[1] = f"in another of {sizes[1]}"
    raise CannotProbeError(
        f"the loss of example {row} is {losses[0]:.8g} {places[0]} and {losses[1]:.8g} {places[1]}; expected losses "
        "that do not depend on the rest of the batch. Reduce over the example's own terms only, and take out layers "
        "that mix examples"
    )
