"""A growing orthonormal basis with the exact projection of a matrix onto it: the state of the eigensolver.

``A Q = Q T + r e_last^T + C``: ``T`` is taken from the orthogonalisation coefficients and is the projection
``Q^T A Q`` whatever the basis has been through; ``r`` is the pending residual, orthogonal to the basis; the column
norms of ``C`` are at most ``carried``, which is zero until vectors are set aside and others merged in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvprobe.linalg import norm, quick_inner, rotate, subtract_combination

MatMul = Callable[[Tensor], Tensor]

REPEAT = 0.1
"""An orthogonalised vector that has lost all but this share of its length is orthogonalised again. (In float32 with
float64 coefficients one pass leaves an error of rounding over the share that is left.)"""


class KrylovBasis:
    """Up to ``capacity`` orthonormal rows (capacity, N) and what the matrix does to them."""

    def __init__(
        self,
        matmul: MatMul,
        num_params: int,
        capacity: int,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.matmul, self.size, self.capacity = matmul, num_params, capacity
        self.rows = torch.empty(capacity, num_params, dtype=dtype, device=device)
        self.projected = torch.zeros(capacity, capacity, dtype=torch.float64)
        self.carried = torch.zeros(capacity, dtype=torch.float64)
        self.count = 0
        self.pending: Tensor | None = None
        self.pending_norm = 0.0
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

    def random_vector(self) -> Tensor:
        """A standard normal vector (N,)."""
        vector = torch.randn(self.size, generator=self.generator, dtype=torch.float64)
        return vector.to(dtype=self.rows.dtype, device=self.rows.device)

    def product(self, block: Tensor) -> Tensor:
        """``A @ block`` for (N, b), counted, in the basis's dtype and on its device."""
        result = self.matmul(block)
        if result.shape != block.shape:
            raise ValueError(f"matmul returned shape {tuple(result.shape)} for {tuple(block.shape)}; expected the same")
        self.num_matvecs += block.shape[1]
        result = result.to(dtype=self.rows.dtype, device=self.rows.device)
        if not bool(result.isfinite().all()):
            raise ValueError("matmul returned values that are not finite for a finite vector")
        return result

    def orthogonalise(self, vector: Tensor) -> tuple[Tensor, float, float]:
        """Take the basis out of ``vector``, in place; the coefficients (count,), and its norm before and after."""
        rows = self.rows[: self.count]
        total = torch.zeros(self.count, dtype=torch.float64, device=vector.device)
        before = after = norm(vector)
        for _ in range(2):
            coefficients = quick_inner(rows, vector)
            subtract_combination(vector, rows, coefficients)
            total += coefficients
            after = norm(vector)
            if after >= REPEAT * before:
                break
        return total.cpu(), before, after

    def expand(self) -> None:
        """Add a direction to the basis, and its product to the projected matrix; nothing changes where that raises.

        The direction is the pending residual, or a random one where there is none: where the basis spans an invariant
        subspace, or nothing yet.
        """
        if self.pending is None or self.pending_norm <= 10 * self.epsilon * self.largest:
            self.expand_towards(self.random_vector())
        else:
            self.expand_towards(self.pending)  # once more: errors of orthogonality would grow from step to step

    def expand_towards(self, direction: Tensor) -> None:
        """Add what is new in ``direction`` to the basis."""
        direction = direction.clone()
        for _ in range(3):  # it may lie almost inside the basis
            _, before, after = self.orthogonalise(direction)
            if after > 0.1 * before:
                break
            if after <= 1e-3 * before:
                direction = self.random_vector()
        self.add((direction / after)[None])

    def add(self, vectors: Tensor) -> None:
        """Add orthonormal rows (b, N), orthogonal to the basis, with one block product.

        The residual of a single row stays pending; those of several are known by their norms only.
        """
        products = self.product(vectors.T)
        first, self.count = self.count, self.count + len(vectors)
        self.rows[first : self.count] = vectors
        for row, product in enumerate(products.T, start=first):
            residual = product.clone()
            coefficients, image, left = self.orthogonalise(residual)
            self.largest = max(self.largest, image)
            self.projected[row, : self.count] = self.projected[: self.count, row] = coefficients
            self.carried[row] = left
        self.pending, self.pending_norm = None, 0.0
        if len(vectors) == 1:
            self.pending, self.pending_norm, self.carried[first] = residual, left, 0.0

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values in ascending order, float64 (count,), and the coefficients of their vectors (count, count)."""
        values, coefficients = torch.linalg.eigh(self.projected[: self.count, : self.count])
        self.largest = max(self.largest, float(values.abs().max()))
        return values, coefficients

    def combination(self, coefficients: Tensor) -> Tensor:
        """The vector (N,) with these coefficients (count,) in the basis."""
        vector = torch.zeros_like(self.rows[0])
        subtract_combination(vector, self.rows[: self.count], -coefficients.to(self.rows.device))
        return vector

    def residual_parts(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Norms of the residuals of combinations of the basis: what is pending, and what is carried, (l,) each."""
        pending = 0.0 if self.spans_everything else self.pending_norm
        carried = (self.carried[: self.count].square() @ coefficients.square()).sqrt()  # unrelated directions
        return pending * coefficients[-1].abs(), carried

    def keep(self, values: Tensor, coefficients: Tensor) -> None:
        """Replace the basis by Ritz vectors of these values (l,) and coefficients (count, l).

        What is pending stays so, but now it belongs to all of them: the caller continues from it, or drops it.
        """
        count = len(values)
        carried = self.residual_parts(coefficients)[1]
        rotate(self.rows[: self.count], coefficients.to(self.rows.device))
        self.carried[:count], self.carried[count:] = carried, 0.0
        self.projected.zero_()
        self.projected[:count, :count] = torch.diag(values)
        self.count = count
