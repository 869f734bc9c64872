"""The Hessian and the generalised Gauss-Newton matrix of an empirical risk, as products with blocks of vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvprobe.curvature.compiled import Compiled, compile_hessian, trusted
from curvprobe.curvature.double_backward import double_backward_errors
from curvprobe.curvature.linearisation import Kind, Linearisation, linearise
from curvprobe.curvature.second_derivatives import check_second_derivatives
from curvprobe.errors import ArgumentError, ArgumentTypeError, NotFiniteError
from curvprobe.numerics.linalg import all_finite
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.risk.passes import as_memory_allows, on_own_examples
from curvprobe.risk.sample import Microbatch


@dataclass(frozen=True)
class CurvatureMatrix:
    """A symmetric (N, N) matrix known by its products: ``matrix @ vectors`` with vectors (N,) or (N, b).

    One pass over the sample serves the whole block. A sample that fits in one microbatch is differentiated once, at the
    first product, and the graph serves all later ones for as long as the matrix lives. Sums over microbatches are
    accumulated in float64; the result has the dtype and device of the risk.
    """

    risk: EmpiricalRisk
    kind: Kind
    compile: bool = False
    _kept: list[Linearisation] = field(default_factory=list, init=False, repr=False, compare=False)
    _own: list[CurvatureMatrix] = field(default_factory=list, init=False, repr=False, compare=False)
    _compiled: list[Compiled | None] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        expect_risk(self.risk)
        if self.compile and self.kind != "hessian":
            raise ArgumentError(f"compile=True came with {self.kind!r}; only products with the Hessian can be compiled")
        if self.compile:
            self.risk.probed.expect_whole("compile=True")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, N)."""
        return (self.risk.num_params, self.risk.num_params)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        risk = self.risk
        if not isinstance(vectors, Tensor):
            raise ArgumentTypeError(f"the vectors are a {type(vectors).__name__}; expected a tensor (N,) or (N, b)")
        held = risk.probed.held
        if vectors.dim() not in (1, 2) or vectors.shape[0] != held:
            raise ArgumentError(
                f"the vectors have shape {tuple(vectors.shape)}; expected (N,) or (N, b) with N = {held}"
            )
        if risk.probed.divided is not None and risk.ranks.several:
            return self.of_rows(vectors.reshape(held, -1)).reshape(vectors.shape)
        check_second_derivatives(risk, self.kind)
        with risk.undisturbed():
            block = vectors.detach().to(device=risk.device, dtype=risk.dtype).reshape(held, -1)
            if block.is_inference():
                block = block.clone()
            sums = risk.ranks.total(self._own_sums(block)) if risk.ranks.several else self._sums(block)
            result = sums.div_(risk.total_weight).to(risk.dtype)
        return self._finite(result, vectors).reshape(vectors.shape)

    def of_rows(self, rows: Tensor) -> Tensor:
        """The rows (n, b) of a product that this process holds, from the rows that each holds of the vectors.

        One gathering of the vectors, each process's products over its own examples, and one scattering of their sum;
        where the weights are divided, parameter by parameter as these are used.
        """
        risk = self.risk
        check_second_derivatives(risk, self.kind)
        with risk.undisturbed():
            block = rows.detach().to(device=risk.device, dtype=risk.dtype)
            if risk.probed.divided is not None:
                return self._own_sums(block).div_(risk.total_weight)
            block = risk.ranks.whole(block, risk.num_params)
            return risk.ranks.share_of_total(self._own_sums(block)).div_(risk.total_weight)

    def _own_sums(self, block: Tensor) -> Tensor:
        """Products (N, b) with the curvature of the summed losses of this process's examples, in the risk's dtype."""
        risk, own = self.risk, self.risk.own
        with on_own_examples(risk), double_backward_errors():
            if own is None:
                return torch.zeros_like(block)
            if not self._own:
                self._own.append(CurvatureMatrix(own, self.kind, self.compile))
            with own.probed.undisturbed():
                return self._finite(self._own[0]._sums(block).to(risk.dtype), block)

    def _finite(self, products: Tensor, vectors: Tensor) -> Tensor:
        """The products, refused where they are not finite for finite vectors."""
        if not all_finite(products) and all_finite(vectors):
            raise NotFiniteError(f"a {self.kind} product is not finite; the loss has no finite second derivative at w*")
        return products

    def _sums(self, block: Tensor) -> Tensor:
        """Products (N, b) with the curvature of the sum of all losses."""
        with double_backward_errors():
            return as_memory_allows(self.risk, lambda: self._summed(block))

    def _summed(self, block: Tensor) -> Tensor:
        if len(self.risk) <= self.risk.microbatch_size:
            if not self._kept:
                self._kept.append(self._linearise(self.risk.sample.read(0, len(self.risk))))
            products = list(self._products(self._kept[0], block, len(self.risk)))
            return products[0][:, None] if len(products) == 1 else torch.stack(products, dim=1)
        self._kept.clear()  # of a larger microbatch, where memory has run out
        total = torch.zeros(block.shape, dtype=torch.float64, device=block.device)
        for microbatch in self.risk.microbatches():
            linear = self._linearise(microbatch)
            for column, product in enumerate(self._products(linear, block, len(microbatch))):
                total[:, column] += product
            del linear  # or two microbatches' graphs would be alive while the next is built
        return total

    def _products(self, linear: Linearisation, block: Tensor, rows: int) -> Iterator[Tensor]:
        together = self.risk.probed.divided is None
        return linear.products(block, self.risk.budget.tangents_at_once(rows) if together else 1)

    def _linearise(self, microbatch: Microbatch) -> Linearisation:
        """The curvature of one microbatch, compiled where that was asked for and is right."""
        if self.compile and not self._compiled:
            candidate = compile_hessian(self.risk.probed)
            self._compiled.append(candidate if trusted(candidate, self.risk.probed, microbatch) else None)
        if self._compiled and self._compiled[0] is not None:
            return self._compiled[0](microbatch)
        linear = linearise(self.risk.probed, self.kind, microbatch)
        whole = len(microbatch) == len(self.risk) and self.risk.probed.divided is None
        if linear.first_order is not None and whole:
            self.risk.remember_pass(*linear.first_order)
        return linear


def hessian(risk: EmpiricalRisk, *, compile: bool = False) -> CurvatureMatrix:  # noqa: A002 - torch's word
    r"""Hessian of the empirical risk at the solution, :math:`H^{(k)} = \nabla^2 L_k(w^*)`.

    Products come from double backward, which is right for every layer that has a second derivative (transforms of
    torch.func that nest vmap inside another derivative are wrong for LayerNorm in torch 2.13).

    Args:
        risk: any empirical risk.
        compile: compile the product with torch.compile at its first use, which takes minutes for a transformer and
            needs a C++ compiler. It gains nothing where the sample fits in one microbatch, whose graph is kept anyway:
            try it on a sample of many microbatches, on an accelerator, and time both. A compiled product that fails or
            disagrees with the plain one is not used, and a warning says so.

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
    return CurvatureMatrix(risk, "hessian", compile)


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
