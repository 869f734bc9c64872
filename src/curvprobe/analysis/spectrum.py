"""The eigenvalues of an eigenspace as a result keeps them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvprobe.eigensolver.wanted import RELATIVE_TO, Which
from curvprobe.runtime.plain import brief, number, numbers
from curvprobe.subspace.spaces import Eigenspace

SHOWN = 6
"""Eigenvalues in the text."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The eigenvalues of an eigenspace with their certificates, without its basis; see :class:`Eigenspace`.

    Attributes:
        eigenvalues, residuals, converged: (D,).
        next_eigenvalue: estimate of the first one left out.
        num_matvecs: products used.
        relative_to: what the residuals are relative to, in words.
        cut_decided: whether the next eigenvalue is behind the last by more than the last's residual.
    """

    eigenvalues: Tensor
    residuals: Tensor
    converged: Tensor
    next_eigenvalue: float
    num_matvecs: int
    relative_to: str = RELATIVE_TO["algebraic"]
    cut_decided: bool = True

    __repr__ = brief

    @classmethod
    def of(cls, space: Eigenspace, which: Which) -> Spectrum:
        """That of an eigenspace."""
        return cls(
            space.eigenvalues,
            space.residuals,
            space.converged,
            space.next_eigenvalue,
            space.num_matvecs,
            RELATIVE_TO[which],
            space.cut_decided,
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
        )

    def __str__(self) -> str:
        values = ", ".join(f"{value:.4g}" for value in self.eigenvalues[:SHOWN].tolist())
        return (
            f"Top-{self.dim} eigenvalues: {values}{', ...' if self.dim > SHOWN else ''}; next about "
            f"{self.next_eigenvalue:.4g}\n  {int(self.converged.sum())} of {self.dim} certified, largest residual "
            f"{float(self.residuals.max()):.1e} of {self.relative_to}, {self.num_matvecs} Hessian products"
        )
