"""The Hessian and the generalised Gauss-Newton matrix of an empirical risk, as products with blocks of vectors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvprobe.examples import Batch
from curvprobe.losses import split_loss
from curvprobe.risk import EmpiricalRisk

Kind = Literal["hessian", "ggn"]


@dataclass(frozen=True)
class CurvatureMatrix:
    """A symmetric (N, N) matrix known by its products: ``matrix @ vectors`` with vectors (N,) or (N, b).

    One pass over the sample serves the whole block. Sums over microbatches are accumulated in float64; the result
    has the dtype of the risk.
    """

    risk: EmpiricalRisk
    kind: Kind

    @property
    def shape(self) -> tuple[int, int]:
        """(N, N)."""
        return (self.risk.num_params, self.risk.num_params)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        risk = self.risk
        if not isinstance(vectors, Tensor):
            raise TypeError(f"the vectors are a {type(vectors).__name__}; expected a tensor (N,) or (N, b)")
        if vectors.dim() not in (1, 2) or vectors.shape[0] != risk.num_params:
            raise ValueError(
                f"the vectors have shape {tuple(vectors.shape)}; expected (N,) or (N, b) with N = {risk.num_params}"
            )
        check_second_derivatives(risk, self.kind)
        with risk.undisturbed(), double_backward_errors():
            block = vectors.detach().to(device=risk.device, dtype=risk.dtype, copy=True).reshape(risk.num_params, -1)
            total = torch.zeros(block.shape, dtype=torch.float64, device=risk.device)
            for rows, batch in risk.batches():
                for column, product in enumerate(_PRODUCTS[self.kind](risk, batch, rows.stop - rows.start, block)):
                    total[:, column] += product
            result = (total / risk.total_weight).to(risk.dtype)
        if bool(vectors.isfinite().all()) and not bool(result.isfinite().all()):
            raise ValueError(f"a {self.kind} product is not finite; the loss has no finite second derivative at w*")
        return result.reshape(vectors.shape)


def hessian(risk: EmpiricalRisk) -> CurvatureMatrix:
    r"""Hessian of the empirical risk at the solution, :math:`H^{(k)} = \nabla^2 L_k(w^*)`.

    Products come from double backward, which is right for every layer that has a second derivative (transforms of
    torch.func that nest vmap inside another derivative are wrong for LayerNorm in torch 2.13).

    Args:
        risk: any empirical risk.

    Returns:
        A matrix for ``H @ V`` with V (N,) or (N, b).

    Raises:
        ValueError: on a product, for an operation without a double backward, with its name and the remedy.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)))
        >>> cp.hessian(risk) @ torch.eye(2)
        tensor([[2., 4.],
                [4., 8.]])
    """
    return CurvatureMatrix(risk, "hessian")


def ggn(risk: EmpiricalRisk) -> CurvatureMatrix:
    r"""Generalised Gauss-Newton matrix, :math:`G = \sum_i J_i^T (\nabla^2_z \ell_i) J_i / W_k`.

    J is the Jacobian of the model's outputs z; positive semi-definite when the loss is convex in them.

    Args:
        risk: any empirical risk whose loss is a function of the model's outputs.

    Returns:
        A matrix for ``G @ V`` with V (N,) or (N, b).

    Source: Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent".

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)))
        >>> cp.ggn(risk) @ torch.tensor([1.0, 0.0])
        tensor([2., 4.])
    """
    return CurvatureMatrix(risk, "ggn")


def _hessian_products(risk: EmpiricalRisk, batch: Batch, rows: int, block: Tensor) -> Iterator[Tensor]:
    leaves = risk.leaves()
    loss_sum, _ = risk.batch_losses(leaves, batch, rows)
    gradients = risk.first_order(loss_sum.sum(), leaves, create_graph=True)
    return tangent_products(risk, leaves, gradients, block)


def tangent_products(
    risk: EmpiricalRisk, leaves: dict[str, Tensor], gradients: list[Tensor], block: Tensor
) -> Iterator[Tensor]:
    """Products of the Jacobian of ``gradients`` (a graph in ``leaves``) with each column of ``block`` (N, b)."""
    for column in block.T:
        tangents = list(risk.split(column.contiguous()).values())
        yield risk.flatten(_derivatives(gradients, list(leaves.values()), tangents))


def _ggn_products(risk: EmpiricalRisk, batch: Batch, rows: int, block: Tensor) -> Iterator[Tensor]:
    leaves = risk.leaves()
    reached, free, slopes = _output_slopes(risk, leaves, batch, rows)
    for bent in _bent_outputs(risk, leaves, reached, free, slopes, block):
        yield risk.flatten(_derivatives(reached, list(leaves.values()), bent))


def _output_slopes(
    risk: EmpiricalRisk, leaves: dict[str, Tensor], batch: Batch, rows: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The model's output tensors as graphs in the parameters, the same detached, and the loss's gradient in these."""
    outputs = _output_tensors(risk.outputs(leaves, batch))
    at = [i for i, z in enumerate(outputs.tensors) if z.requires_grad]
    free = [outputs.tensors[i].detach().requires_grad_() for i in at]
    loss_sum, _ = split_loss(risk.loss(outputs.rebuild(dict(zip(at, free, strict=True))), batch), rows)
    slopes = _derivatives([loss_sum.sum()], free, create_graph=True)
    return [outputs.tensors[i] for i in at], free, slopes


