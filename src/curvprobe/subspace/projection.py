"""Every example's loss, gradient and Hessian in the coordinates of a subspace: the bridge from the model to criteria.

What comes before needs the model; what comes after is small float64 linear algebra.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from curvprobe.criteria.sample import ProjectedSample
from curvprobe.curvature.double_backward import double_backward_errors
from curvprobe.curvature.matrix import hessian
from curvprobe.curvature.nodewise.examples import NODEWISE, Sweeps
from curvprobe.curvature.nodewise.recording import UnknownOperationError
from curvprobe.curvature.nodewise.sweep import Found
from curvprobe.curvature.per_example import (
    CONFIRMED_OF,
    TOGETHER,
    Projected,
    confirmed,
    project_divided,
    project_one,
    project_together,
)
from curvprobe.curvature.second_derivatives import check_second_derivatives
from curvprobe.errors import ArgumentError, ArgumentTypeError, NotFiniteError
from curvprobe.numerics.space import Space
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.risk.fast_paths import quietly
from curvprobe.risk.passes import over_examples
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Microbatch
from curvprobe.risk.trial import check_same_losses
from curvprobe.runtime import progress
from curvprobe.runtime.memory import freed_memory_kept
from curvprobe.subspace.spaces import Eigenspace, Subspace

WORTH_SWEEPING = 3
"""Directions from which on sweeping a large example is faster than products along each, on a processor; an accelerator
takes many tangents of one graph together, which is as fast."""


def project(risk: EmpiricalRisk, subspace: Subspace) -> ProjectedSample:
    r"""Project every example's loss, gradient and Hessian onto a subspace.

    .. math:: l_i, \quad U^T g_i, \quad U^T H_i U, \qquad i = 1, \dots, n

    Found operation by operation, at the cost of half of D Hessian-vector products over the sample or much less, and
    held against double backward; where an operation of the model has no rule, small examples are differentiated
    together and others one by one. Every example's loss must be the one that is known.

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
    _check(risk, subspace)
    loss, weight, design = risk.losses(), risk.weights, risk.sample.design
    check_second_derivatives(risk, "hessian")
    gradient, curved = _in_blocks(risk, subspace, loss)
    if not bool(curved.isfinite().all() and gradient.isfinite().all()):
        raise NotFiniteError("a projected derivative is not finite; the loss has no finite second derivative at w*")
    curved = (curved + curved.mT) / 2
    return ProjectedSample(loss + risk.sample.offset, weight, gradient, curved, risk.digests(), design)


