"""The subspace that is probed, and the ways to get one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from curvprobe.checkpoint import Checkpoint
from curvprobe.convergence import Which
from curvprobe.curvature import CurvatureMatrix
from curvprobe.eigensolver import Eigenpairs, lanczos
from curvprobe.examples import digest
from curvprobe.linalg import inner, norm, orthogonalise
from curvprobe.linearisation import Kind
from curvprobe.risk import EmpiricalRisk


@dataclass(frozen=True, eq=False)
class Subspace:
    """A D-dimensional subspace of parameter space, by an orthonormal basis.

    Attributes:
        basis: (N, D), orthonormal columns, in the dtype of the risk.
        origin: how it was made: "hessian", "ggn", "deformation", "random", "gradients" or "given".
        eigenvalues: float64 (D,), signed, the leading one first; None unless it is an eigenspace.
        residuals: float64 (D,), certified bounds on ``|H u - lambda u| / |lambda_1|``, see :class:`Eigenpairs`; None
            unless an eigenspace.
        converged: bool (D,); None unless an eigenspace.
        num_matvecs: curvature products used to find it, all of them.
        num_search_matvecs: those of them that searched for missed copies of repeated eigenvalues.
        next_eigenvalue: estimate of the first eigenvalue left out; NaN when unknown.
        risk_key: hash of the risk whose curvature it belongs to; None unless an eigenspace.
    """

    basis: Tensor
    origin: str = "given"
    eigenvalues: Tensor | None = None
    residuals: Tensor | None = None
    converged: Tensor | None = None
    num_matvecs: int = 0
    num_search_matvecs: int = 0
    next_eigenvalue: float = float("nan")
    risk_key: str | None = None

    @property
    def dim(self) -> int:
        """D."""
        return self.basis.shape[1]

    @property
    def num_params(self) -> int:
        """N."""
        return self.basis.shape[0]

    def truncate(self, dim: int) -> Subspace:
        """The span of the first ``dim`` basis vectors."""
        if not 1 <= dim <= self.dim:
            raise ValueError(f"dim is {dim}; expected 1 to {self.dim}")
        if dim == self.dim:
            return self
        cut = {
            name: None if value is None else value[:dim]
            for name, value in (
                ("eigenvalues", self.eigenvalues),
                ("residuals", self.residuals),
                ("converged", self.converged),
            )
        }
        following = float("nan") if self.eigenvalues is None else float(self.eigenvalues[dim])
        return replace(self, basis=self.basis[:, :dim], next_eigenvalue=following, **cut)  # type: ignore[arg-type]

    @classmethod
    def from_basis(cls, basis: Tensor) -> Subspace:
        """A subspace from your own orthonormal basis (N, D).

        Raises:
            ValueError: if the columns are not orthonormal; ``torch.linalg.qr(basis).Q`` makes them so.

        Example:
            >>> import torch
            >>> Subspace.from_basis(torch.eye(5)[:, :2]).dim
            2
        """
        if not isinstance(basis, Tensor) or basis.dim() != 2 or not basis.is_floating_point():
            raise TypeError("the basis must be a floating-point tensor of shape (N, D)")
        if not 1 <= basis.shape[1] <= basis.shape[0]:
            raise ValueError(f"the basis has shape {tuple(basis.shape)}; expected (N, D) with 1 <= D <= N")
        identity = torch.eye(basis.shape[1], dtype=torch.float64, device=basis.device)
        error = float((inner(basis.T, basis) - identity).abs().max())
        if not error < 1e-4:
            raise ValueError(
                f"the basis is not orthonormal: U^T U differs from the identity by {error:.1e}; "
                "pass torch.linalg.qr(basis).Q"
            )
        return cls(basis=basis.detach())


def top_eigenspace(
    risk: EmpiricalRisk,
    dim: int = 10,
    *,
    which: Which = "algebraic",
    curvature: Kind = "hessian",
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    seed: int = 0,
    start: Subspace | None = None,
    checkpoint: str | Path | None = None,
    compile: bool = False,  # noqa: A002 - torch's word
) -> Subspace:
    r"""Leading eigenspace of the curvature of an empirical risk, with certificates.

    .. math:: H^{(k)} u_i = \lambda_i u_i, \qquad i = 1, \dots, D

    Args:
        risk: the empirical risk.
        dim: number of eigenpairs D.
        which: "algebraic" (largest), "magnitude" (largest absolute value) or "smallest" (most negative).
        curvature: "hessian" or "ggn".
        tol: bound on the residuals relative to ``|lambda_1|``.
        max_matvecs: budget of curvature products; None is generous.
        seed: of the solver's random vectors.
        start: a subspace near the wanted one, such as that of a slightly smaller sample.
        checkpoint: file for the solver's state, written every minute or so, when ``max_matvecs`` is used up and when
            the computation is interrupted; the next call for the same risk and arguments goes on from there, also with
            a larger ``max_matvecs`` or another ``tol``.
        compile: compile the Hessian product, see :func:`hessian`.

    Returns:
        The subspace with signed eigenvalues, certified residuals and ``converged`` flags. The work keeps to the
        risk's ``memory_budget``: by smaller microbatches, then by fewer basis vectors, then (for a model on an
        accelerator) with the basis in host memory.

    Raises:
        ValueError: for arguments that make no sense, or an operation without a second derivative.
        Warns ConvergenceWarning when a residual is above the tolerance.

    Source: thick-restart Lanczos, see :func:`curvprobe.lanczos`.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> x = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, torch.zeros(3, 1)))
        >>> cp.top_eigenspace(risk, dim=2).eigenvalues.round(decimals=4)
        tensor([6.0000, 2.6667], dtype=torch.float64)
    """
    if curvature not in get_args(Kind):
        raise ValueError(f"curvature is {curvature!r}; expected one of {list(get_args(Kind))}")
    if start is not None and (not isinstance(start, Subspace) or start.num_params != risk.num_params):
        raise ValueError(f"start is {start!r:.80}; expected a Subspace of {risk.num_params} parameters")
    slim, basis_size, device = plan_memory(risk, dim)
    matrix = CurvatureMatrix(slim, curvature, compile)
    pairs = lanczos(
        lambda block: matrix @ block,
        risk.num_params,
        dim=dim,
        which=which,
        tol=tol,
        max_matvecs=max_matvecs,
        seed=seed,
        dtype=risk.dtype,
        device=device,
        start=None if start is None else start.basis[:, :basis_size],
        basis_size=basis_size,
        checkpoint=None
        if checkpoint is None
        else Checkpoint(Path(checkpoint), digest([risk.key(), curvature, dim, which, seed])),
    )
    return spanned(pairs, curvature, risk)


def spanned(pairs: Eigenpairs, origin: str, risk: EmpiricalRisk) -> Subspace:
    """The eigenspace that the solver found of a matrix of the risk's."""
    return Subspace(
        basis=pairs.vectors,
        origin=origin,
        eigenvalues=pairs.eigenvalues,
        residuals=pairs.residuals,
        converged=pairs.converged,
        num_matvecs=pairs.num_matvecs,
        num_search_matvecs=pairs.num_search_matvecs,
        next_eigenvalue=pairs.next_eigenvalue,
        risk_key=risk.key(),
    )


