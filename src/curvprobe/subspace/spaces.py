"""The directions that are probed: a subspace of parameter space, and an eigenspace with its certificates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.numerics.linalg import inner, rotate, straightening
from curvprobe.numerics.space import Space
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.runtime.digest import digest
from curvprobe.runtime.plain import brief

Matrix = Literal["hessian", "ggn", "gradient covariance"]
"""Matrices that an eigenspace may belong to."""

NEARLY = 1e-2
"""Largest entry of ``U^T U - I`` that is taken for rounding, in bases that were made orthonormal in low precision."""

ROUNDING = 10
"""Units of rounding that a basis may be off without being touched."""

STRAIGHTENINGS = 3
"""Of a basis that is off by more: from 1e-2 to 1e-13."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """A D-dimensional subspace of parameter space, by an orthonormal basis.

    Attributes:
        basis: (N, D), orthonormal columns, in the dtype of the risk; the rows (n, D) that this process holds, where
            several divide them.
        space: in which the vectors lie, where this process holds some coordinates only; else None.
    """

    basis: Tensor
    space: Space | None = field(default=None, kw_only=True, repr=False)

    __repr__ = brief

    @property
    def dim(self) -> int:
        """D."""
        return self.basis.shape[1]

    @property
    def num_params(self) -> int:
        """N."""
        return self.basis.shape[0] if self.space is None else self.space.size

    # Where several processes hold the coordinates, each of the next is to be called by all of them.

    def columns(self, which: slice | Sequence[int] = slice(None)) -> Tensor:
        """All coordinates (N, b) of some of the basis vectors."""
        columns = self.basis[:, which]
        return columns if self.space is None else self.space.whole(columns)

    def at(self, z: Tensor) -> Tensor:
        """The point ``U z`` (N,) of coordinates (D,), or points (N, S) of columns (D, S); all their coordinates."""
        point = self.basis @ z.to(device=self.basis.device, dtype=self.basis.dtype)
        return point if self.space is None else self.space.whole(point)

    def inner(self, other: Subspace) -> Tensor:
        """Inner products ``U^T V`` (D, D'), float64, with the basis vectors of another one, which are divided alike."""
        return (self.space or Space(self.num_params)).inner(self.basis.T, other.basis)

    def key(self) -> str:
        """Hash of the basis, whatever number of processes holds it."""
        flat = None if self.space is None else self.space.gathered
        columns = (self.basis[:, i] for i in range(self.dim))
        return digest([digest(column if flat is None else flat(column)) for column in columns])

    def truncate(self, dim: int) -> Subspace:
        """The span of the first ``dim`` basis vectors."""
        self._check_truncation(dim)
        return self if dim == self.dim else Subspace(self.basis[:, :dim], space=self.space)

    def _check_truncation(self, dim: int) -> None:
        if not 1 <= dim <= self.dim:
            raise ArgumentError(f"dim is {dim}; expected 1 to {self.dim}")

    @classmethod
    def from_basis(cls, basis: Tensor) -> Subspace:
        """A subspace from your own orthonormal basis (N, D).

        What rounding leaves of one column in another, 3e-4 after a QR decomposition of ten million rows in float32, is
        taken out; the span stays what it is.

        Raises:
            ValueError: if the columns are not orthonormal; ``torch.linalg.qr(basis).Q`` makes them so.

        Example:
            >>> import torch
            >>> Subspace.from_basis(torch.eye(5)[:, :2]).dim
            2
        """
        if not isinstance(basis, Tensor) or basis.dim() != 2 or not basis.is_floating_point():
            raise ArgumentTypeError("the basis must be a floating-point tensor of shape (N, D)")
        if not 1 <= basis.shape[1] <= basis.shape[0]:
            raise ArgumentError(f"the basis has shape {tuple(basis.shape)}; expected (N, D) with 1 <= D <= N")
        rows = basis.detach().T
        identity = torch.eye(len(rows), dtype=torch.float64, device=rows.device)
        error = float((inner(rows, rows.T) - identity).abs().max())
        if not error < NEARLY:
            raise ArgumentError(
                f"the basis is not orthonormal: U^T U differs from the identity by {error:.1e}; "
                "pass torch.linalg.qr(basis).Q"
            )
        if error > ROUNDING * torch.finfo(basis.dtype).eps:
            rows = rows.clone()
            for _ in range(STRAIGHTENINGS):
                rotate(rows, straightening(rows))
        return cls(basis=rows.T)


@dataclass(frozen=True, eq=False)
class Eigenspace(Subspace):
    """The leading eigenspace of a curvature, with certificates.

    Attributes:
        basis: (N, D), orthonormal columns, in the dtype of the risk; the rows that this process holds of them.
        eigenvalues: float64 (D,), signed, the leading one first.
        residuals: float64 (D,), certified bounds on ``|A u - lambda u| / |lambda_1|`` (for "smallest" over
            the largest magnitude), see :class:`Eigenpairs`.
        converged: bool (D,).
        matrix: A: "hessian", "ggn", or the "gradient covariance" of the examples.
        risk_key: hash of the risk that the matrix belongs to.
        num_matvecs: products used to find it, all of them.
        num_search_matvecs: those of them that searched for missed copies of repeated eigenvalues.
        next_eigenvalue: estimate of the first eigenvalue left out; NaN when unknown.
        cut_decided: whether that one is behind the last by more than the last's residual: else which of the two belongs
            to the D leading ones is in doubt.
    """

    eigenvalues: Tensor
    residuals: Tensor
    converged: Tensor
    matrix: Matrix
    risk_key: str
    num_matvecs: int
    num_search_matvecs: int
    next_eigenvalue: float = math.nan
    cut_decided: bool = True

    __repr__ = brief

    def truncate(self, dim: int) -> Eigenspace:
        """The eigenspace of the first ``dim`` eigenvalues."""
        self._check_truncation(dim)
        if dim == self.dim:
            return self
        return replace(
            self,
            basis=self.basis[:, :dim],
            eigenvalues=self.eigenvalues[:dim],
            residuals=self.residuals[:dim],
            converged=self.converged[:dim],
            next_eigenvalue=float(self.eigenvalues[dim]),
            cut_decided=self._decided(dim),
        )

    def _decided(self, dim: int) -> bool:
        gap = abs(float(self.eigenvalues[dim - 1] - self.eigenvalues[dim]))
        return gap > float(self.residuals[dim - 1]) * abs(float(self.eigenvalues[0]))


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
    expect_risk(risk)
    if not 1 <= dim <= risk.num_params:
        raise ArgumentError(f"dim is {dim}; expected 1 to the number of parameters, {risk.num_params}")
    generator, space = torch.Generator().manual_seed(seed), risk.probed.vectors
    rows = torch.empty(dim, space.held, dtype=risk.dtype, device=risk.device)
    for count in range(dim):
        direction = risk.probed.draw(generator)
        space.orthogonalise(direction, rows[:count])
        rows[count] = direction / space.norm(direction)
    return Subspace(rows.T, space=space if space.stays else None)