def _in_blocks(risk: EmpiricalRisk, subspace: Subspace, loss: Tensor) -> Projected:
    """Slopes (n, D) and curvatures (n, D, D), along as many directions at once as there is room for where the model is:
    where that is not all of them, along every pair of blocks."""
    n, dim, held = len(risk), subspace.dim, risk.budget.columns_held()
    elsewhere = subspace.space is not None and not subspace.space.stays
    at_hand = not elsewhere and subspace.basis.device == risk.device
    if at_hand or dim <= held:
        return _shared(risk, subspace.columns(), loss)
    gradient = torch.empty(n, dim, dtype=torch.float64, device="cpu")
    curved = torch.empty(n, dim, dim, dtype=torch.float64, device="cpu")
    blocks = torch.split(torch.arange(dim, device="cpu"), held // 2)
    for pair in itertools.combinations(blocks, 2):
        both = torch.cat(pair)
        gradient[:, both], curved[:, both[:, None], both] = _shared(risk, subspace.columns(both.tolist()), loss)
    return gradient, curved


def _shared(risk: EmpiricalRisk, columns: Tensor, loss: Tensor) -> Projected:
    """Slopes and curvatures along directions (N, D), each process those of its own examples."""
    n, dim, columns = len(risk), columns.shape[1], columns.to(device=risk.device, dtype=risk.dtype)
    if not risk.ranks.several:
        return _differentiated(risk, columns, loss)

    def packed(own: EmpiricalRisk) -> Tensor:
        mine = loss[risk.ranks.share(n)] if own.probed.divided is None else own.losses()
        gradient, curved = _differentiated(own, columns, mine)
        return torch.cat([gradient, curved.flatten(1)], dim=1)

    rows = over_examples(risk, dim + dim * dim, work=packed)
    return rows[:, :dim].contiguous(), rows[:, dim:].reshape(n, dim, dim).contiguous()


def _differentiated(risk: EmpiricalRisk, basis: Tensor, loss: Tensor) -> Projected:
    """Slopes and curvatures of all examples, by this process."""
    n, dim = len(risk), basis.shape[1]
    with (
        freed_memory_kept(),
        risk.undisturbed(),
        double_backward_errors(),
        progress.bar("projection (examples)", n) as advance,
    ):
        gradient = torch.empty(n, dim, dtype=torch.float64, device="cpu")
        curved = torch.empty(n, dim, dim, dtype=torch.float64, device="cpu")
        for rows, (slopes, curvatures), again in _projected(risk, basis, loss):
            gradient[rows], curved[rows] = slopes, curvatures
            check_same_losses(risk.probed, risk.sample, loss[rows], again, len(again), rows.start)
            advance(len(again))
    return gradient, curved


def _projected(risk: EmpiricalRisk, basis: Tensor, loss: Tensor) -> Iterator[tuple[slice, Projected, Tensor]]:
    """Slopes and curvatures of all examples in order, by the fastest way that works, and their losses."""
    start = 0
    for rows, projected, again in _swept(risk, basis, loss):
        yield rows, projected, again
        start = rows.stop
    model, held, at_once = risk.probed, risk.budget.products_held(), risk.budget.tangents_at_once(1)
    size = min(len(risk), risk.budget.examples_together(), risk.microbatch_size) if model.divided is None else 1
    while start < len(risk):
        examples = risk.sample.read(start, min(start + size, len(risk)))
        if model.divided is not None:
            directions = risk.budget.directions_at_once(model.divided.largest(model.names))
            found: tuple[Projected, Tensor] | None = project_divided(model, examples, basis, directions)
        elif size == 1:
            found = project_one(model, examples, basis, held, at_once)
        else:
            found = _together(model, examples, basis)
        if found is None:
            size = 1
            continue
        yield examples.rows, *found
        start = examples.rows.stop


def _swept(risk: EmpiricalRisk, basis: Tensor, loss: Tensor) -> Iterator[tuple[slice, Projected, Tensor]]:
    """Examples in order, operation by operation, until one is met that this does not work for."""
    model, small = risk.probed, risk.budget.examples_together() > 1
    if not small and (basis.shape[1] < WORTH_SWEEPING or risk.device.type != "cpu"):
        return
    sweeps, start, size = Sweeps.along(model, basis), 0, risk.microbatch_size
    while start < len(risk) and model.fast_paths.open(NODEWISE):
        examples, recorded = risk.sample.read(start, min(start + size, len(risk))), len(sweeps.recorded)
        try:
            with quietly():
                fit = risk.budget.examples_swept(sweeps.bytes_per_example(examples))
                if fit == 0:
                    return
                if len(examples) > fit:
                    size = fit
                    continue
                found = sweeps(examples, loss[examples.rows])
        except UnknownOperationError:
            break
        except Exception:  # a rule that fails; what is wrong with the examples themselves, the slow way says
            found = None
        if found is None and size > 1:
            size = 1  # each by a recording of its own, if need be
            continue
        anew = size > 1 or len(sweeps.recorded) > recorded
        if found is None or not _confirmed(model, examples, basis, found, anew=anew):
            break
        model.fast_paths.verdicts[NODEWISE] = True
        yield examples.rows, (found[1].cpu(), found[2].cpu()), found[0].cpu()
        start = examples.rows.stop
    if start < len(risk):
        model.fast_paths.give_up(NODEWISE)


def _confirmed(model: ProbedModel, examples: Microbatch, basis: Tensor, found: Found, *, anew: bool) -> bool:
    """Whether double backward agrees with what sweeping found.

    Several examples are confirmed together each time. Of those that go one by one what was recorded ``anew`` is, and
    one in eight: there a confirmation takes a good part of the time.
    """
    if not anew and examples.rows.start % CONFIRMED_OF:
        return True
    try:
        return confirmed(model, examples, basis, (found[1].cpu(), found[2].cpu())) is not None
    except Exception:  # the slow way says what is wrong
        return False


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
    _check(risk, subspace)
    space, basis = subspace.space or Space(risk.num_params), subspace.basis.to(device=risk.device, dtype=risk.dtype)
    if isinstance(subspace, Eigenspace) and subspace.matrix == "hessian" and subspace.risk_key == risk.key():
        curved = torch.diag(subspace.eigenvalues)
    else:
        H, held = hessian(risk), risk.budget.products_held()
        product = H.__matmul__ if subspace.space is None else H.of_rows
        products = [space.inner(basis.T, product(basis[:, i : i + held])) for i in range(0, subspace.dim, held)]
        curved = torch.cat(products, dim=1).cpu()
    slope = space.inner(basis.T, risk.gradient()[space.rows], quick=True)  # first: the losses come with it
    return ProjectedSample(
        torch.tensor([risk.value()], dtype=torch.float64, device="cpu"),
        torch.tensor([risk.total_weight], dtype=torch.float64, device="cpu"),
        slope[None],
        ((curved + curved.T) / 2)[None],
    )


def _check(risk: EmpiricalRisk, subspace: Subspace) -> None:
    if not isinstance(subspace, Subspace):
        raise ArgumentTypeError(
            f"subspace is a {type(subspace).__name__}; expected a Subspace: use Subspace.from_basis(tensor)"
        )
    if subspace.num_params != risk.num_params:
        raise ArgumentError(
            f"the subspace lives in {subspace.num_params} parameters and the risk has {risk.num_params}; "
            "make it from a risk with the same params="
        )
    if subspace.space is None:
        risk.probed.expect_whole("a subspace that each process has as a whole")
    elif risk.space.part != subspace.space.part:
        raise ArgumentError(
            "several processes hold the subspace, and the risk is of others; make the risk with the same group="
        )
