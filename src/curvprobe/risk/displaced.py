"""Losses at many displaced points, several points in one forward pass where that is faster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.func import vmap

from curvprobe.risk.contract import check_finite
from curvprobe.risk.empirical import EmpiricalRisk

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


def displaced_losses(risk: EmpiricalRisk, block: Tensor, *, finite: bool = True) -> Tensor:
    """Mean loss of every example at every point ``w* + block[j]``; float64 (b, n), on the CPU.

    Args:
        risk: any.
        block: displacements (b, N).
        finite: raise on a loss that is not finite; False lets it through.
    """
    fast_paths = risk.probed.fast_paths
    if len(block) > 1:
        tolerance = 1e-5 if risk.dtype == torch.float32 else 1e-10

        def compare() -> tuple[Tensor, Tensor]:
            return _together(risk, block[-2:])[-1], risk.losses(block[-1], finite=False)

        if fast_paths.hold(TOGETHER, compare, tolerance=tolerance):
            try:
                losses = _together(risk, block)
            except Exception:  # examples of another kind than those that were compared
                fast_paths.give_up(TOGETHER)
            else:
                if finite:
                    for row in losses:
                        check_finite(row, 0, len(risk), displaced=True)
                return losses
    return torch.stack([risk.losses(displacement, finite=finite) for displacement in block])


def _together(risk: EmpiricalRisk, block: Tensor) -> Tensor:
    model = risk.probed
    with risk.undisturbed(), torch.no_grad():
        losses = torch.empty(len(block), len(risk), dtype=torch.float64)
        points = [model.displaced(displacement) for displacement in block]
        params = {name: torch.stack([point[name] for point in points]) for name in model.names}
        for microbatch in risk.microbatches():
            summed, weight = vmap(lambda at, part=microbatch: model.batch_losses(at, part))(params)
            losses[:, microbatch.rows] = summed.double().cpu() / weight.double().cpu()
    return losses
