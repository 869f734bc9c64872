"""The laws that are compared, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from curvprobe.criteria.draws import check_sigma
from curvprobe.errors import ArgumentTypeError
from curvprobe.probing.laws import LaplaceProbe, NormalizedProbe, Probe, SubspaceProbe
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.subspace.deformation import deformation_subspace
from curvprobe.subspace.eigenspace import top_eigenspace
from curvprobe.subspace.gradients import gradient_subspace
from curvprobe.subspace.spaces import Eigenspace, random_subspace

DAMPING = 1e-3
"""Smallest precision of a Laplace law per example, relative to the first eigenvalue."""


def default_laws(
    risk: EmpiricalRisk, subspace: Eigenspace, sigma: float, *, tol: float = 1e-3, seed: int = 0
) -> dict[str, Probe]:
    """The laws that an analysis compares with its own: two more eigenspaces.

    Laplace's in the top eigenspace, with as much damping as makes it a law; ``sigma`` in the top eigenspace of the
    Gauss-Newton matrix, the directions in which the sample's gradients differ most, gradients of the sample, and random
    directions; and normalised by tensor and by filter, as far from the solution as isotropic with ``sigma``.

    Args:
        risk: on the k examples.
        subspace: the top eigenspace of its Hessian.
        sigma: standard deviation in parameter units.
        tol, seed: of the eigenspaces and the random directions.
    """
    return {name: make() for name, make in law_makers(risk, subspace, sigma, tol=tol, seed=seed).items()}


def law_makers(
    risk: EmpiricalRisk, subspace: Eigenspace, sigma: float, *, tol: float = 1e-3, seed: int = 0
) -> dict[str, Callable[[], Probe]]:
    """The same, each to be made when its turn comes: a basis is large, and one beside the eigenspace is enough."""
    check_sigma(sigma)
    if not isinstance(subspace, Eigenspace):
        raise ArgumentTypeError(f"the subspace is a {type(subspace).__name__}; expected an Eigenspace of the Hessian")
    eigenvalues, dim, k = subspace.eigenvalues, subspace.dim, len(risk)
    damping = max(0.0, DAMPING * float(eigenvalues.abs().max()) - float(eigenvalues.min()))
    makers: dict[str, Callable[[], Probe]] = {
        "Laplace": lambda: LaplaceProbe(subspace, k=k, damping=damping),
        "Gauss-Newton": lambda: SubspaceProbe(top_eigenspace(risk, dim, curvature="ggn", tol=tol, seed=seed), sigma),
    }
    if k > 1:
        makers["deformation"] = lambda: SubspaceProbe(
            deformation_subspace(risk, min(dim, k - 1), tol=tol, seed=seed), sigma
        )
    makers["gradients"] = lambda: SubspaceProbe(gradient_subspace(risk[: min(dim, k)]), sigma)
    makers["random"] = lambda: SubspaceProbe(random_subspace(risk, dim, seed=seed), sigma)
    model = risk.probed
    size = model.vectors.norm(model.flatten(list(model.state.probed.values()))) / math.sqrt(risk.num_params)
    if size > 0:
        makers["normalised by tensor"] = lambda: NormalizedProbe(sigma / size, by="tensor")
        makers["normalised by filter"] = lambda: NormalizedProbe(sigma / size, by="filter")
    return makers
