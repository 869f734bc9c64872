"""The space of long vectors, of which this process holds all coordinates or some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe.numerics.linalg import Total, inner, norm, orthogonalise, quick_inner


@dataclass(frozen=True)
class Space:
    """Vectors of ``size`` coordinates, of which this process holds a part.

    Attributes:
        size: N.
        part: the coordinates that are held, ascending; None for all of them.
        sum_over: the sum of a small tensor over all that hold some, the same bits in each; None where there is one.
        agreed: the first holder's value of a small tensor, in all of them; None where there is one.
        gathered: all coordinates (size, ...) of vectors of which each has those that it holds; None where there is one.
        handed_out: what each holds of a vector (size,) that the first one has; None where there is one.
        stays: whether vectors are never whole: the model's own weights are divided in the same way.
        share: the most coordinates that any process holds, the same number in each; None where there is one.
    """

    size: int
    part: tuple[slice, ...] | None = None
    sum_over: Total | None = None
    agreed: Total | None = None
    gathered: Total | None = None
    handed_out: Callable[[Tensor | None], Tensor] | None = None
    stays: bool = False
    share: int | None = None

    @property
    def most(self) -> int:
        """Number of coordinates that every process reckons with, so that all make the same choices."""
        return self.held if self.share is None else self.share

    @property
    def held(self) -> int:
        """Number of coordinates held."""
        return self.size if self.part is None else sum(some.stop - some.start for some in self.part)

    @property
    def rows(self) -> slice:
        """The coordinates held, of vectors as :meth:`whole` gives them."""
        return slice(None) if self.part is None or self.stays else self.part[0]

    def whole(self, vectors: Tensor) -> Tensor:
        """All coordinates (N, ...) of vectors of which each process has those that it holds, if they are ever whole."""
        return vectors if self.gathered is None or self.stays else self.gathered(vectors)

    def inner(self, rows: Tensor, vectors: Tensor, *, quick: bool = False) -> Tensor:
        """Inner products over all coordinates, see :func:`curvprobe.numerics.linalg.inner`, or its quick kin."""
        found = (quick_inner if quick else inner)(rows, vectors)
        return found if self.sum_over is None else self.sum_over(found)

    def norm(self, vector: Tensor) -> float:
        """Euclidean norm."""
        return norm(vector, self.sum_over)

    def norms(self, rows: Tensor) -> Tensor:
        """Euclidean norms of the rows (n, coordinates), float64 (n,)."""
        found = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        return found if self.sum_over is None else self.sum_over(found.square()).sqrt()

    def orthogonalise(self, vector: Tensor, rows: Tensor) -> Tensor:
        """See :func:`curvprobe.numerics.linalg.orthogonalise`."""
        return orthogonalise(vector, rows, self.sum_over)

    def eigh(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues, ascending, and vectors of a small matrix: the first holder's, since another machine may turn
        vectors around, or mix those of equal eigenvalues."""
        values, vectors = torch.linalg.eigh(matrix)
        if self.agreed is None:
            return values, vectors
        found = self.agreed(torch.cat([values[None], vectors]))
        return found[0], found[1:]

    def decides(self, answer: bool) -> bool:
        """The first holder's answer."""
        return (
            answer
            if self.agreed is None
            else bool(self.agreed(torch.tensor(float(answer), dtype=torch.float64, device="cpu")))
        )

    def alike(self, number: int) -> bool:
        """Whether all holders have the same number."""
        if self.sum_over is None:
            return True
        ones, sums, squares = self.sum_over(
            torch.tensor([1, number, number**2], dtype=torch.float64, device="cpu")
        ).tolist()
        return bool(ones * squares == sums**2)
