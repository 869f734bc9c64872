"""The subspaces that are compared, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.subspace.deformation import deformation_subspace
from curvprobe.subspace.eigenspace import top_eigenspace
from curvprobe.subspace.gradients import gradient_subspace
from curvprobe.subspace.spaces import Subspace, random_subspace

LOOSE = 1e-2
"""Tolerance of the Hessian's bottom, where the spectrum is so crowded that single directions mean little."""


def default_subspaces(
    risk: EmpiricalRisk,
    candidates: EmpiricalRisk,
    dim: int,
    *,
    tol: float = 1e-3,
    seed: int = 0,
    hessian: Subspace | None = None,
) -> dict[str, Subspace]:
    """The subspaces that a concentration curve compares.

    The top of the Hessian and of the Gauss-Newton matrix, the bottom of the Hessian, the directions in which the
    sample's gradients differ most and those in which the candidates' do (which has seen the answer: at small sigma
    nothing captures more of what the candidates' gradients scatter about their mean), gradients of the sample, and
    random directions.

    Args:
        risk: on the k examples.
        candidates: the next examples.
        dim: directions of each; fewer where the examples cannot span so many.
        tol, seed: of the eigensolver and the random directions.
        hessian: the top of the Hessian, where it is known already.
    """
    makers = subspace_makers(risk, candidates, dim, tol=tol, seed=seed, hessian=hessian)
    return {name: make() for name, make in makers.items()}


def subspace_makers(
    risk: EmpiricalRisk,
    candidates: EmpiricalRisk,
    dim: int,
    *,
    tol: float = 1e-3,
    seed: int = 0,
    hessian: Subspace | None = None,
) -> dict[str, Callable[[], Subspace]]:
    """The same, each to be made when its turn comes: a basis is large, and one at a time is enough."""
    expect_risk(risk)
    top = partial(top_eigenspace, risk, dim=dim, seed=seed)
    makers: dict[str, Callable[[], Subspace]] = {
        "hessian": partial(top, tol=tol) if hessian is None else lambda: hessian,
        "ggn": partial(top, curvature="ggn", tol=tol),
    }
    if len(risk) > 1:
        makers["deformation"] = partial(deformation_subspace, risk, min(dim, len(risk) - 1), tol=tol, seed=seed)
    if len(candidates) > 1:
        few = min(dim, len(candidates) - 1)
        makers["best possible"] = partial(deformation_subspace, candidates, few, tol=tol, seed=seed)
    makers["gradients"] = lambda: gradient_subspace(risk[: min(dim, len(risk))])
    makers["random"] = partial(random_subspace, risk, dim, seed=seed)
    makers["bottom"] = partial(top, which="smallest", tol=max(tol, LOOSE), max_matvecs=30 * dim + 10)
    return makers
