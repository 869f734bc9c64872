"""Every example's loss, gradient and Hessian in the coordinates of a subspace: the seam of the package.

What comes before needs the model; what comes after is small float64 linear algebra.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils import _pytree as pytree

from curvprobe import progress
from curvprobe.curvature import hessian
from curvprobe.examples import Batch, resolve_rows
from curvprobe.linalg import inner, quick_inner
from curvprobe.linearisation import along, gradient_derivative
from curvprobe.memory import freed_memory_kept
from curvprobe.risk import EmpiricalRisk
from curvprobe.second_derivatives import check_second_derivatives, double_backward_errors
from curvprobe.subspace import Subspace

_TOGETHER_BYTES = 2**20
"""Examples whose saved activations are smaller than this are differentiated together, larger ones one by one."""

_TOGETHER_BUDGET = 128 * 2**20
"""Bytes that the examples differentiated together may hold; more would only leave the processor's caches."""

_BLOCK = 16
"""Products held at once when examples are differentiated one by one."""


@dataclass(frozen=True, eq=False)
class ProjectedSample:
    """Per-example statistics of a sample in a subspace, float64 on the CPU.

    Attributes:
        loss: (n,) mean loss of every example at the solution.
        weight: (n,) number of loss terms.
        gradient: (n, D), ``U^T g_i``.
        hessian: (n, D, D), ``U^T H_i U``, symmetric.
        digests: content hash of every example; empty when unknown.

    Example:
        >>> import torch
        >>> sample = ProjectedSample(torch.ones(4), torch.ones(4), torch.zeros(4, 2), torch.zeros(4, 2, 2))
        >>> len(sample), sample.dim, len(sample[:3]), sample.truncate(1).gradient.shape
        (4, 2, 3, torch.Size([4, 1]))
    """

    loss: Tensor
    weight: Tensor
    gradient: Tensor
    hessian: Tensor
    digests: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("loss", "weight", "gradient", "hessian"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).detach().double().cpu().contiguous())
        n, dim = self.gradient.shape if self.gradient.dim() == 2 else (-1, -1)
        shapes = [tuple(t.shape) for t in (self.loss, self.weight, self.gradient, self.hessian)]
        if shapes != [(n,), (n,), (n, dim), (n, dim, dim)] or n < 1:
            raise ValueError(
                f"loss, weight, gradient and hessian have shapes {shapes}; expected (n,), (n,), (n, D), (n, D, D)"
            )
        if self.digests and len(self.digests) != n:
            raise ValueError(f"{len(self.digests)} digests came for {n} examples")

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def dim(self) -> int:
        """D."""
        return self.gradient.shape[1]

    def __getitem__(self, selection: int | slice | Sequence[int] | Tensor) -> ProjectedSample:
        """Some of the examples; a single position gives a sample of one."""
        rows = resolve_rows(selection, len(self))
        digests = tuple(self.digests[i] for i in rows) if self.digests else ()
        return ProjectedSample(self.loss[rows], self.weight[rows], self.gradient[rows], self.hessian[rows], digests)

    def truncate(self, dim: int) -> ProjectedSample:
        """The same examples in the span of the first ``dim`` basis vectors."""
        if not 1 <= dim <= self.dim:
            raise ValueError(f"dim is {dim}; expected 1 to {self.dim}")
        return ProjectedSample(
            self.loss, self.weight, self.gradient[:, :dim], self.hessian[:, :dim, :dim], self.digests
        )

    def mean(self) -> ProjectedSample:
        """The weighted mean of the examples, as one example that carries their total weight."""
        share = self.weight / self.weight.sum()
        return ProjectedSample(
            (share @ self.loss)[None],
            self.weight.sum()[None],
            (share @ self.gradient)[None],
            torch.einsum("n,nde->de", share, self.hessian)[None],
        )


