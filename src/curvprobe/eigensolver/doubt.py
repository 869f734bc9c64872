"""Why eigenpairs are not certified, and what to do about it."""

from __future__ import annotations

import warnings

from torch import Tensor

from curvprobe.eigensolver.krylov import KrylovBasis
from curvprobe.eigensolver.wanted import FLOOR, Wanted

SMALL = 0.1
"""Part of the largest eigenvalue's magnitude below which a first one is small beside it."""


class ConvergenceWarning(UserWarning):
    """An eigenvalue computation stopped before every residual was small enough."""


def reason(wanted: Wanted, basis: KrylovBasis, budget: int, *, complete: bool, pushed_out: bool) -> str:
    """In words.

    Args:
        wanted: which eigenpairs were.
        basis: that they were found in.
        budget: products that were allowed.
        complete: whether all phases came to their end.
        pushed_out: whether an eigenvalue was seen outside that is more wanted than the last one found.
    """
    kind, floor = str(basis.rows.dtype).split(".")[-1], FLOOR * basis.epsilon
    if not complete:
        return f"{basis.num_matvecs} of max_matvecs = {budget} products were used; allow more, or lower dim"
    if pushed_out:
        return (
            "an eigenvalue outside is more wanted than the last one found, by more than its residual; take another "
            "dim, or a smaller tol"
        )
    scale, largest = wanted.scale(wanted.ritz(basis)[0], basis), basis.largest
    if wanted.tol * scale < wanted.rounding(basis) and scale < SMALL * largest:
        return (
            f"the first eigenvalue is {scale:.1e} in magnitude and the largest, at the other end of the spectrum, "
            f'{largest:.1e}, in whose rounding it drowns; use float64, or which="magnitude"'
        )
    if wanted.tol < floor:
        return f"tol = {wanted.tol:g} is below what {kind} can reach, about {floor:.0e}; use float64 or a larger tol"
    return f"the products are too noisy for tol = {wanted.tol:g}; use float64 or a larger tol"


def warn(converged: Tensor, residuals: Tensor, relative_to: str, why: str) -> None:
    """Say how many pairs are certified, and why not all."""
    warnings.warn(
        f"{int(converged.sum())} of {len(converged)} eigenpairs converged, largest residual "
        f"{float(residuals.max()):.1e} relative to {relative_to}: {why}",
        ConvergenceWarning,
        stacklevel=6,
    )
