"""Several subspaces of the same dimension at one solution: which of them the increments bend and tilt most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe.criteria.increment import fresh_increments
from curvprobe.experiments.solutions import Solution
from curvprobe.subspace.eigenspace import top_eigenspace
from curvprobe.subspace.gradients import gradient_subspace
from curvprobe.subspace.named import LOOSE
from curvprobe.subspace.projection import mean_projection, project
from curvprobe.subspace.spaces import Eigenspace, Subspace, random_subspace

NAMES = ("top", "random", "bottom", "gradients")


@dataclass(frozen=True, eq=False)
class Functionals:
    """Means over the candidates, float64 (4,), in the order of ``NAMES``.

    Attributes:
        bent: ``2 |B|_F^2 + (tr B)^2``, which the paper's proposition says the top eigenspace makes largest.
        tilted: ``|c|^2``, what the shape criterion is made of at small sigma.
        residuals: largest of each eigenspace, relative to its first eigenvalue; NaN for the others.
    """

    bent: Tensor
    tilted: Tensor
    residuals: Tensor


def functionals(solution: Solution, dim: int, seed: int) -> Functionals:
    """Of the top eigenspace, a random subspace, the bottom eigenspace and the span of the sample's first gradients."""
    risk, new = solution.risk, solution.new
    spaces: tuple[Callable[[], Subspace], ...] = (
        lambda: top_eigenspace(risk, dim=dim, seed=seed),
        lambda: random_subspace(risk, dim, seed=seed),
        lambda: top_eigenspace(risk, dim=dim, which="smallest", tol=LOOSE, max_matvecs=30 * dim + 10, seed=seed),
        lambda: gradient_subspace(risk[:dim]),
    )
    rows = []
    for make in spaces:
        space = make()
        model = next(fresh_increments(mean_projection(risk, space), project(new, space), [1]))
        traces = model.curvature.diagonal(dim1=-2, dim2=-1).sum(-1)
        bent = 2 * model.curvature.square().sum((-2, -1)) + traces.square()
        residual = float(space.residuals.max()) if isinstance(space, Eigenspace) else torch.nan
        rows.append([float(bent.mean()), float(model.slope.square().sum(-1).mean()), residual])
    return Functionals(*torch.tensor(rows, dtype=torch.float64).T.contiguous())
