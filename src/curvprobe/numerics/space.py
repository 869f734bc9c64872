"""The space of long vectors, of which this process holds all coordinates or some."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe.numerics.linalg import Total, norm, orthogonalise


@dataclass(frozen=True)
class Space:
    """Vectors of ``size`` coordinates, of which this process holds a part.

    Attributes:
        size: N.
        part: the coordinates that are held; None for all of them.
        sum_over: the sum of a small tensor over all that hold some, the same bits in each; None where there is one.
        agreed: the first holder's value of a small tensor, in all of them; None where there is one.
    """

    size: int
    part: slice | None = None
    sum_over: Total | None = None
    agreed: Total | None = None

    @property
    def held(self) -> int:
        """Number of coordinates held."""
        return self.size if self.part is None else self.part.stop - self.part.start

    def norm(self, vector: Tensor) -> float:
        """Euclidean norm."""
        return norm(vector, self.sum_over)

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
