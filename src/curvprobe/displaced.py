"""Losses at many displaced points, several points in one forward pass where that is faster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.func import vmap

from curvprobe.losses import check_finite
from curvprobe.risk import EmpiricalRisk

_TOGETHER_BYTES = 32 * 2**20
"""Bytes that the points evaluated together may hold. Together saves the overhead of small models' many operations; a
model that fills the processor by itself gains nothing."""


def in_blocks(risk: EmpiricalRisk, displacements: Iterable[Tensor]) -> Iterator[Tensor]:
    """Displacements (N,) gathered into blocks (b, N) of as many as are evaluated together."""
    rows = min(len(risk), risk.microbatch_size)
    each = risk.num_params * risk.dtype.itemsize + rows * risk.footprint.activation
    size = max(1, _TOGETHER_BYTES // each)
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
    if len(block) > 1 and "points one by one" not in risk.checked:
        try:
            losses = _together(risk, block)
            usable = _trusted(risk, block, losses)
        except Exception:  # an operation or model without batching rules, whatever it raises: one by one works
            usable = False
        if usable:
            if finite:
                for row in losses:
                    check_finite(row, 0, len(risk), displaced=True)
            return losses
        risk.checked.add("points one by one")
    return torch.stack([risk.losses(displacement, finite=finite) for displacement in block])


def _together(risk: EmpiricalRisk, block: Tensor) -> Tensor:
    names = risk.param_names
    with risk.undisturbed(), torch.no_grad():
        losses = torch.empty(len(block), len(risk), dtype=torch.float64)
        points = [risk.displaced(displacement) for displacement in block]
        params = {name: torch.stack([point[name] for point in points]) for name in names}
        for rows, batch in risk.batches():
            count = rows.stop - rows.start
            summed, weight = vmap(lambda at, b=batch, c=count: risk.batch_losses(at, b, c))(params)
            losses[:, rows] = summed.double().cpu() / weight.double().cpu()
    return losses


def _trusted(risk: EmpiricalRisk, block: Tensor, losses: Tensor) -> bool:
    """Whether the last point of a model's first block agrees with the plain evaluation; asked once."""
    if "points together" in risk.checked:
        return True
    alone = risk.losses(block[-1], finite=False)
    tolerance = 1e-5 if risk.dtype == torch.float32 else 1e-10
    if not torch.allclose(losses[-1], alone, rtol=tolerance, atol=tolerance, equal_nan=True):
        return False
    risk.checked.add("points together")
    return True
