"""The subspace in which the examples' gradients differ most."""

from __future__ import annotations

from dataclasses import replace

import torch

from curvprobe.curvature.covariance import covariance_product
from curvprobe.curvature.second_derivatives import check_second_derivatives
from curvprobe.eigensolver.lanczos import lanczos
from curvprobe.errors import ArgumentError
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.subspace.eigenspace import plan_memory, spanned
from curvprobe.subspace.spaces import Eigenspace


def deformation_subspace(
    risk: EmpiricalRisk, dim: int = 10, *, tol: float = 1e-3, max_matvecs: int | None = None, seed: int = 0
) -> Eigenspace:
    r"""Top-D eigenvectors of the covariance of the examples' gradients: the deformation-aligned subspace.

    .. math:: C = \sum_i \frac{w_i}{W} (g_i - \bar g)(g_i - \bar g)^T

    By Ky Fan's theorem no subspace of D dimensions holds more of the scatter of the slopes, so at small sigma it bounds
    what any subspace can capture of the shape criterion. Its products cost one derivative along a vector and one
    gradient, and never hold all gradients.

    Args:
        risk: on the examples whose gradients count: the next ones, to align with what they would change.
        dim: number of directions D, below the number of examples.
        tol, max_matvecs, seed: of the eigensolver, see :func:`lanczos`.

    Returns:
        The eigenspace of C.

    Raises:
        ValueError: for a dim that the examples cannot span, or an operation without a second derivative.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.1, 0.0]])
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, 5 + torch.zeros(3, 1)))
        >>> cp.deformation_subspace(risk, dim=1).basis.abs().round(decimals=1).flatten()
        tensor([1., 0., 0.])
    """
    expect_risk(risk)
    if not 1 <= dim < len(risk):
        raise ArgumentError(
            f"dim is {dim}; the gradients of {len(risk)} examples span at most {len(risk) - 1} directions"
        )
    slim, basis_size, device = plan_memory(risk, dim)
    check_second_derivatives(risk, "hessian")  # the derivative along a vector differentiates a backward pass
    space = risk.probed.vectors
    pairs = lanczos(
        lambda block: torch.stack([covariance_product(slim, column) for column in block.T], dim=1),
        risk.num_params,
        dim=dim,
        tol=tol,
        max_matvecs=max_matvecs,
        seed=seed,
        dtype=risk.dtype,
        device=device,
        basis_size=basis_size,
        space=space if space.stays else None,
    )
    found = spanned(pairs, "gradient covariance", risk)
    return replace(found, space=space) if space.stays else found
