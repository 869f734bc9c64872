"""A few examples are evaluated first: what cannot be probed is refused, and what an example takes is found."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from curvprobe.risk.budget import Footprint, SavedBytes
from curvprobe.risk.contract import check_depends, check_finite, check_independent, check_repeatable, check_weights
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Microbatch, Sample

TRIED = 4
"""Examples that are evaluated, at most."""


def check_sample(model: ProbedModel, sample: Sample, limit: int | None) -> Tensor:
    """Losses of the first examples, at most ``limit``; refuses data that the model or the loss cannot take."""
    rows = min(len(sample), TRIED, limit or TRIED)
    first = sample.read(0, rows)
    sample.read(0, rows)  # a dataset that brings something else the second time is refused here
    return _evaluate(model, sample, first)


def check_behaviour(model: ProbedModel, sample: Sample, first: Tensor) -> None:
    """Refuse losses that are random or depend on the rest of their batch; ``first`` are the first examples' losses."""
    rows, tolerance = len(first), 1e-5 if model.dtype == torch.float32 else 1e-10
    check_repeatable(first, _evaluate(model, sample, sample.read(0, rows)), tolerance)
    alone = [_evaluate(model, sample, sample.read(row, row + 1)) for row in range(rows)]
    check_independent(first, torch.cat(alone), 100 * tolerance)


def measure(model: ProbedModel, sample: Sample) -> Footprint:
    """What an example takes."""
    first, activation = sample.read(0, 1), 0
    kept = SavedBytes([*model.state.probed.values(), *model.state.kept.values()])
    with kept, contextlib.suppress(RuntimeError):  # an operation without a second derivative is refused later
        leaves = model.leaves()
        loss_sum, _ = model.batch_losses(leaves, first)
        activation = kept.total
        model.first_order(loss_sum.sum(), leaves, create_graph=True)
    return Footprint(activation, kept.total, model.num_params, model.dtype.itemsize, first.shapes)


def _evaluate(model: ProbedModel, sample: Sample, microbatch: Microbatch) -> Tensor:
    everything = {name: p.detach().requires_grad_(p.is_floating_point()) for name, p in model.state.kept.items()}
    loss_sum, weight = model.batch_losses({**everything, **model.leaves()}, microbatch)
    check_depends(loss_sum)
    check_weights(weight, 0)
    losses = (loss_sum.detach() / weight).double()
    check_finite(losses, 0, len(sample))
    return losses
