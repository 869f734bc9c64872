"""The examples' gradients: their norms, and their span."""

from __future__ import annotations

import torch
from torch import Tensor

from curvprobe.curvature.per_example import NORMS_TOGETHER, norms_together
from curvprobe.errors import ArgumentError
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.risk.fast_paths import quietly
from curvprobe.risk.passes import over_examples
from curvprobe.risk.trial import check_same_losses
from curvprobe.runtime import progress
from curvprobe.subspace.spaces import Subspace


def gradient_norms(risk: EmpiricalRisk) -> Tensor:
    """Norm of every example's gradient at the solution, float64 (n,).

    Small examples are differentiated together, and held against a backward pass; others take one each.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> gradient_norms(cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))))
        tensor([2., 8.], dtype=torch.float64)
    """
    expect_risk(risk)
    divided = risk.probed.divided is not None
    if risk.ranks.several and not divided:
        return over_examples(risk, work=gradient_norms)
    norms = torch.empty(len(risk), dtype=torch.float64, device="cpu")
    risk.check_dependence()
    together = 1 if divided else risk.budget.examples_together()
    size, start = min(len(risk), together, risk.microbatch_size), 0
    with progress.bar("gradient norms (examples)", len(risk)) as advance:
        while start < len(risk):
            stop = min(start + size, len(risk))
            alone = risk.probed.vectors.norm(risk[[start]].gradient()) if size == 1 else None
            found = alone if size == 1 else _together(risk, start, stop)
            if found is None:
                size = 1
                continue
            norms[start:stop] = found
            advance(stop - start)
            start = stop
    return norms


def _together(risk: EmpiricalRisk, start: int, stop: int) -> Tensor | None:
    """Of the examples from ``start`` to ``stop``; None where the fast way does not work, for good, or on these."""
    model = risk.probed
    if not model.fast_paths.open(NORMS_TOGETHER):
        return None
    losses = risk.losses()
    try:
        with risk.undisturbed(), quietly():
            examples = risk.sample.read(start, stop)
            found = norms_together(model, examples)
    except Exception:  # whatever a batching rule raises; what is wrong with the examples themselves, the slow way says
        found = None
    if found is None or not bool(found[0].isfinite().all()):
        model.fast_paths.give_up(NORMS_TOGETHER)
        return None
    model.fast_paths.verdicts[NORMS_TOGETHER] = True
    check_same_losses(model, risk.sample, losses[examples.rows], found[1], len(examples), start)
    return found[0]


def gradient_subspace(risk: EmpiricalRisk) -> Subspace:
    """The span of the gradients of a few examples; pass a selection such as ``risk[:10]``.

    Directions whose share of the gradients is below rounding are left out, so D may be smaller than ``len(risk)``.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.eye(3), torch.full((3, 1), 9.0)))
        >>> cp.gradient_subspace(risk[:2]).basis.abs()
        tensor([[1., 0.],
                [0., 1.],
                [0., 0.]])
    """
    expect_risk(risk)
    if len(risk) > risk.num_params:
        raise ArgumentError(f"{len(risk)} gradients of {risk.num_params} parameters; select fewer examples: risk[:D]")
    space = risk.probed.vectors
    rows = torch.empty(len(risk), space.held, dtype=risk.dtype, device=risk.device)
    count, largest = 0, 0.0
    for i in range(len(risk)):
        direction = risk[[i]].gradient()
        largest = max(largest, space.norm(direction))
        space.orthogonalise(direction, rows[:count])
        left = space.norm(direction)
        if left > 100 * torch.finfo(risk.dtype).eps * largest:  # a dependent gradient leaves rounding only
            rows[count] = direction / left
            count += 1
    if count == 0:
        raise ArgumentError("all these gradients are zero; they span nothing")
    return Subspace(rows[:count].T, space=space if space.stays else None)