def plan_memory(risk: EmpiricalRisk, dim: int) -> tuple[EmpiricalRisk, int | None, torch.device]:
    """The risk in microbatches that leave room for a basis, the basis's size, and the device it lies on."""
    if not isinstance(dim, Integral) or not 1 <= dim <= risk.num_params:
        return risk, None, risk.device  # refused by the solver
    vector = risk.num_params * risk.dtype.itemsize
    for extra in (math.ceil(dim / 2) + 10, 10):
        size = min(risk.num_params, int(dim) + extra)
        needed = (size + int(dim) + 5) * vector  # with the result, the risk's gradient, and vectors in flight
        if needed <= risk.memory_budget - risk.footprint.least:
            return risk.with_room(risk.memory_budget - needed), size, risk.device
    if risk.device.type != "cpu":
        return risk, None, torch.device("cpu")
    if risk.given_memory_budget is not None:
        raise ValueError(
            f"memory_budget is {risk.memory_budget} bytes; {dim} eigenvectors of {risk.num_params} parameters need at "
            f"least {needed + risk.footprint.least}: allow that much, lower dim, or probe fewer parameters with params="
        )
    return risk.with_room(0), size, risk.device


def random_subspace(risk: EmpiricalRisk, dim: int, *, seed: int = 0) -> Subspace:
    """A uniformly random subspace: the null against which every special subspace should be held.

    Args:
        risk: gives N, dtype and device.
        dim: D.
        seed: of the draw.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(3, 1)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.ones(2, 3), torch.zeros(2, 1)))
        >>> cp.random_subspace(risk, 2).basis.shape
        torch.Size([4, 2])
    """
    if not 1 <= dim <= risk.num_params:
        raise ValueError(f"dim is {dim}; expected 1 to the number of parameters, {risk.num_params}")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(risk.num_params, dim, generator=generator, dtype=risk.dtype)
    return Subspace(basis=torch.linalg.qr(draws.to(risk.device)).Q, origin="random")


def gradient_subspace(risk: EmpiricalRisk) -> Subspace:
    """The span of the gradients of a few examples; pass a selection such as ``risk[:10]``.

    Directions whose share of the gradients is below rounding are left out, so D may be smaller than ``len(risk)``.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.eye(3), torch.full((3, 1), 9.0)))
        >>> cp.gradient_subspace(risk[:2]).basis.abs()
        tensor([[1., 0.],
                [0., 1.],
                [0., 0.]])
    """
    if len(risk) > risk.num_params:
        raise ValueError(f"{len(risk)} gradients of {risk.num_params} parameters; select fewer examples: risk[:D]")
    rows = torch.empty(len(risk), risk.num_params, dtype=risk.dtype, device=risk.device)
    count, largest = 0, 0.0
    for i in range(len(risk)):
        direction = risk[[i]].gradient()
        largest = max(largest, norm(direction))
        orthogonalise(direction, rows[:count])
        left = norm(direction)
        if left > 100 * torch.finfo(risk.dtype).eps * largest:  # a dependent gradient leaves rounding only
            rows[count] = direction / left
            count += 1
    if count == 0:
        raise ValueError("all these gradients are zero; they span nothing")
    return Subspace(basis=rows[:count].T, origin="gradients")