def project(risk: EmpiricalRisk, subspace: Subspace) -> ProjectedSample:
    r"""Project every example's loss, gradient and Hessian onto a subspace.

    .. math:: l_i, \quad U^T g_i, \quad U^T H_i U, \qquad i = 1, \dots, n

    Costs about D Hessian-vector products over the sample. Small examples are differentiated together (vmap over
    examples, outside every derivative), after a check against one-by-one double backward; others, and models
    without batching rules, one by one.

    Args:
        risk: the empirical risk; n examples.
        subspace: D directions in its parameter space.

    Returns:
        The projected sample, float64.

    Raises:
        ValueError: if the subspace belongs to another number of parameters, or a second derivative is missing.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.zeros(2, 1)))
        >>> sample = cp.project(risk, cp.Subspace.from_basis(torch.eye(2)[:, :1]))
        >>> sample.loss.tolist(), sample.gradient.flatten().tolist(), sample.hessian.flatten().tolist()
        ([1.0, 4.0], [2.0, 8.0], [2.0, 8.0])
    """
    basis = _basis_for(risk, subspace)
    n, dim = len(risk), subspace.dim
    loss, weight = risk.losses(), risk.weights
    check_second_derivatives(risk, "hessian")
    with (
        freed_memory_kept(),
        risk.undisturbed(),
        double_backward_errors(),
        progress.bar("projection (examples)", n) as advance,
    ):
        gradient = torch.empty(n, dim, dtype=torch.float64)
        curved = torch.empty(n, dim, dim, dtype=torch.float64)
        together, size = _choose(risk, basis)
        for start in range(0, n, size):
            stop = min(start + size, n)
            batch = risk._read(start, stop)
            if together:
                gradient[start:stop], curved[start:stop] = _project_together(risk, batch, stop - start, basis)
            else:
                gradient[start], curved[start] = _project_one(risk, batch, basis)
            advance(stop - start)
    if not bool(curved.isfinite().all() and gradient.isfinite().all()):
        raise ValueError("a projected derivative is not finite; the loss has no finite second derivative at w*")
    return ProjectedSample(loss, weight, gradient, (curved + curved.mT) / 2, risk.digests())


@freed_memory_kept()
def mean_projection(risk: EmpiricalRisk, subspace: Subspace) -> ProjectedSample:
    """The risk itself as one projected example: ``L_k``, ``U^T g^(k)``, ``U^T H^(k) U``, and the total weight.

    In the Hessian eigenspace of this very risk the last is ``diag(lambda)`` and costs no product.
    """
    basis = _basis_for(risk, subspace)
    if subspace.origin == "hessian" and subspace.eigenvalues is not None and subspace.risk_key == risk.key():
        curved = torch.diag(subspace.eigenvalues)
    else:
        columns = range(0, subspace.dim, _BLOCK)
        products = [inner(basis.T, hessian(risk) @ basis[:, i : i + _BLOCK]) for i in columns]
        curved = torch.cat(products, dim=1).cpu()
    slope = quick_inner(basis.T, risk.gradient())  # first: the losses come with it
    return ProjectedSample(
        torch.tensor([risk.value()], dtype=torch.float64),
        torch.tensor([risk.total_weight], dtype=torch.float64),
        slope[None],
        ((curved + curved.T) / 2)[None],
    )


def _basis_for(risk: EmpiricalRisk, subspace: Subspace) -> Tensor:
    if not isinstance(subspace, Subspace):
        raise TypeError(
            f"subspace is a {type(subspace).__name__}; expected a Subspace: use Subspace.from_basis(tensor)"
        )
    if subspace.num_params != risk.num_params:
        raise ValueError(
            f"the subspace lives in {subspace.num_params} parameters and the risk has {risk.num_params}; "
            "make it from a risk with the same params="
        )
    return subspace.basis.to(device=risk.device, dtype=risk.dtype)


