"""A growing orthonormal basis with the exact projection of a matrix onto it: the state of the eigensolver.

``A Q = Q T + r s^T + C``: ``T`` is taken from the orthogonalisation coefficients and is the projection ``Q^T A Q``
whatever the basis has been through; ``r`` is the pending unit vector, orthogonal to the basis, and ``s`` its coupling:
zero but for the last row after a step, and full after a restart; the column norms of ``C`` are about ``carried``, which
is zero until vectors are set aside and others merged in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from curvprobe.errors import ArgumentError, NotFiniteError
from curvprobe.numerics.linalg import all_finite, rotate, subtract_combination
from curvprobe.numerics.noise import normal_vector
from curvprobe.numerics.space import Space

MatMul = Callable[[Tensor], Tensor]


class KrylovBasis:
    """Up to ``capacity`` orthonormal rows and what the matrix does to them.

    ``rows`` is (capacity + 1, N): the pending vector waits in the row after the last, and needs no memory of its own.
    Where several processes hold the coordinates of the vectors, N is the number that this one holds, here and below.
    """

    def __init__(
        self,
        matmul: MatMul,
        space: Space,
        capacity: int,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.matmul, self.space, self.size, self.capacity = matmul, space, space.size, capacity
        self.rows = torch.empty(capacity + 1, space.held, dtype=dtype, device=device)
        self.projected = torch.zeros(capacity, capacity, dtype=torch.float64, device="cpu")
        self.carried = torch.zeros(capacity, dtype=torch.float64, device="cpu")
        self.count = 0
        self.is_pending = False
        self.coupling = torch.zeros(capacity, dtype=torch.float64, device="cpu")
        self.intact = True
        """False while an update is under way, in which an interruption would leave a state that makes no sense."""
        self.num_matvecs = 0
        self.largest = 0.0
        """Largest magnitude seen in the spectrum."""
        self.epsilon = torch.finfo(dtype).eps
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def full(self) -> bool:
        """Whether no row is left."""
        return self.count == self.capacity

    @property
    def spans_everything(self) -> bool:
        """Whether the basis is one of the whole space, so that nothing is left outside."""
        return self.count == self.size

    @property
    def pending(self) -> Tensor | None:
        """What the matrix makes of the last row beyond the basis, of unit length, where there is anything."""
        return self.rows[self.count] if self.is_pending else None

    def random_vector(self) -> Tensor:
        """A standard normal vector (N,)."""
        return normal_vector(
            self.generator, self.size, dtype=self.rows.dtype, device=self.rows.device, part=self.space.part
        )

    def product(self, block: Tensor) -> Tensor:
        """``A @ block`` for (N, b), counted, in the basis's dtype and on its device."""
        result = self.matmul(block)
        if result.shape != block.shape:
            raise ArgumentError(
                f"matmul returned shape {tuple(result.shape)} for {tuple(block.shape)}; expected the same"
            )
        self.num_matvecs += block.shape[1]
        result = result.to(dtype=self.rows.dtype, device=self.rows.device)
        if not all_finite(result, self.space.sum_over):
            raise NotFiniteError("matmul returned values that are not finite for a finite vector")
        return result

    @property
    def pending_norm(self) -> float:
        """Length of what the matrix makes of the last row beyond the basis."""
        return float(self.coupling[self.count - 1]) if self.count and not self.spans_everything else 0.0

    def expand(self) -> None:
        """Add a direction to the basis, and its product to the projected matrix; nothing changes where that raises.

        The direction is the pending one, or a random one where there is none: where the basis spans an invariant
        subspace, or nothing yet.
        """
        draws = self.generator.get_state()
        try:
            if self.pending is None:
                self.expand_towards(self.random_vector())
            else:
                self.add(self.pending[None])
        except BaseException:
            self.generator.set_state(draws)
            raise

    def expand_towards(self, direction: Tensor) -> None:
        """Add what is new in ``direction`` to the basis."""
        self.add(self.beyond(direction)[None])

    def beyond(self, direction: Tensor) -> Tensor:
        """What is new in ``direction``, of unit length; the basis does not span everything."""
        direction = direction.clone()
        for _ in range(3):  # it may lie almost inside the basis
            before = self.space.norm(direction)
            self.space.orthogonalise(direction, self.rows[: self.count])
            after = self.space.norm(direction)
            if after > 0.1 * before:
                break
            if after <= 1e-3 * before:
                direction = self.random_vector()
        return direction / after

    def add(self, vectors: Tensor) -> None:
        """Add orthonormal rows (b, N), orthogonal to the basis, with one block product.

        The residual of a single row stays pending; those of several are known by their norms only.
        """
        products = self.product(vectors.T)
        first, count = self.count, self.count + len(vectors)
        single = len(vectors) == 1
        self.rows[first:count] = vectors
        residual = self.rows[count]
        columns, left, largest = [], [], self.largest
        for product in products.T:
            residual.copy_(product)
            columns.append(self.space.orthogonalise(residual, self.rows[:count]).cpu())
            left.append(self.space.norm(residual))
            largest = max(largest, math.hypot(float(columns[-1].norm()), left[-1]))
        negligible = left[-1] <= 10 * self.epsilon * largest
        with self._update():
            self.projected[first:count, :count] = torch.stack(columns)
            self.projected[:count, first:count] = torch.stack(columns).T
            self.carried[first:count] = 0.0 if single else torch.tensor(left, dtype=torch.float64, device="cpu")
            self.coupling.zero_()
            self.coupling[first] = left[0] if single else 0.0
            self.is_pending = single and not negligible
            if self.is_pending:
                residual /= left[0]
            self.count, self.largest = count, largest

    @contextmanager
    def _update(self) -> Iterator[None]:
        self.intact = False
        yield
        self.intact = True

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values in ascending order, float64 (count,), and the coefficients of their vectors (count, count)."""
        values, coefficients = self.space.eigh(self.projected[: self.count, : self.count])
        self.largest = max(self.largest, float(values.abs().max()))
        return values, coefficients

    def combination(self, coefficients: Tensor) -> Tensor:
        """The vector (N,) with these coefficients (count,) in the basis."""
        vector = torch.zeros_like(self.rows[0])
        subtract_combination(vector, self.rows[: self.count], -coefficients.to(self.rows.device))
        return vector

    def residual_parts(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """The residuals of combinations (count, l): along the pending vector, signed, and norms of what is carried."""
        coupling = (
            torch.zeros(self.count, dtype=torch.float64, device="cpu")
            if self.spans_everything
            else self.coupling[: self.count]
        )
        carried = (self.carried[: self.count].square() @ coefficients.square()).sqrt()  # unrelated directions
        return coupling @ coefficients, carried

    def keep(self, values: Tensor, coefficients: Tensor) -> None:
        """Replace the basis by Ritz vectors of these values (l,) and coefficients (count, l)."""
        self.compress(coefficients, torch.diag(values))

    def compress(self, coefficients: Tensor, projected: Tensor | None = None) -> None:
        """Replace the basis by orthonormal combinations (count, l) of its rows; ``projected`` where it is known."""
        count = coefficients.shape[1]
        if projected is None:
            projected = coefficients.T @ self.projected[: self.count, : self.count] @ coefficients
        coupling, carried = self.residual_parts(coefficients)
        with self._update():
            rotate(self.rows[: self.count], coefficients.to(self.rows.device))
            self.rows[count] = self.rows[self.count]
            self.carried[:count], self.carried[count:] = carried, 0.0
            self.coupling[:count], self.coupling[count:] = coupling, 0.0
            self.projected.zero_()
            self.projected[:count, :count] = projected
            self.count = count

    def restrict(self, count: int, residuals: Tensor, pending: Tensor | None = None) -> None:
        """Forget all but the first ``count`` rows, whose residual norms (count,) are carried from now on.

        The basis grows next by ``pending``, a unit vector orthogonal to these rows.
        """
        with self._update():
            self.count, self.is_pending = count, pending is not None
            if pending is not None:
                self.rows[count] = pending
            self.coupling.zero_()
            self.carried[:count], self.carried[count:] = residuals, 0.0
