"""Pairs of directions that people draw landscapes along: random ones in proportion to the filters, and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk


def filter_directions(risk: EmpiricalRisk, count: int = 2, *, seed: int = 0) -> Tensor:
    """Random directions (N, count) of which every filter is as long as the weights' own: those of the usual plot.

    A filter is what belongs to one output unit or channel; tensors of one dimension, biases and normalisations, stay
    where they are. A step of 1 is as large as the weights.

    Args:
        risk: at the solution.
        count: directions.
        seed: of the draw.

    Source: Li, Xu, Taylor, Studer & Goldstein (2018), "Visualizing the loss landscape of neural nets",
    arXiv:1712.09913.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(4, 3)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.ones(2, 4), torch.zeros(2, 3)))
        >>> directions = cp.filter_directions(risk)
        >>> weight, bias = directions[:12, 0].view(3, 4), directions[12:, 0]
        >>> torch.allclose(weight.norm(dim=1), model.weight.norm(dim=1)), bias.tolist()
        (True, [0.0, 0.0, 0.0])
    """
    expect_risk(risk)
    generator = torch.Generator().manual_seed(seed)
    directions = []
    for _ in range(count):
        noise = risk.probed.split(risk.probed.draw(generator))
        parts = [_as_long(noise[name], p.detach()) for name, p in risk.probed.state.probed.items()]
        directions.append(risk.probed.flatten(parts))
    return torch.stack(directions, dim=1)


def _as_long(noise: Tensor, weights: Tensor) -> Tensor:
    """The noise with every filter scaled to the length of the weights'."""
    if weights.dim() < 2:
        return torch.zeros_like(weights)
    found, wanted = (part.flatten(1).double().norm(dim=1) for part in (noise, weights))
    scale = (wanted / found.clamp_min(1e-300)).to(noise.dtype)
    scaled: Tensor = noise * scale.view(-1, *[1] * (weights.dim() - 1))
    return scaled


def checkpoint_directions(risk: EmpiricalRisk, checkpoints: Sequence[nn.Module | Mapping[str, Tensor]]) -> Tensor:
    """From the solution to other weights of the same model: directions (N, c) in which a step of 1 arrives there.

    Args:
        risk: at the solution, whose buffers (the statistics of a batch normalisation) stay what they are everywhere.
        checkpoints: models, or state dictionaries, that hold the risk's probed parameters by the same names.

    Raises:
        ValueError: for a parameter that is missing or has another shape, or a checkpoint that is the solution itself.

    Example:
        >>> import torch, curvprobe as cp
        >>> model, before = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.ones(2, 2), torch.zeros(2, 1)))
        >>> step = cp.checkpoint_directions(risk, [before])[:, 0]
        >>> torch.allclose(step[:2] + model.weight[0], before.weight[0])
        True
    """
    expect_risk(risk)
    risk.probed.expect_whole("a direction to a checkpoint")
    probed, columns = risk.probed.state.probed, []
    for i, checkpoint in enumerate(checkpoints):
        state = checkpoint.state_dict(keep_vars=True) if isinstance(checkpoint, nn.Module) else checkpoint
        if not isinstance(state, Mapping):
            raise ArgumentTypeError(
                f"checkpoint {i} is a {type(checkpoint).__name__}; expected a module or a state dictionary"
            )
        parts = []
        for name, p in probed.items():
            other = state.get(name)
            if not isinstance(other, Tensor) or other.shape != p.shape:
                came = f"shape {tuple(other.shape)}" if isinstance(other, Tensor) else "nothing"
                raise ArgumentError(
                    f"checkpoint {i} has {came} for the parameter {name!r}; expected shape {tuple(p.shape)}: take one "
                    "of the same model, or leave the parameter out with params="
                )
            parts.append(other.detach().to(p) - p.detach())
        column = risk.probed.flatten(parts)
        if not bool(column.any()):
            raise ArgumentError(f"checkpoint {i} has the solution's own weights; there is no direction to it")
        columns.append(column)
    if not columns:
        raise ArgumentError("no checkpoints came; expected one for each direction")
    return torch.stack(columns, dim=1)
