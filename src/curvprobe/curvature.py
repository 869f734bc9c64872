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
from curvprobe.linalg import inner
from curvprobe.risk import EmpiricalRisk, split_loss

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
    outputs = _output_tensors(risk.outputs(leaves, batch))
    at = [i for i, z in enumerate(outputs.tensors) if z.requires_grad]
    if not at:
        yield from (torch.zeros_like(column) for column in block.T)
        return
    reached = [outputs.tensors[i] for i in at]
    free = [z.detach().requires_grad_() for z in reached]
    loss_sum, _ = split_loss(risk.loss(outputs.rebuild(dict(zip(at, free, strict=True))), batch), rows)
    if not loss_sum.requires_grad:
        raise ValueError("the loss does not depend on the model's outputs; the Gauss-Newton matrix needs it to")
    slopes = _derivatives([loss_sum.sum()], free, create_graph=True)
    # J^T u as a graph in the cotangents u: it is linear in them, and its own derivative along v is J v.
    cotangents = [torch.zeros_like(z).requires_grad_() for z in free]
    pulled = _derivatives(reached, list(leaves.values()), cotangents, create_graph=True)
    for column in block.T:
        tangents = list(risk.split(column.contiguous()).values())
        moved = _derivatives(pulled, cotangents, tangents)
        bent = _derivatives(slopes, free, moved)
        yield risk.flatten(_derivatives(reached, list(leaves.values()), bent))


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


def check_second_derivatives(risk: EmpiricalRisk, kind: Kind) -> None:
    """Refuse a model or loss whose second derivatives autograd gets wrong without saying so; once per model and loss.

    A custom function whose backward is opaque to autograd counts as constant when differentiated twice, and a few of
    PyTorch's own operations are wrong there. On the first example and in float64, a Hessian product is compared
    with central differences of the gradient; a Gauss-Newton product, with its transpose.
    """
    risk.check_dependence()
    if kind in risk.checked:
        return
    try:
        error = _difference_error(risk) if kind == "hessian" else _asymmetry(risk)
    except (torch.OutOfMemoryError, MemoryError):
        return  # the check is a courtesy; the job itself may still fit
    if error > CHECK_TOLERANCE:
        raise ValueError(
            f"a {kind} product is {100 * error:.2g} % off "
            f"{'central differences of the gradient' if kind == 'hessian' else 'symmetry'}: an operation of the model "
            "or loss has a wrong second derivative. Known ones are torch's weight_norm, and custom autograd functions "
            "whose backward is once_differentiable or calls compiled code; replace it, or leave out the parameters "
            "behind it with params="
        )
    risk.checked.add(kind)


CHECK_TOLERANCE = 1e-2
"""Relative disagreement above which a second derivative is called wrong; rounding and truncation stay far below."""


def _difference_error(risk: EmpiricalRisk) -> float:
    """Relative error of a Hessian product on the first example against central differences, float64 where possible."""
    one = risk.in_double()[[0]] if risk.dtype != torch.float64 else risk[[0]]
    generator = torch.Generator().manual_seed(0)
    with one.undisturbed(), double_backward_errors():
        scales = [p.detach().square().mean().sqrt().clamp_min(1e-3).expand_as(p) for p in one.leaves().values()]
        draws = torch.randn(one.num_params, generator=generator, dtype=one.dtype)
        direction = one.flatten(scales) * draws.to(one.device)  # every tensor is moved in proportion to its size
        batch = next(one.batches())[1]
        product = next(_hessian_products(one, batch, 1, direction[:, None]))

        def gradient(displacement: Tensor) -> Tensor:
            leaves = one.leaves(displacement)
            return one.flatten(one.first_order(one.batch_losses(leaves, batch, 1)[0].sum(), leaves))

        errors = []
        for step in (1e-5, 1e-4, 1e-6):  # a kink (ReLU) within one step spoils that step only
            sides = gradient(step * direction), gradient(-step * direction)
            difference = (sides[0] - sides[1]) / (2 * step)
            rounding = 1e3 * torch.finfo(one.dtype).eps / step * float(sides[0].norm())
            size = max(float(product.norm()), float(difference.norm()), rounding)
            errors.append(float((product - difference).norm()) / size if size > 0 else 0.0)
            if errors[-1] <= CHECK_TOLERANCE:
                break
    return min(errors)


def _asymmetry(risk: EmpiricalRisk) -> float:
    """Relative difference of ``u^T G v`` and ``v^T G u`` on the first example for random u, v."""
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(risk.num_params, 2, generator=generator, dtype=risk.dtype).to(risk.device)
    with risk.undisturbed(), double_backward_errors():
        products = torch.stack(list(_ggn_products(risk[[0]], risk._read(0, 1), 1, pair)), dim=1)
    crossed = inner(pair.T, products)
    size = float(products.double().norm())
    return abs(float(crossed[0, 1] - crossed[1, 0])) / size if size > 0 else 0.0
