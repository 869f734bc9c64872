"""Every example's loss, gradient and Hessian in the coordinates of a subspace: the bridge from the model to criteria.

What comes before needs the model; what comes after is small float64 linear algebra.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from curvprobe.criteria.sample import ProjectedSample
from curvprobe.curvature.double_backward import double_backward_errors
from curvprobe.curvature.matrix import hessian
from curvprobe.curvature.per_example import TOGETHER, Projected, confirmed, project_one, project_together
from curvprobe.curvature.second_derivatives import check_second_derivatives
from curvprobe.errors import ArgumentError, ArgumentTypeError, NotFiniteError
from curvprobe.numerics.linalg import inner, quick_inner
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.risk.fast_paths import quietly
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Microbatch
from curvprobe.risk.trial import check_same_losses
from curvprobe.runtime import progress
from curvprobe.runtime.memory import freed_memory_kept
from curvprobe.subspace.spaces import Eigenspace, Subspace


def project(risk: EmpiricalRisk, subspace: Subspace) -> ProjectedSample:
    r"""Project every example's loss, gradient and Hessian onto a subspace.

    .. math:: l_i, \quad U^T g_i, \quad U^T H_i U, \qquad i = 1, \dots, n

    Costs about D Hessian-vector products over the sample. Small examples are differentiated together (vmap over
    examples, outside every derivative), and each such group is held against one product by double backward; others,
    and models without batching rules, go one by one.

    Args:
        risk: the empirical risk; n examples.
        subspace: D directions in its parameter space.

    Returns:
        The projected sample, float64.

    Raises:
        ValueError: if the subspace belongs to another number of parameters, or a second derivative is missing.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.zeros(2, 1)))
        >>> sample = cp.project(risk, cp.Subspace.from_basis(torch.eye(2)[:, :1]))
        >>> sample.loss.tolist(), sample.gradient.flatten().tolist(), sample.hessian.flatten().tolist()
        ([1.0, 4.0], [2.0, 8.0], [2.0, 8.0])
    """
    expect_risk(risk)
    basis = _basis_for(risk, subspace)
    n, dim = len(risk), subspace.dim
    loss, weight = risk.losses(), risk.weights
    check_second_derivatives(risk, "hessian")
    with (
        freed_memory_kept(),
        risk.undisturbed(),
        double_backward_errors(),
        progress.bar("projection (examples)", n) as advance,
    ):
        gradient = torch.empty(n, dim, dtype=torch.float64, device="cpu")
        curved = torch.empty(n, dim, dim, dtype=torch.float64, device="cpu")
        for rows, (slopes, curvatures), again in _projected(risk, basis):
            gradient[rows], curved[rows] = slopes, curvatures
            check_same_losses(risk.probed, risk.sample, loss[rows], again, len(again), rows.start)
            advance(len(again))
    if not bool(curved.isfinite().all() and gradient.isfinite().all()):
        raise NotFiniteError("a projected derivative is not finite; the loss has no finite second derivative at w*")
    return ProjectedSample(loss, weight, gradient, (curved + curved.mT) / 2, risk.digests())


def _projected(risk: EmpiricalRisk, basis: Tensor) -> Iterator[tuple[slice, Projected, Tensor]]:
    """Slopes and curvatures of all examples in order, as many at a time as pays and works, and their losses."""
    model, held, at_once = risk.probed, risk.budget.products_held(), risk.budget.tangents_at_once(1)
    size, start = min(len(risk), risk.budget.examples_together(), risk.microbatch_size), 0
    while start < len(risk):
        examples = risk.sample.read(start, min(start + size, len(risk)))
        alone = size == 1
        found = project_one(model, examples, basis, held, at_once) if alone else _together(model, examples, basis)
        if found is None:
            size = 1
            continue
        yield examples.rows, *found
        start = examples.rows.stop


def _together(model: ProbedModel, examples: Microbatch, basis: Tensor) -> tuple[Projected, Tensor] | None:
    """What the fast way finds of these examples, confirmed by the slow one; None where it does not work, for good."""
    if not model.fast_paths.open(TOGETHER):
        return None
    try:
        with quietly():
            found = project_together(model, examples, basis)
        losses = confirmed(model, examples, basis, found)
        if losses is not None:
            model.fast_paths.verdicts[TOGETHER] = True
            return found, losses
    except Exception:  # whatever a batching rule raises; what is wrong with the examples themselves, the slow way says
        pass
    model.fast_paths.give_up(TOGETHER)
    return None


@freed_memory_kept()
def mean_projection(risk: EmpiricalRisk, subspace: Subspace) -> ProjectedSample:
    """The risk itself as one projected example: ``L_k``, ``U^T g^(k)``, ``U^T H^(k) U``, and the total weight.

    In the Hessian eigenspace of this very risk the last is ``diag(lambda)`` and costs no product.
    """
    expect_risk(risk)
    basis = _basis_for(risk, subspace)
    if isinstance(subspace, Eigenspace) and subspace.matrix == "hessian" and subspace.risk_key == risk.key():
        curved = torch.diag(subspace.eigenvalues)
    else:
        H, held = hessian(risk), risk.budget.products_held()
        products = [inner(basis.T, H @ basis[:, i : i + held]) for i in range(0, subspace.dim, held)]
        curved = torch.cat(products, dim=1).cpu()
    slope = quick_inner(basis.T, risk.gradient())  # first: the losses come with it
    return ProjectedSample(
        torch.tensor([risk.value()], dtype=torch.float64, device="cpu"),
        torch.tensor([risk.total_weight], dtype=torch.float64, device="cpu"),
        slope[None],
        ((curved + curved.T) / 2)[None],
    )


def _basis_for(risk: EmpiricalRisk, subspace: Subspace) -> Tensor:
    if not isinstance(subspace, Subspace):
        raise ArgumentTypeError(
            f"subspace is a {type(subspace).__name__}; expected a Subspace: use Subspace.from_basis(tensor)"
        )
    if subspace.num_params != risk.num_params:
        raise ArgumentError(
            f"the subspace lives in {subspace.num_params} parameters and the risk has {risk.num_params}; "
            "make it from a risk with the same params="
        )
    return subspace.basis.to(device=risk.device, dtype=risk.dtype)