def _bent_outputs(
    risk: EmpiricalRisk,
    leaves: dict[str, Tensor],
    reached: list[Tensor],
    free: list[Tensor],
    slopes: list[Tensor],
    block: Tensor,
) -> Iterator[list[Tensor]]:
    """The loss's Hessian in the outputs, times the outputs' derivative along each column of ``block``."""
    # J^T u as a graph in the cotangents u: it is linear in them, and its own derivative along v is J v.
    cotangents = [torch.zeros_like(z).requires_grad_() for z in free]
    pulled = _derivatives(reached, list(leaves.values()), cotangents, create_graph=True)
    for column in block.T:
        tangents = list(risk.split(column.contiguous()).values())
        yield _derivatives(slopes, free, _derivatives(pulled, cotangents, tangents))


def _derivatives(
    outputs: list[Tensor], inputs: list[Tensor], along: list[Tensor] | None = None, *, create_graph: bool = False
) -> list[Tensor]:
    """``torch.autograd.grad`` that keeps the graph, and is zero where an output does not depend on an input."""
    reached = [i for i, output in enumerate(outputs) if output.requires_grad]
    if not reached:
        return [torch.zeros_like(tensor) for tensor in inputs]
    return list(
        torch.autograd.grad(
            [outputs[i] for i in reached],
            inputs,
            None if along is None else [along[i] for i in reached],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    )


_PRODUCTS = {"hessian": _hessian_products, "ggn": _ggn_products}


@dataclass(frozen=True)
class _Outputs:
    leaves: list[Any]
    places: list[int]
    structure: Any

    @property
    def tensors(self) -> list[Tensor]:
        return [self.leaves[i] for i in self.places]

    def rebuild(self, replaced: dict[int, Tensor]) -> Any:
        leaves = list(self.leaves)
        for position, tensor in replaced.items():
            leaves[self.places[position]] = tensor
        return pytree.tree_unflatten(leaves, self.structure)


def _output_tensors(outputs: Any) -> _Outputs:
    leaves, structure = pytree.tree_flatten(outputs)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not places:
        raise TypeError(
            f"the model returned {type(outputs).__name__}, in which no floating-point tensor was found; "
            "the Gauss-Newton matrix needs tensors, or containers of them, as outputs"
        )
    return _Outputs(leaves, places, structure)


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
        raise ValueError(
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
    if kind in risk.checked:
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
        raise ValueError(
            f"a {kind} product is {100 * error:.2g} % off central differences: an operation of the model or loss has a "
            "missing or wrong second derivative. Known ones are torch's weight_norm, and custom autograd functions "
            "whose backward is once_differentiable or calls compiled code; replace it, or leave out the parameters "
            "behind it with params="
        )
    risk.checked.add(kind)


def _difference_error(one: EmpiricalRisk, kind: Kind) -> float:
    """Relative error of a product against central differences on a single example."""
    generator = torch.Generator().manual_seed(0)
    with one.undisturbed(), double_backward_errors():
        scales = [p.detach().square().mean().sqrt().clamp_min(1e-3).expand_as(p) for p in one.leaves().values()]
        draws = torch.randn(one.num_params, generator=generator, dtype=one.dtype)
        direction = one.flatten(scales) * draws.to(one.device)  # every tensor is moved in proportion to its size
        batch, leaves = next(one.batches())[1], one.leaves()
        if kind == "hessian":
            product = next(_hessian_products(one, batch, 1, direction[:, None]))
        else:
            parts = _output_slopes(one, leaves, batch, 1)
            product = one.flatten(next(_bent_outputs(one, leaves, *parts, direction[:, None])))

        def first_order(displacement: Tensor) -> Tensor:
            moved = one.leaves(displacement)
            if kind == "ggn":
                return one.flatten(_output_slopes(one, moved, batch, 1)[2])
            return one.flatten(one.first_order(one.batch_losses(moved, batch, 1)[0].sum(), moved))

        errors = []
        # More than one step: a kink (of a ReLU) within a step spoils that step only.
        for step in (1e-5, 1e-4, 1e-6) if one.dtype == torch.float64 else (1e-2, 1e-3):
            sides = first_order(step * direction), first_order(-step * direction)
            difference = (sides[0] - sides[1]) / (2 * step)
            rounding = 1e3 * torch.finfo(one.dtype).eps / step * float(sides[0].norm())
            size = max(float(product.norm()), float(difference.norm()), rounding)
            errors.append(float((product - difference).norm()) / size if size > 0 else 0.0)
            if errors[-1] <= CHECK_TOLERANCE:
                break
    return min(errors)