def _project_one(risk: EmpiricalRisk, batch: Batch, basis: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) and (D, D) of a single example, by double backward on one first-order graph."""
    leaves = risk.leaves()
    loss_sum, weight = risk.batch_losses(leaves, batch, 1)
    gradients = risk.first_order((loss_sum / weight).sum(), leaves, create_graph=True)
    slope = quick_inner(basis.T, risk.flatten(gradients))
    products = along(risk, gradient_derivative(leaves, gradients), 1)(basis)
    block, curved = torch.empty_like(basis.T[:_BLOCK]), []  # memory of its own: fresh memory takes as long as the sums
    for start in range(0, basis.shape[1], _BLOCK):
        held = block[: basis.shape[1] - start]
        for row in held:
            row.copy_(next(products))
        curved.append(quick_inner(held, basis))
    return slope.cpu(), torch.cat(curved).cpu()


def _project_together(risk: EmpiricalRisk, batch: Batch, rows: int, basis: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, D) and (rows, D, D), by vmap over examples of forward-over-reverse products."""
    params = {name: p.detach() for name, p in risk.leaves().items()}

    def loss_of(at: dict[str, Tensor], example: Batch) -> Tensor:
        alone = pytree.tree_map(lambda t: t.unsqueeze(0), example)
        loss_sum, weight = risk.batch_losses(at, alone, 1)
        return (loss_sum / weight)[0]

    bases = {name: torch.stack([part.reshape(-1) for part in parts]) for name, parts in _columns(risk, basis).items()}

    def contract(parts: dict[str, Tensor]) -> Tensor:
        """Inner products (rows, D) of the examples' vectors, given by parameter, with the basis."""
        total = torch.zeros(rows, basis.shape[1], dtype=torch.float64, device=basis.device)
        for name, part in parts.items():
            total += quick_inner(part.reshape(rows, -1), bases[name].T)
        return total

    gradient: Callable[..., dict[str, Tensor]] = grad(loss_of)
    slope = contract(vmap(gradient, in_dims=(None, 0))(params, batch))
    curved = []
    for column in basis.T:
        tangent = risk.split(column.contiguous())

        def product(example: Batch, tangent: dict[str, Tensor] = tangent) -> Any:
            return jvp(lambda at: gradient(at, example), (params,), (tangent,))[1]

        curved.append(contract(vmap(product)(batch)))
    return slope.cpu(), torch.stack(curved, dim=1).cpu()


def _columns(risk: EmpiricalRisk, basis: Tensor) -> dict[str, list[Tensor]]:
    """The basis vectors as tensors of the parameters' shapes, by parameter."""
    columns = [risk.split(column.contiguous()) for column in basis.T]
    return {name: [column[name] for column in columns] for name in risk.param_names}


def _choose(risk: EmpiricalRisk, basis: Tensor) -> tuple[bool, int]:
    """Whether to differentiate examples together, and how many at a time."""
    if risk.footprint.activation > _TOGETHER_BYTES or len(risk) == 1:
        return False, 1
    per_example = 4 * risk.num_params * risk.dtype.itemsize + risk.footprint.example
    size = min(len(risk), max(1, _TOGETHER_BUDGET // per_example), risk.microbatch_size)
    if size == 1:
        return False, 1
    few = basis[:, : min(3, basis.shape[1])]
    slope, curved = _project_one(risk, risk._read(0, 1), few)
    try:
        with risk.undisturbed(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, on the first use of forward mode
            slopes, curves = _project_together(risk, risk._read(0, 2), 2, few)
    except Exception:  # an operation or model without batching rules, whatever it raises: one by one works
        return False, 1
    tolerance = 1e-3 if risk.dtype == torch.float32 else 1e-8
    agree = torch.allclose(slopes[0], slope, rtol=tolerance, atol=tolerance * float(slope.abs().max()))
    agree &= torch.allclose(curves[0], curved, rtol=tolerance, atol=tolerance * float(curved.abs().max()))
    return (True, size) if agree else (False, 1)
