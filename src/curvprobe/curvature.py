"""The Hessian and the generalised Gauss-Newton matrix of an empirical risk, as products with blocks of vectors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from curvprobe.examples import Batch
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
        if vectors.dim() not in (1, 2) or vectors.shape[0] != risk.num_params:
            raise ValueError(
                f"the vectors have shape {tuple(vectors.shape)}; expected (N,) or (N, b) with N = {risk.num_params}"
            )
        block = vectors.to(device=risk.device, dtype=risk.dtype).reshape(risk.num_params, -1)
        total = torch.zeros(block.shape, dtype=torch.float64, device=risk.device)
        batch_products = _hessian_products if self.kind == "hessian" else _ggn_products
        with risk.undisturbed(), double_backward_errors():
            for rows, batch in risk.batches():
                for column, product in enumerate(batch_products(risk, batch, rows.stop - rows.start, block)):
                    total[:, column] += product
        product = (total / risk.total_weight).to(risk.dtype)
        if bool(vectors.isfinite().all()) and not bool(product.isfinite().all()):
            raise ValueError(f"a {self.kind} product is not finite; the loss has no finite second derivative at w*")
        return product.reshape(vectors.shape)


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
    curved = [i for i, g in enumerate(gradients) if g.requires_grad]  # a loss linear in a parameter leaves constants
    for column in block.T:
        if not curved:
            yield torch.zeros_like(column)
            continue
        tangents = list(risk.split(column.contiguous()).values())
        parts = torch.autograd.grad(
            [gradients[i] for i in curved],
            list(leaves.values()),
            [tangents[i] for i in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        yield risk.flatten(parts)


def _ggn_products(risk: EmpiricalRisk, batch: Batch, rows: int, block: Tensor) -> Iterator[Tensor]:
    leaves = risk.leaves()
    outputs = _output_tensors(risk.outputs(leaves, batch))
    at = [i for i, z in enumerate(outputs.tensors) if z.requires_grad]
    free = [outputs.tensors[i].detach().requires_grad_() for i in at]
    loss_sum, _ = split_loss(risk.loss(outputs.rebuild(dict(zip(at, free, strict=True))), batch), rows)
    if not loss_sum.requires_grad:
        raise ValueError("the loss does not depend on the model's outputs; the Gauss-Newton matrix needs it to")
    slopes = torch.autograd.grad(loss_sum.sum(), free, create_graph=True, allow_unused=True, materialize_grads=True)
    curved = [i for i, s in enumerate(slopes) if s.requires_grad]
    for column in block.T:
        if not curved:
            yield torch.zeros_like(column)
            continue
        moved = _output_tangents(risk, batch, column.contiguous(), at)
        bent = torch.autograd.grad(
            [slopes[i] for i in curved],
            free,
            [moved[i] for i in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        parts = torch.autograd.grad(
            [outputs.tensors[i] for i in at],
            list(leaves.values()),
            bent,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        yield risk.flatten(parts)


def _output_tangents(risk: EmpiricalRisk, batch: Batch, column: Tensor, at: list[int]) -> list[Tensor]:
    """Directional derivatives of the model's output tensors, by forward mode."""
    leaves, tangents = risk.leaves(), risk.split(column)
    with torch.no_grad(), forward_ad.dual_level():
        dual = {
            name: forward_ad.make_dual(p.detach(), tangents[name])  # type: ignore[no-untyped-call]
            for name, p in leaves.items()
        }
        tensors = _output_tensors(risk.outputs(dual, batch)).tensors
        moved = []
        for i in at:
            primal, tangent = forward_ad.unpack_dual(tensors[i])  # type: ignore[no-untyped-call]
            moved.append(torch.zeros_like(primal) if tangent is None else tangent)
        return moved


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
        named = re.search(r"derivative for ([\w:]+)", text) or re.search(r"forward AD with (\w+)", text)
        twice = re.search(r"once_differentiable|double backward|differentiate twice|aot_autograd|forward AD", text)
        if not (named or twice):
            raise
        operation = named.group(1) if named else "an operation of the model or loss"
        fallback = "replace it by operations that have one, or leave out the parameters behind it with params="
        remedy = next((cure for pattern, cure in _REMEDIES if re.search(pattern, text)), fallback)
        raise ValueError(
            f"{operation} has no second derivative, which curvature needs; {remedy}. PyTorch said: {text}"
        ) from error
