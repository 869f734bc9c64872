"""The eigenvalues of an eigenspace as a result keeps them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvprobe.criteria.sample import ProjectedSample
from curvprobe.eigensolver.wanted import RELATIVE_TO, Which
from curvprobe.numerics.strata import reaches
from curvprobe.runtime.plain import brief, number, numbers
from curvprobe.subspace.spaces import Eigenspace

SHOWN = 6
"""Eigenvalues in the text."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The eigenvalues of an eigenspace with their certificates, without its basis; see :class:`Eigenspace`.

    Attributes:
        eigenvalues, residuals, converged: (D,). Where the eigenspace was found from some of the examples, what others,
            drawn independently, say of the curvature of all along its directions, since the examples that a direction
            was chosen by bend more along it.
        next_eigenvalue: estimate of the first one left out.
        num_matvecs: products used.
        relative_to: what the residuals are relative to, in words.
        cut_decided: whether the next eigenvalue is behind the last by more than the last's residual.
        reach: (D,), half the widths of their 95 % intervals; None where all examples were taken.
        found: (D,), the eigenvalues of the examples that the eigenspace was found from; None where that was all.
    """

    eigenvalues: Tensor
    residuals: Tensor
    converged: Tensor
    next_eigenvalue: float
    num_matvecs: int
    relative_to: str = RELATIVE_TO["algebraic"]
    cut_decided: bool = True
    reach: Tensor | None = None
    found: Tensor | None = None

    __repr__ = brief

    @classmethod
    def of(cls, space: Eigenspace, which: Which, sample: ProjectedSample) -> Spectrum:
        """That of an eigenspace, and of the sample projected onto it where its examples were drawn."""
        own = sample.deviations(sample.hessian.diagonal(dim1=1, dim2=2))
        drawn = sample.design is not None
        return cls(
            sample.mean().hessian[0].diagonal().contiguous() if drawn else space.eigenvalues,
            space.residuals,
            space.converged,
            space.next_eigenvalue,
            space.num_matvecs,
            RELATIVE_TO[which],
            space.cut_decided,
            reaches(own) if drawn else None,
            space.eigenvalues if drawn else None,
        )

    @property
    def dim(self) -> int:
        """D."""
        return len(self.eigenvalues)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = (
            "eigenvalues",
            "residuals",
            "converged",
            "next_eigenvalue",
            "num_matvecs",
            "relative_to",
            "cut_decided",
            "reach",
            "found",
        )
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Spectrum:
        """What :meth:`to_json` has written."""
        return cls(
            numbers(record["eigenvalues"]),
            numbers(record["residuals"], math.inf),
            torch.tensor(record["converged"], device="cpu"),
            number(record["next_eigenvalue"]),
            record["num_matvecs"],
            record.get("relative_to", RELATIVE_TO["algebraic"]),
            record.get("cut_decided", True),
            *(None if record.get(name) is None else numbers(record[name]) for name in ("reach", "found")),
        )

    def __str__(self) -> str:
        values = ", ".join(f"{value:.4g}" for value in self.eigenvalues[:SHOWN].tolist())
        return (
            f"Top-{self.dim} eigenvalues: {values}{', ...' if self.dim > SHOWN else ''}; next about "
            f"{self.next_eigenvalue:.4g}\n  {int(self.converged.sum())} of {self.dim} certified, largest residual "
            f"{float(self.residuals.max()):.1e} of {self.relative_to}, {self.num_matvecs} Hessian products"
        )
