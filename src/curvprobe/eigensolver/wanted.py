"""Which eigenpairs are wanted, and when they are good enough."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

from curvprobe.eigensolver.krylov import KrylovBasis
from curvprobe.errors import ArgumentError

Which = Literal["algebraic", "magnitude", "smallest"]

RELATIVE_TO: dict[Which, str] = {
    "algebraic": "the first eigenvalue",
    "magnitude": "the first eigenvalue",
    "smallest": "the largest eigenvalue in magnitude",
}
"""What residuals are told relative to."""

CROWDING = 0.02
"""A residual must also be below this fraction of the last wanted eigenvalue (or of the tolerance, where that is more):
relative to the first alone, vectors of the wrong eigenvalues pass when the spectrum is crowded at the cut."""

FLOOR = 50
"""A residual below this many units of rounding of the largest eigenvalue cannot be improved."""

IN_HAND = 0.98
"""Part of the bound at which the iteration stops: the certificate may add a little to the residuals."""


def check_wanted(num_params: int, dim: int, which: Which, tol: float) -> None:
    """Refuse a request that makes no sense, before any work."""
    if which not in get_args(Which):
        raise ArgumentError(f"which is {which!r}; expected one of {list(get_args(Which))}")
    if not isinstance(dim, Integral) or not 1 <= dim <= num_params:
        raise ArgumentError(f"dim is {dim!r}; expected a whole number from 1 to the number of parameters, {num_params}")
    if not 0 < tol < 1:
        raise ArgumentError(f"tol is {tol!r}; expected a number between 0 and 1, relative to the first eigenvalue")


@dataclass(frozen=True)
class Wanted:
    """The first ``dim`` eigenpairs by ``which``, to a tolerance relative to the first eigenvalue."""

    dim: int
    which: Which
    tol: float

    def merit(self, values: Tensor) -> Tensor:
        """A number for each eigenvalue that is the larger the more it is wanted."""
        return {"algebraic": values, "magnitude": values.abs(), "smallest": -values}[self.which]

    def order(self, values: Tensor) -> Tensor:
        """Positions of the eigenvalues, the most wanted first."""
        return self.merit(values).argsort(descending=True, stable=True)

    def ritz(self, basis: KrylovBasis) -> tuple[Tensor, Tensor]:
        """All Ritz values of a basis, the most wanted first, and the coefficients of their vectors."""
        values, coefficients = basis.ritz()
        order = self.order(values)
        return values[order], coefficients[:, order]

    def scale(self, values: Tensor, basis: KrylovBasis) -> float:
        """What residuals are relative to: the first eigenvalue; for the smallest ones, the largest in magnitude.

        However small the first one is: where it drowns in the rounding of larger ones at the other end of the
        spectrum, its residual is large relative to it, and it is not certified.
        """
        return max(basis.largest if self.which == "smallest" else float(values[0].abs()), 1e-300)

    def bound(self, values: Tensor, basis: KrylovBasis) -> float:
        """Residual norm that the tolerance allows."""
        return max(self.tol * self.scale(values, basis), self.rounding(basis))

    def crowded_bound(self, values: Tensor, eigenvalue: float, basis: KrylovBasis) -> float:
        """Residual norm that is small in the spectrum around ``eigenvalue`` too."""
        absolute = self.tol * self.scale(values, basis)
        crowded = min(absolute, CROWDING * max(abs(eigenvalue), absolute))
        return max(crowded, self.rounding(basis))

    def rounding(self, basis: KrylovBasis) -> float:
        """Residual norm that rounding alone leaves."""
        return FLOOR * basis.epsilon * basis.largest

    def settled(self, basis: KrylovBasis) -> bool:
        """Whether every wanted pair has converged."""
        if basis.count < self.dim:
            return False
        if basis.spans_everything:
            return True
        values, coefficients = self.ritz(basis)
        pending, carried = basis.residual_parts(coefficients[:, : self.dim])
        # What is carried was small at the cut of its time, and is not asked again when the cut moves down.
        crowded = self.crowded_bound(values, float(values[self.dim - 1]), basis)
        small = bool((pending.abs() <= IN_HAND * crowded).all())
        return small and bool((pending.abs() + carried <= self.bound(values, basis)).all())

    def good(self, values: Tensor, residuals: Tensor, basis: KrylovBasis) -> Tensor:
        """Of pairs that have not all settled, the leading ones that are good, each at its own eigenvalue; bool."""
        crowded = [self.crowded_bound(values, float(value), basis) for value in values]
        small = residuals <= torch.tensor(crowded, dtype=torch.float64, device="cpu")
        return (small & (residuals <= self.bound(values, basis))).to(torch.int8).cumprod(0).bool()
