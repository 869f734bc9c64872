"""The paper's released procedure set up at a solution: what the figures with ``--literal`` show beside ours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe.experiments import paper_procedure as procedure
from curvprobe.experiments.solutions import Solution

ROWS = 4
"""Sequences behind each Hessian of the released procedure."""


@dataclass(frozen=True)
class Released:
    """Basis and quadratic model of the released procedure, and the two samples that it compares.

    Deflated power iteration without signs on a few rows, each projected Hessian on a few rows of its own, two means in
    the model's precision, and one next example on which the model was trained: the sample's own last one.

    Attributes:
        mean: the mean loss.
        before, after: the sample without its last example, and with it.
        pairs: its eigenpairs.
        model: its quadratic model of the increment.
    """

    mean: procedure.MeanLoss
    before: procedure.Batch
    after: procedure.Batch
    pairs: procedure.Eigenpairs
    model: procedure.Coefficients

    @property
    def basis(self) -> Tensor:
        """Of its eigenpairs (N, D)."""
        return self.pairs.basis

    def on_the_same_rows(self) -> procedure.Coefficients:
        """Its model with nothing changed but that both Hessians are on all rows."""
        return procedure.coefficients(self.mean, self.basis, self.before, self.after)


def released(solution: Solution, dim: int, seed: int, *, at_random: bool = False) -> Released:
    """The released procedure at a solution, its eigenpairs from the first rows of the sample or from random ones."""
    mean, after, k = solution.mean, solution.data, len(solution.risk)
    before = procedure.take(after, slice(0, k - 1))
    rows: slice | Tensor = slice(0, ROWS)
    if at_random:
        rows = torch.randperm(k - 1, generator=torch.Generator().manual_seed(seed))[:ROWS].to(solution.risk.device)
    pairs = procedure.power_iteration(mean, procedure.take(before, rows), dim, seed=seed, signed=False)
    model = procedure.coefficients_on_subsets(mean, pairs.basis, before, after, rows=ROWS, seed=seed)
    return Released(mean, before, after, pairs, model)
