"""Whether autograd's second derivatives of a model and loss exist and are right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from curvprobe.curvature.linearisation import Kind, linearise, output_hessian_product, output_slopes
from curvprobe.errors import CannotProbeError
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Microbatch

_REMEDIES: tuple[tuple[str, str], ...] = (
    ("ctc", "write the CTC recursion with differentiable operations (logsumexp over a loop)"),
    ("cudnn_rnn", "run under torch.backends.cudnn.flags(enabled=False)"),
    ("attention", "use attn_implementation='eager' or torch's scaled_dot_product_attention"),
    ("compile|aot_autograd", "pass the module that was not compiled"),
)


@contextmanager
def double_backward_errors() -> Iterator[None]:
    """Say plainly which operation lacks a second derivative, and what to do about it."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        named = re.search(r"derivative for '?([\w:]+)", text)
        twice = re.search(r"once_differentiable|double backward|differentiate twice|aot_autograd", text)
        if not (named or twice):
            raise
        operation = named.group(1) if named else "an operation of the model or loss"
        fallback = "replace it by operations that have one, or leave out the parameters behind it with params="
        remedy = next((cure for pattern, cure in _REMEDIES if re.search(pattern, text)), fallback)
        raise CannotProbeError(
            f"{operation} has no second derivative, which curvature needs; {remedy}. PyTorch said: {text}"
        ) from error


CHECK_TOLERANCE = 1e-2
"""Relative disagreement above which a second derivative is called wrong; rounding and truncation stay far below."""


def check_second_derivatives(risk: EmpiricalRisk, kind: Kind) -> None:
    """Refuse a model or loss whose second derivatives autograd gets wrong without saying so; once per model and loss.

    A custom function whose backward is opaque to autograd counts as constant when differentiated twice, and a few of
    PyTorch's own operations are wrong there. On the first example, in float64, the product with one vector is compared
    with central differences of first derivatives (for the Gauss-Newton matrix: of the loss in the outputs).
    """
    risk.check_dependence()
    if kind in risk.probed.passed:
        return
    tolerance = CHECK_TOLERANCE
    try:
        error = _difference_error(risk.in_double()[[0]], kind)
    except (torch.OutOfMemoryError, MemoryError):
        return  # the check is a courtesy; the job itself may still fit
    except RuntimeError:  # a constant of the model or loss is in the model's own precision: so is the check then
        tolerance = CHECK_TOLERANCE if risk.dtype == torch.float64 else 10 * CHECK_TOLERANCE
        error = _difference_error(risk[[0]], kind)
    if error > tolerance:
        raise CannotProbeError(
            f"a {kind} product is {100 * error:.2g} % off central differences: an operation of the model or loss has a "
            "missing or wrong second derivative. Known ones are torch's weight_norm, activation checkpointing, and "
            "custom autograd functions whose backward is once_differentiable or calls compiled code; replace it, "
            "switch it off, or leave out the parameters behind it with params="
        )
    risk.probed.passed.add(kind)


def _difference_error(one: EmpiricalRisk, kind: Kind) -> float:
    """Relative error of a product against central differences on a single example."""
    model, generator = one.probed, torch.Generator().manual_seed(0)
    with one.undisturbed(), double_backward_errors():
        direction = torch.randn(model.num_params, generator=generator, dtype=model.dtype).to(model.device)
        for part, p in zip(model.split(direction).values(), model.leaves().values(), strict=True):
            part *= p.detach().square().mean().sqrt().clamp_min(1e-3)  # every tensor is moved in proportion to its size
        microbatch = one.sample.read(0, 1)
        product = _product(model, kind, microbatch, direction)
        if product is None:
            return 0.0  # this example passes the probed parameters by
        errors = []
        # More than one step: a kink (of a ReLU) within a step spoils that step only.
        for step in (1e-5, 1e-4, 1e-6) if model.dtype == torch.float64 else (1e-2, 1e-3):
            difference = _first_order(model, kind, microbatch, step * direction)
            slope = float(difference.norm())
            difference -= _first_order(model, kind, microbatch, -step * direction)
            difference /= 2 * step
            rounding = 1e3 * torch.finfo(model.dtype).eps / step * slope
            size = max(float(product.norm()), float(difference.norm()), rounding)
            errors.append(float(difference.sub_(product).norm()) / size if size > 0 else 0.0)
            if errors[-1] <= CHECK_TOLERANCE:
                break
    return min(errors)


def _product(model: ProbedModel, kind: Kind, microbatch: Microbatch, direction: Tensor) -> Tensor | None:
    """The product under test: with the Hessian, or with that of the loss in the outputs; None where it is nothing."""
    if kind == "hessian":
        return next(linearise(model, kind, microbatch).products(direction[:, None]))
    leaves = model.leaves()
    parts = output_slopes(model, leaves, microbatch)
    if not parts[0]:
        return None
    return model.flatten(output_hessian_product(leaves, *parts)(list(model.split(direction).values()), False))


def _first_order(model: ProbedModel, kind: Kind, microbatch: Microbatch, displacement: Tensor) -> Tensor:
    """The first derivative whose differences the product is held against."""
    moved = model.leaves(displacement)
    if kind == "ggn":
        return model.flatten(output_slopes(model, moved, microbatch)[2])
    return model.flatten(model.first_order(model.batch_losses(moved, microbatch)[0].sum(), moved))
