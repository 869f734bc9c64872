"""Certified extreme eigenpairs of a symmetric matrix that is known by its products; knows nothing of models.

Thick-restart Lanczos with full re-orthogonalisation, in four phases: converge; certify the residuals with products
of random combinations of the vectors; search the complement with a random probe for missing copies of repeated
eigenvalues, which a single-vector method cannot see; and hand over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from curvprobe.eigensolver.checkpoint import Checkpoint, Saver
from curvprobe.eigensolver.doubt import reason, warn
from curvprobe.eigensolver.krylov import KrylovBasis, MatMul
from curvprobe.eigensolver.search import LOOKS, seems_worse, would_have_shown
from curvprobe.eigensolver.wanted import RELATIVE_TO, Wanted, Which, check_wanted
from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.numerics.linalg import rotate, straightening
from curvprobe.numerics.space import Space
from curvprobe.runtime import progress
from curvprobe.runtime.memory import freed_memory_kept
from curvprobe.runtime.plain import brief

LEAN = 10
"""Vectors beyond the wanted ones in the smallest basis; with fewer the number of products explodes, and the search for
missed copies has no room."""

CERTIFYING_PRODUCTS = 2
"""Random combinations of the vectors whose products certify the residuals of all."""


@dataclass(frozen=True)
class Eigenpairs:
    """Extreme eigenpairs of a symmetric matrix A, the most wanted first.

    Attributes:
        eigenvalues: float64 (D,), signed: descending for "algebraic", by descending magnitude for "magnitude",
            ascending for "smallest".
        vectors: (N, D), orthonormal columns.
        residuals: float64 (D,), ``|A u - lambda u| / scale``: the residual known from the recurrence, plus what
            products of random combinations of the vectors showed beyond it (charged to each in full, so usually a
            bound); by D true products where that is not small enough. scale is ``|lambda_1|`` (for "smallest", the
            largest magnitude seen in the whole spectrum).
        converged: bool (D,): the pair and all before it meet the tolerance; never the last one before the search for
            missed copies is complete.
        num_matvecs: products used, all of them.
        num_search_matvecs: those of them that searched for missed copies of eigenvalues.
        next_eigenvalue: estimate of the first eigenvalue left out (NaN when there is none).
        cut_decided: whether that one is less wanted than the last by more than the last's residual. Elsewhere the pairs
            are eigenpairs, but which of these two comes first is in doubt, and a copy may have been missed.
    """

    eigenvalues: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    num_matvecs: int
    num_search_matvecs: int
    next_eigenvalue: float
    cut_decided: bool = True

    __repr__ = brief


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
    start: Tensor | None = None,
    basis_size: int | None = None,
    checkpoint: Checkpoint | None = None,
    space: Space | None = None,
) -> Eigenpairs:
    r"""Extreme eigenpairs of a symmetric matrix A by thick-restart Lanczos.

    .. math:: A u_i = \lambda_i u_i, \qquad |A u_i - \lambda_i u_i| \le tol \cdot |\lambda_1|

    Args:
        matmul: maps a block (N, b) to ``A @ block``; A symmetric.
        num_params: N.
        dim: number of eigenpairs D.
        which: "algebraic" (largest first), "magnitude" (largest absolute value) or "smallest" (most negative).
        tol: bound on the residuals relative to ``|lambda_1|``.
        max_matvecs: budget of products, those for the certificate included; None is ``max(1000, 50 * dim)``.
        seed: of the start vector, the certificate and the search.
        dtype, device: of the basis; sums and small matrices are float64. The device may be another than the matrix's.
        start: orthonormal columns (N, l) near the wanted eigenvectors, such as those of a similar matrix: kept if
            they already span them (found out with one product), and otherwise summed for a first vector.
        basis_size: vectors held, at least ``dim + 10``; None is ``ceil(1.5 dim) + 10``.
        checkpoint: file that keeps the state from time to time, when the budget ends and when the computation is
            interrupted; it is continued from there, and the file removed when all is done.
        space: where several processes hold the coordinates: ``matmul`` is then given the rows (n, b) that this one
            holds and returns those of the product, and so are ``start`` and the vectors.

    Returns:
        The eigenpairs with residuals and flags. When the budget ends first, the best pairs so far, and a
        :class:`ConvergenceWarning`.

    Raises:
        ValueError: for a dim, tolerance or budget that makes no sense, or products that are not finite.

    Source: Wu & Simon (2000), "Thick-restart Lanczos method for large symmetric eigenvalue problems"; the certificate
    and the end of the search are derived in docs/eigensolver.md.

    Example:
        >>> import torch
        >>> diagonal = torch.tensor([10.0, -9.0, 8.0, 8.0, 1.0, 0.5], dtype=torch.float64)
        >>> pairs = lanczos(lambda block: diagonal[:, None] * block, 6, dim=3, tol=1e-8, dtype=torch.float64)
        >>> [round(value, 6) for value in pairs.eigenvalues.tolist()]
        [10.0, 8.0, 8.0]
    """
    check_wanted(num_params, dim, which, tol)
    budget = max(1000, 50 * dim) if max_matvecs is None else max_matvecs
    if budget < dim:
        raise ArgumentError(f"max_matvecs is {max_matvecs}; expected at least dim = {dim} products")
    if basis_size is not None and not isinstance(basis_size, Integral):
        raise ArgumentTypeError(f"basis_size is {basis_size!r}; expected a whole number of vectors or None")
    capacity = min(num_params, math.ceil(1.5 * dim) + 10 if basis_size is None else basis_size)
    if capacity < min(num_params, dim + LEAN):
        raise ArgumentError(f"basis_size is {basis_size}; expected at least dim + {LEAN} = {dim + LEAN} vectors")
    space = space or Space(num_params)
    if start is not None:
        if not isinstance(start, Tensor) or start.dim() != 2 or start.shape[0] != space.held:
            shape = tuple(start.shape) if isinstance(start, Tensor) else type(start).__name__
            raise ArgumentError(f"start is {shape}; expected a tensor ({space.held}, l)")
        if not 1 <= start.shape[1] <= capacity or not bool(start.isfinite().all()):
            raise ArgumentError(f"start has {start.shape[1]} columns; expected 1 to {capacity}, all finite")
    basis = KrylovBasis(matmul, space, capacity, seed, dtype, torch.device(device))
    solver = _Solver(basis, Wanted(dim, which, tol), budget, seed, Saver(checkpoint))
    with freed_memory_kept(), progress.bar("eigenspace (products)") as advance:
        return solver.run(start, advance)


class _Solver:
    """The phases of one computation on a Krylov basis."""

    def __init__(self, basis: KrylovBasis, wanted: Wanted, budget: int, seed: int, saver: Saver) -> None:
        self.basis, self.wanted, self.dim, self.budget, self.saver = basis, wanted, wanted.dim, budget, saver
        self.generator = torch.Generator().manual_seed(seed)
        self.searched = False
        self.search_matvecs = 0
        self.left_out = torch.empty(0, dtype=torch.float64, device="cpu")
        self.certified = 0
        """Leading pairs whose residuals have products of their own behind them."""

    def run(self, start: Tensor | None, advance: Callable[[int], None]) -> Eigenpairs:
        """Converge, certify and search for what was missed, within the budget."""
        basis = self.basis
        reserve = CERTIFYING_PRODUCTS if self.budget > self.dim + CERTIFYING_PRODUCTS else 0
        try:
            if self.saver.load(basis):
                advance(basis.num_matvecs)
                start = None
                if self.stuck() and basis.num_matvecs + 2 * self.dim <= self.budget:
                    start, basis.count = basis.rows[: self.dim].clone().T, 0
            if start is not None:
                self.begin(start, advance)
                start = None  # its memory is wanted
            while True:
                self.converge(self.budget - reserve, advance)
                if not self.wanted.settled(basis):
                    residuals = self.certify(advance)
                    self.saver.now(basis)
                    return self.finish(residuals, settled=False)
                residuals = self.certify(advance)
                self.searched = basis.spans_everything
                self.set_aside(residuals)
                if self.searched or not self.search(self.budget - reserve, advance):
                    break
        except BaseException:
            self.saver.now(basis)
            raise
        if self.searched:
            self.saver.discard()
        else:
            self.saver.now(basis)
        return self.finish(basis.carried[: self.dim].clone(), settled=True)

    # ---- the phases --------------------------------------------------------------------------------------------

    def begin(self, start: Tensor, advance: Callable[[int], None]) -> None:
        """Begin from vectors near the wanted ones: keep them if they span the same, else go on from their sum."""
        basis = self.basis
        basis.intact = False
        for vector in start.T.to(dtype=basis.rows.dtype, device=basis.rows.device):
            direction = vector.clone()
            basis.space.orthogonalise(direction, basis.rows[: basis.count])
            if basis.space.norm(direction) > 0.1 * basis.space.norm(
                vector
            ):  # nearly orthonormal columns become so to rounding
                basis.rows[basis.count] = direction / basis.space.norm(direction)
                basis.count += 1
        vectors = basis.rows[: basis.count].clone()
        direction = basis.combination(self._signs(len(vectors))) if len(vectors) else basis.random_vector()
        basis.count = 0
        basis.expand_towards(direction)
        advance(1)
        if basis.pending is None or len(vectors) < self.dim:
            return
        if basis.num_matvecs + len(vectors) + self.dim > self.budget:
            return
        first, value, coupling = basis.rows[0].clone(), float(basis.projected[0, 0]), float(basis.coupling[0])
        pending, outside = basis.pending.clone(), coupling * basis.pending
        basis.intact = False
        basis.rows[: len(vectors)] = vectors
        basis.space.orthogonalise(outside, vectors)
        # The root mean square of what the matrix adds to the span, seen through one random combination.
        if basis.space.norm(outside) <= 0.3 * self.wanted.tol * abs(value):
            basis.count = 0
            basis.add(vectors)
            advance(len(vectors))
            values, coefficients = self.wanted.ritz(basis)
            carried = basis.residual_parts(coefficients[:, : self.dim])[1]
            if bool(self.wanted.good(values[: self.dim], carried, basis).all()):
                return
            basis.intact = False
        basis.rows[0], basis.count = first, 1
        basis.projected.zero_()
        basis.restrict(1, torch.zeros(1, dtype=torch.float64, device="cpu"))
        basis.projected[0, 0], basis.coupling[0] = value, coupling
        basis.rows[1], basis.is_pending = pending, True

    def stuck(self) -> bool:
        """Whether the pairs, set aside at a larger tolerance, have residuals in which there is no way to go on."""
        basis, wanted = self.basis, self.wanted
        if basis.count < self.dim or wanted.settled(basis):
            return False
        values, coefficients = wanted.ritz(basis)
        carried = basis.residual_parts(coefficients[:, : self.dim])[1]
        return bool((carried > wanted.bound(values, basis)).any())

    def converge(self, budget: int, advance: Callable[[int], None]) -> None:
        """Lanczos steps and restarts until the wanted pairs have settled or the budget is used."""
        basis = self.basis
        while not self.wanted.settled(basis) and basis.num_matvecs < budget:
            if basis.full:
                # Half of what lies beyond the wanted vectors is kept: it holds the next eigenvectors, half converged.
                values, coefficients = self.wanted.ritz(basis)
                count = self.dim + (basis.capacity - self.dim) // 2
                basis.keep(values[:count], coefficients[:, :count])
            basis.expand()
            advance(1)
            self.saver.maybe(basis)

    def certify(self, advance: Callable[[int], None]) -> Tensor:
        """Residual norms of the wanted pairs, with products of their own behind those that are small.

        The residual of a pair is ``r s_i + e_i``, with ``r s_i`` known from the recurrence. Over random signs the mean
        of ``|sum_i +-e_i|^2`` is ``sum_i |e_i|^2``: products of random combinations estimate what is unknown of all
        at once, and each is charged with the sum. Where that is too much, a product for every pair tells.
        """
        basis, wanted = self.basis, self.wanted
        values, coefficients = (part[..., : self.dim] for part in wanted.ritz(basis))
        pending, carried = basis.residual_parts(coefficients)
        residuals = (pending.square() + carried.square()).sqrt()
        good = wanted.good(values, residuals, basis) if not wanted.settled(basis) else torch.ones_like(values).bool()
        count, left = int(good.sum()), max(0, self.budget - basis.num_matvecs)
        self.certified = count
        if count > CERTIFYING_PRODUCTS and left >= CERTIFYING_PRODUCTS:
            unknown = 0.0
            for _ in range(CERTIFYING_PRODUCTS):
                signs = self._signs(count)
                found = self._residual(coefficients[:, :count], signs, values[:count], float(signs @ pending[:count]))
                unknown += basis.space.norm(found) ** 2 / CERTIFYING_PRODUCTS
                advance(1)
            residuals[:count] = (pending.square() + carried.square().clamp_min(unknown)).sqrt()[:count]
            left -= CERTIFYING_PRODUCTS
            if bool((residuals[:count] <= wanted.bound(values, basis)).all()):
                return residuals
        self.certified = min(count, left)
        for i in range(self.certified):
            single = torch.ones(1, dtype=torch.float64, device="cpu")
            residuals[i] = basis.space.norm(self._residual(coefficients[:, i : i + 1], single, values[i : i + 1], 0.0))
            advance(1)
        return residuals

    def _signs(self, count: int) -> Tensor:
        return torch.randint(0, 2, (count,), generator=self.generator, device="cpu").double() * 2 - 1

    def _residual(self, coefficients: Tensor, weights: Tensor, values: Tensor, known: float) -> Tensor:
        """``sum_i w_i (A u_i - lambda_i u_i)`` by a product, less ``known`` times the pending vector."""
        basis = self.basis
        image = basis.product(basis.combination(coefficients @ weights)[:, None])[:, 0]
        image = image - basis.combination(coefficients @ (weights * values))
        if basis.pending is not None:
            image -= known * basis.pending
        return image

    def set_aside(self, residuals: Tensor) -> None:
        """Keep the wanted vectors only, whose residuals are known, and a start for the search.

        The start is orthogonal also to the next eigenvectors, as far as they are known not to be wanted: so the search
        does not find them again. One with a residual up to half its distance from the last wanted eigenvalue holds
        little of any eigenvector that is wanted.
        """
        basis, wanted = self.basis, self.wanted
        values, coefficients = wanted.ritz(basis)
        self.left_out = values[self.dim : self.dim + 1].clone()
        pending, carried = basis.residual_parts(coefficients)
        distance = wanted.merit(values[self.dim - 1 : self.dim]) - wanted.merit(values)
        known = 2 * (pending.abs() + carried) < distance
        known[: self.dim] = True
        basis.keep(values[known], coefficients[:, known])
        start = None if basis.spans_everything else basis.beyond(basis.random_vector())
        basis.restrict(self.dim, residuals, start)

    def search(self, budget: int, advance: Callable[[int], None]) -> bool:
        """Search the orthogonal complement of the wanted vectors from a random start; True if it held a wanted one."""
        basis, wanted, before = self.basis, self.wanted, self.basis.num_matvecs
        inside = wanted.ritz(basis)[0]
        residuals = basis.carried[: self.dim].clone()
        looks, news = 0, 2 * wanted.crowded_bound(inside, float(inside[-1]), basis)
        while not self.searched and basis.num_matvecs < budget:
            basis.expand()
            advance(1)
            # Rayleigh-Ritz only ever improves the wanted values; second-order gains of settled pairs are no news.
            gains = wanted.merit(wanted.ritz(basis)[0][: self.dim]) - wanted.merit(inside)
            if float(gains.abs().max()) > news:
                self.search_matvecs += basis.num_matvecs - before
                return True
            outside = self._outside()
            self.searched = basis.spans_everything or would_have_shown(basis, wanted, outside, inside)
            if not self.searched and seems_worse(basis, wanted, outside, inside):
                looks += 1
                self.searched = looks == LOOKS
                if not self.searched:
                    self.left_out = torch.cat([self.left_out, torch.linalg.eigvalsh(outside)])
                    basis.restrict(self.dim, residuals)
                    basis.restrict(self.dim, residuals, basis.beyond(basis.random_vector()))
            elif basis.full and not self.searched:  # out of room without an answer: on from the best that was seen
                self._make_room()
        self.search_matvecs += basis.num_matvecs - before
        # Nothing new: forget the search's vectors, or they would mix with wanted ones whose eigenvalue they share.
        if basis.count > self.dim:
            self.left_out = torch.cat([self.left_out, torch.linalg.eigvalsh(self._outside())])
        basis.restrict(self.dim, residuals)
        return False

    def _make_room(self) -> None:
        """Restart the search within its own vectors: the wanted ones stay what was certified."""
        basis, found = self.basis, self._outside()
        coefficients = basis.space.eigh(found)[1]
        order = self.wanted.order(torch.linalg.eigvalsh(found))[: len(found) // 2]
        whole = torch.zeros(basis.count, self.dim + len(order), dtype=torch.float64, device="cpu")
        whole[: self.dim, : self.dim] = torch.eye(self.dim, dtype=torch.float64, device="cpu")
        whole[self.dim :, self.dim :] = coefficients[:, order]
        basis.compress(whole)

    def _outside(self) -> Tensor:
        """The projected matrix of the search's own vectors."""
        return self.basis.projected[self.dim : self.basis.count, self.dim : self.basis.count]

    # ---- the result --------------------------------------------------------------------------------------------

    def finish(self, residuals: Tensor, *, settled: bool) -> Eigenpairs:
        """The wanted pairs with flags, and a warning if due."""
        basis, wanted = self.basis, self.wanted
        values, coefficients = wanted.ritz(basis)
        count = min(self.dim, basis.count)
        left_out = torch.cat([values[count : count + 1], self.left_out])
        values, coefficients = values[:count], coefficients[:, :count]
        good = residuals <= wanted.tol * wanted.scale(values, basis)
        if not settled:
            good &= wanted.good(values, residuals, basis)
        converged = good.to(torch.int8).cumprod(0).bool()
        converged[self.certified :] = False
        beyond = wanted.merit(left_out) > wanted.merit(values[-1:]) + residuals[-1] + wanted.rounding(basis)
        if not self.searched or bool(beyond.any()):
            converged[-1] = False  # a missed copy of an earlier eigenvalue pushes the last pair out, or could
        rows = basis.rows[: basis.count]
        straight = straightening(rows, basis.space.sum_over)  # takes out what rounding has left of one in another
        rotate(rows, straight @ coefficients.to(rows.device))
        pairs = Eigenpairs(
            eigenvalues=values,
            vectors=basis.rows[:count].clone().T,
            residuals=residuals / wanted.scale(values, basis),
            converged=converged,
            num_matvecs=basis.num_matvecs,
            num_search_matvecs=self.search_matvecs,
            next_eigenvalue=float(left_out[wanted.order(left_out)[0]]) if len(left_out) else math.nan,
            cut_decided=not bool((wanted.merit(left_out) >= wanted.merit(values[-1:]) - residuals[-1]).any()),
        )
        if not bool(converged.all()):
            complete, pushed_out = settled and self.searched, bool(beyond.any())
            why = reason(wanted, basis, self.budget, complete=complete, pushed_out=pushed_out)
            warn(pairs.converged, pairs.residuals, RELATIVE_TO[wanted.which], why)
        return pairs
