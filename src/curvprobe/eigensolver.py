"""Certified extreme eigenpairs of a symmetric matrix that is known by its products; knows nothing of models.

Thick-restart Lanczos with two-pass full re-orthogonalisation. The small matrix is the exact projection
``Q^T A Q`` taken from the orthogonalisation coefficients, so its eigenvalues are signed Rayleigh-Ritz values
whatever the basis has been through. After convergence a random probe, deflated against what was found, looks
for missing copies of repeated eigenvalues, which a single-vector method cannot see; and the residuals of the
result are recomputed with true products.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

from curvprobe import progress
from curvprobe.linalg import inner, norm, rotate, subtract_combination

Which = Literal["algebraic", "magnitude", "smallest"]
MatMul = Callable[[Tensor], Tensor]

CROWDING = 0.02
"""A residual must also be below this fraction of the last wanted eigenvalue (or of the tolerance, where that is more):
relative to the first alone, vectors of the wrong eigenvalues pass when the spectrum is crowded at the cut."""

PROBE_STEPS = 12
"""Products of the deflated probe at the least: 2-4 usually find a missing copy, 12 did for every seed tried; more, as
far as the basis has room, while the best value outside may still belong inside."""

FLOOR = 50
"""A residual below this many units of rounding of the largest eigenvalue cannot be improved."""


class ConvergenceWarning(UserWarning):
    """An eigenvalue computation stopped before every residual was small enough."""


@dataclass(frozen=True)
class Eigenpairs:
    """Extreme eigenpairs of a symmetric matrix A, the most wanted first.

    Attributes:
        eigenvalues: float64 (D,), signed: descending for "algebraic", by descending magnitude for "magnitude",
            ascending for "smallest".
        vectors: (N, D), orthonormal columns.
        residuals: float64 (D,), ``|A u - lambda u| / scale``, by true products; scale is ``|lambda_1|``
            (for "smallest", the largest magnitude seen in the whole spectrum).
        converged: bool (D,): the pair and all before it meet the tolerance; never the last one before the search for
            missed copies is complete.
        num_matvecs: products used, with those of the probe and of the final residuals.
        next_eigenvalue: estimate of the first eigenvalue left out (NaN when there is none).
    """

    eigenvalues: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    num_matvecs: int
    next_eigenvalue: float


def lanczos(
    matmul: MatMul,
    num_params: int,
    *,
    dim: int = 10,
    which: Which = "algebraic",
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Eigenpairs:
    r"""Extreme eigenpairs of a symmetric matrix A by thick-restart Lanczos.

    .. math:: A u_i = \lambda_i u_i, \qquad |A u_i - \lambda_i u_i| \le tol \cdot |\lambda_1|

    Args:
        matmul: maps a block (N, b) to ``A @ block``; A symmetric.
        num_params: N.
        dim: number of eigenpairs D.
        which: "algebraic" (largest first), "magnitude" (largest absolute value) or "smallest" (most negative).
        tol: bound on the residuals relative to ``|lambda_1|``.
        max_matvecs: budget of products, those for the final residuals included; None is ``max(1000, 50 * dim)``.
        seed: of the start vector and of the probe.
        dtype, device: of the basis; sums and small matrices are float64.

    Returns:
        The eigenpairs with residuals and flags. When the budget ends first, the best pairs so far, and a
        :class:`ConvergenceWarning`.

    Raises:
        ValueError: for a dim, tolerance or budget that makes no sense, or products that are not finite.

    Source: Wu & Simon (2000), "Thick-restart Lanczos method for large symmetric eigenvalue problems".

    Example:
        >>> import torch
        >>> diagonal = torch.tensor([10.0, -9.0, 8.0, 8.0, 1.0, 0.5], dtype=torch.float64)
        >>> pairs = lanczos(lambda block: diagonal[:, None] * block, 6, dim=3, tol=1e-8, dtype=torch.float64)
        >>> [round(value, 6) for value in pairs.eigenvalues.tolist()]
        [10.0, 8.0, 8.0]
    """
    if which not in get_args(Which):
        raise ValueError(f"which is {which!r}; expected one of {list(get_args(Which))}")
    if not isinstance(dim, Integral) or not 1 <= dim <= num_params:
        raise ValueError(f"dim is {dim!r}; expected a whole number from 1 to the number of parameters, {num_params}")
    if not 0 < tol < 1:
        raise ValueError(f"tol is {tol!r}; expected a number between 0 and 1, relative to the first eigenvalue")
    budget = max(1000, 50 * dim) if max_matvecs is None else max_matvecs
    if budget < dim:
        raise ValueError(f"max_matvecs is {max_matvecs}; expected at least dim = {dim} products")
    solver = _Lanczos(matmul, num_params, dim, which, tol, budget, seed, dtype, torch.device(device))
    with progress.bar("eigenspace (products)") as advance:
        return solver.run(advance)


class _Lanczos:
    """The state of one computation: basis rows, their projected matrix, and what the basis does not capture.

    ``A Q = Q T + r e_last^T + C``: ``r`` is the pending residual, orthogonal to the basis; column norms of ``C``
    are bounded by ``carried``, which is zero except after the probe's vectors have been merged in.
    """

    def __init__(
        self,
        matmul: MatMul,
        num_params: int,
        dim: int,
        which: Which,
        tol: float,
        budget: int,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.matmul, self.dim, self.which, self.budget = matmul, dim, which, budget
        self.size = num_params
        self.rows_max = min(num_params, math.ceil(1.5 * dim) + 10)
        self.basis = torch.empty(self.rows_max, num_params, dtype=dtype, device=device)
        self.projected = torch.zeros(self.rows_max, self.rows_max, dtype=torch.float64)
        self.carried = torch.zeros(self.rows_max, dtype=torch.float64)
        self.rows = 0
        self.pending: Tensor | None = None
        self.pending_norm = 0.0
        self.num_matvecs = 0
        self.largest = 0.0
        self.epsilon = torch.finfo(dtype).eps
        self.tol = tol
        self.searched = False
        self.left_out = torch.empty(0, dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(seed)

    # ---- one step ----------------------------------------------------------------------------------------------

    def random_vector(self) -> Tensor:
        vector = torch.randn(self.size, generator=self.generator, dtype=torch.float64)
        return vector.to(dtype=self.basis.dtype, device=self.basis.device)

    def product(self, vector: Tensor) -> Tensor:
        self.num_matvecs += 1
        result = self.matmul(vector[:, None])
        if result.shape != (self.size, 1):
            raise ValueError(f"matmul returned shape {tuple(result.shape)} for ({self.size}, 1); expected the same")
        result = result[:, 0].to(self.basis.dtype)
        if not bool(result.isfinite().all()):
            raise ValueError("matmul returned values that are not finite for a finite vector")
        return result.clone()

    def orthogonalise(self, vector: Tensor) -> Tensor:
        """Take the basis out of ``vector``, in place, twice; returns the coefficients (rows,)."""
        rows = self.basis[: self.rows]
        total = torch.zeros(self.rows, dtype=torch.float64, device=vector.device)
        for _ in range(2):
            coefficients = inner(rows, vector)
            subtract_combination(vector, rows, coefficients)
            total += coefficients
        return total

    def next_direction(self) -> Tensor:
        """The pending residual, or a random vector where the basis spans an invariant subspace."""
        if self.pending is not None and self.pending_norm > 10 * self.epsilon * self.largest:
            return self.pending
        return self.random_vector()

    def expand(self, direction: Tensor) -> None:
        """Add a direction to the basis, and its product to the projected matrix."""
        for _ in range(3):  # a random or tiny direction may lie almost inside the basis
            before = norm(direction)
            direction = direction / before if before > 0 else self.random_vector()
            self.orthogonalise(direction)
            if norm(direction) > 0.1:
                break
            if before == 0 or norm(direction) < 1e-3:
                direction = self.random_vector()
        direction /= norm(direction)
        self.basis[self.rows] = direction
        self.rows += 1
        residual = self.product(self.basis[self.rows - 1])
        self.largest = max(self.largest, norm(residual))
        coefficients = self.orthogonalise(residual).cpu()
        last = self.rows - 1
        self.projected[last, : self.rows] = self.projected[: self.rows, last] = coefficients
        self.carried[last] = 0.0
        self.pending, self.pending_norm = residual, norm(residual)

    # ---- the projected problem ---------------------------------------------------------------------------------

    def merit(self, values: Tensor) -> Tensor:
        """A number for each eigenvalue that is the larger the more it is wanted."""
        return {"algebraic": values, "magnitude": values.abs(), "smallest": -values}[self.which]

    def order(self, values: Tensor) -> Tensor:
        return self.merit(values).argsort(descending=True, stable=True)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values, most wanted first; coefficients of their vectors; estimated residual norms."""
        values, coefficients = torch.linalg.eigh(self.projected[: self.rows, : self.rows])
        self.largest = max(self.largest, float(values.abs().max()))
        order = self.order(values)
        values, coefficients = values[order], coefficients[:, order]
        pending = 0.0 if self.rows == self.size else self.pending_norm
        estimates = pending * coefficients[-1].abs() + self.carried_to(coefficients)
        return values, coefficients, estimates

    def carried_to(self, coefficients: Tensor) -> Tensor:
        """What ``carried`` amounts to in combinations of the basis vectors, the directions being unrelated."""
        return (self.carried[: self.rows].square() @ coefficients.square()).sqrt()

    def scale(self, values: Tensor) -> float:
        """What residuals are relative to: the first eigenvalue, unless it vanishes or lies at the wrong end."""
        first = float(values[0].abs())
        usable = self.which != "smallest" and first > math.sqrt(self.epsilon) * self.largest
        return max(first if usable else self.largest, 1e-300)

    def bound(self, values: Tensor) -> float:
        """Residual norm that the tolerance allows."""
        return max(self.tol * self.scale(values), FLOOR * self.epsilon * self.largest)

    def crowded_bound(self, values: Tensor, eigenvalue: float) -> float:
        """Residual norm that is small in the spectrum around ``eigenvalue`` too."""
        absolute = self.tol * self.scale(values)
        crowded = min(absolute, CROWDING * max(abs(eigenvalue), absolute))
        return max(crowded, FLOOR * self.epsilon * self.largest)

    def settled(self) -> bool:
        """Whether every wanted pair has converged."""
        if self.rows < self.dim:
            return False
        if self.rows == self.size:
            return True
        values, coefficients, estimates = self.ritz()
        pending = self.pending_norm * coefficients[-1, : self.dim].abs()
        # What is carried was small at the cut of its time, and is not asked again when the cut moves down.
        # A tenth in hand: the true residuals are computed at the end, and differ a little from the estimates.
        small = bool((pending <= 0.9 * self.crowded_bound(values, float(values[self.dim - 1]))).all())
        return small and bool((estimates[: self.dim] <= 0.9 * self.bound(values)).all())

    def keep(self, count: int) -> None:
        """Replace the basis by its ``count`` most wanted Ritz vectors; the pending residual stays."""
        values, coefficients, _ = self.ritz()
        rotate(self.basis[: self.rows], coefficients[:, :count].to(self.basis.device))
        self.carried[:count] = self.carried_to(coefficients[:, :count])
        self.carried[count:] = 0.0
        self.projected.zero_()
        self.projected[:count, :count] = torch.diag(values[:count])
        self.rows = count

    # ---- the phases --------------------------------------------------------------------------------------------

    def converge(self, budget: int, advance: Callable[[int], None]) -> None:
        """Lanczos steps and restarts until the wanted pairs have settled or the budget is used."""
        while not self.settled() and self.num_matvecs < budget:
            if self.rows == self.rows_max:
                # Half of what lies beyond the wanted vectors is kept: it holds the next eigenvectors, half converged.
                self.keep(self.dim + (self.rows_max - self.dim) // 2)
            self.expand(self.next_direction())
            advance(1)

    def probe(self, budget: int, advance: Callable[[int], None]) -> bool:
        """Search the orthogonal complement of the wanted vectors from a random start; True if it held a wanted one."""
        values, _, estimates = self.ritz()
        wanted = values[: self.dim].clone()
        news = 2 * self.crowded_bound(wanted, float(wanted[-1]))
        self.left_out = values[self.dim : self.dim + 1].clone()
        self.keep(self.dim)
        self.carried[: self.dim] = bounds = estimates[: self.dim]
        direction = self.random_vector()
        for step in range(min(self.rows_max, self.size) - self.dim):
            inside = self.projected[self.dim : self.rows, self.dim : self.rows]
            if step >= PROBE_STEPS and self._clearly_worse(inside, wanted[-1]):
                self.searched = True
                break
            if self.num_matvecs >= budget:
                break
            self.expand(direction)
            advance(1)
            direction = self.next_direction()
            # Rayleigh-Ritz only ever improves the wanted values; second-order gains of settled pairs are no news.
            gains = self.merit(self.ritz()[0][: self.dim]) - self.merit(wanted)
            if float(gains.abs().max()) > news:
                return True
        else:
            self.searched = True
        found = torch.linalg.eigvalsh(self.projected[self.dim : self.rows, self.dim : self.rows])
        self.left_out = torch.cat([self.left_out, found])
        # Nothing new: forget the probe's vectors, or they would mix with wanted ones whose eigenvalue they share.
        self.rows, self.pending, self.pending_norm = self.dim, None, 0.0
        self.carried[: self.dim], self.carried[self.dim :] = bounds, 0.0
        return False

    def _clearly_worse(self, inside: Tensor, wanted: Tensor) -> bool:
        """Whether the best value of the probe's projected matrix, even with its residual, is worse than ``wanted``."""
        found, coefficients = torch.linalg.eigh(inside)
        best = int(self.order(found)[0])
        reach = self.pending_norm * coefficients[-1, best].abs()
        return bool(self.merit(found[best]) + reach < self.merit(wanted))

    def run(self, advance: Callable[[int], None]) -> Eigenpairs:
        """Converge, search for what was missed, and compute the residuals, within the budget."""
        reserve = self.dim if self.budget >= 2 * self.dim else 0
        searching = self.budget - reserve
        self.converge(searching, advance)
        while self.rows < self.size and self.settled() and self.probe(searching, advance):
            self.converge(searching, advance)
        return self.finish(certify=reserve > 0, advance=advance)

    def finish(self, *, certify: bool, advance: Callable[[int], None]) -> Eigenpairs:
        """The wanted pairs with residuals by true products where the budget allows, flags, and a warning if due."""
        values, coefficients, estimates = self.ritz()
        settled, complete = self.settled(), self.searched or self.rows == self.size
        count = min(self.dim, self.rows)
        left_out = torch.cat([values[count : count + 1], self.left_out])
        rotate(self.basis[: self.rows], coefficients[:, :count].to(self.basis.device))
        vectors = self.basis[:count]
        eigenvalues, residuals = values[:count].clone(), estimates[:count].clone()
        if certify:
            for i in range(count):
                vectors[i] /= norm(vectors[i])
                product = self.product(vectors[i])
                eigenvalues[i] = float(inner(vectors[i][None], product))
                residuals[i] = norm(product - float(eigenvalues[i]) * vectors[i])
                advance(1)
        met = residuals <= self.tol * self.scale(values)
        if not settled:  # judged pair by pair, each at its own eigenvalue
            met &= residuals <= torch.tensor([self.crowded_bound(values, float(v)) for v in eigenvalues]).double()
        converged = met.to(torch.int8).cumprod(0).bool()
        if not complete:
            converged[-1] = False  # a missed copy of an earlier eigenvalue would push the last pair out
        residuals = residuals / self.scale(values)
        if not bool(converged.all()):
            self._warn(converged, residuals, settled, complete)
        order = self.order(eigenvalues)
        return Eigenpairs(
            eigenvalues=eigenvalues[order],
            vectors=vectors[order.to(vectors.device)].T,
            residuals=residuals[order],
            converged=converged[order],
            num_matvecs=self.num_matvecs,
            next_eigenvalue=float(left_out[self.order(left_out)[0]]) if len(left_out) else math.nan,
        )

    def _warn(self, converged: Tensor, residuals: Tensor, settled: bool, complete: bool) -> None:
        kind, floor = str(self.basis.dtype).split(".")[-1], FLOOR * self.epsilon
        if not settled or not complete:
            reason = f"{self.num_matvecs} of max_matvecs = {self.budget} products were used; allow more, or lower dim"
        elif self.tol < floor:
            reason = (
                f"tol = {self.tol:g} is below what {kind} can reach, about {floor:.0e}; use float64 or a larger tol"
            )
        else:
            reason = f"the products are too noisy for tol = {self.tol:g}; use float64 or a larger tol"
        warnings.warn(
            f"{int(converged.sum())} of {self.dim} eigenpairs converged, largest residual {float(residuals.max()):.1e} "
            f"relative to the first eigenvalue: {reason}",
            ConvergenceWarning,
            stacklevel=5,
        )
