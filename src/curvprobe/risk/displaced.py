"""Losses at many displaced points, several points in one forward pass where that is faster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.func import vmap

from curvprobe.risk.contract import check_finite
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.risk.fast_paths import Compared
from curvprobe.risk.passes import over_examples
from curvprobe.risk.sample import Microbatch

TOGETHER = "points evaluated together"
"""Name of the fast way."""


def in_blocks(displacements: Iterable[Tensor], *risks: EmpiricalRisk) -> Iterator[Tensor]:
    """Displacements (N,) gathered into blocks (b, N) of as many as are evaluated together on each of the risks."""
    size = min(risk.budget.points_at_once(min(len(risk), risk.microbatch_size)) for risk in risks)
    block: list[Tensor] = []
    for displacement in displacements:
        block.append(displacement)
        if len(block) == size:
            yield torch.stack(block)
            block = []
    if block:
        yield torch.stack(block)


def displaced_values(risk: EmpiricalRisk, block: Tensor, *, finite: bool = True) -> Tensor:
    """The risk at every point ``w* + block[j]``; float64 (b,)."""
    return displaced_losses(risk, block, finite=finite) @ risk.shares + risk.sample.offset


def displaced_losses(risk: EmpiricalRisk, block: Tensor, *, finite: bool = True) -> Tensor:
    """Mean loss of every example at every point ``w* + block[j]``; float64 (b, n), on the CPU.

    Args:
        risk: any.
        block: displacements (b, N).
        finite: raise on a loss that is not finite; False lets it through.
    """
    losses: Tensor | None = None
    if risk.ranks.several:
        losses = over_examples(risk, len(block), work=lambda own: displaced_losses(own, block, finite=False).T).T
    elif len(block) > 1:
        losses = _together(risk, block)
    if losses is None:
        return torch.stack([risk.losses(displacement, finite=finite) for displacement in block])
    if finite:
        for row in losses:
            check_finite(row, 0, len(risk), displaced=True)
    return losses


def _together(risk: EmpiricalRisk, block: Tensor) -> Tensor | None:
    """All points in one pass over the examples; None where that does not work, or is wrong."""
    model, fast_paths = risk.probed, risk.probed.fast_paths
    tolerance = 1e-5 if risk.dtype == torch.float32 else 1e-10
    with risk.undisturbed():
        losses = torch.empty(len(block), len(risk), dtype=torch.float64, device="cpu")
        points = [model.displaced(displacement) for displacement in block]
        params = {name: torch.stack([point[name] for point in points]) for name in model.names}

        def evaluate(at: dict[str, Tensor], microbatch: Microbatch) -> Tensor:
            summed, weight = vmap(lambda one: model.batch_losses(one, microbatch))(at)
            return summed.detach().double().cpu() / weight.double().cpu()

        for microbatch in risk.microbatches():

            def compare(part: Microbatch = microbatch) -> Compared:
                summed, weight = model.batch_losses(points[-1], part)
                fast = evaluate({name: stacked[-2:] for name, stacked in params.items()}, part)[-1]
                return fast, summed.detach().double().cpu() / weight.double().cpu()

            rows = (id(risk.sample), microbatch.rows.start, microbatch.rows.stop)
            kind = (risk.dtype, microbatch.kind, rows)
            if not fast_paths.hold(TOGETHER, kind, compare, rtol=tolerance, atol=tolerance):
                return None
            try:
                losses[:, microbatch.rows] = evaluate(params, microbatch)
            except Exception:  # examples of another kind than those that were compared
                fast_paths.give_up(TOGETHER)
                return None
    return losses
