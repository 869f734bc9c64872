"""The losses that a trajectory has found already, in the place of trainings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from curvprobe.criteria.sample import ProjectedSample
from curvprobe.criteria.stationarity import moving_ratio
from curvprobe.errors import ArgumentError
from curvprobe.forecasting.refits import Refits
from curvprobe.runtime.store import RESULT, read_stage

_STAGE = re.compile(r"trajectory-k(\d+)-[0-9a-f]+-candidates")


def of_trajectory(folder: Path) -> list[Refits]:
    """One model of each size, the largest first; the candidates are what was held out.

    Raises:
        ArgumentError: where there is no whole trajectory with candidates, or none at half of its largest size.
    """
    stages = _stages(folder)
    found = [_refits(folder, name, stages) for name in stages if _STAGE.fullmatch(name)]
    sizes = sorted((one.size for one in found), reverse=True)
    if not found:
        raise ArgumentError(
            f"the trajectory in {str(folder)!r} has no candidates; expected one with candidates=, which are held out"
        )
    if len(set(sizes)) < len(sizes) or sizes[0] // 2 not in sizes:
        raise ArgumentError(
            f"the trajectory in {str(folder)!r} has the sample sizes {sorted(sizes)}; expected each once, and half of "
            f"the largest, {sizes[0] // 2}, among them"
        )
    ordered = sorted(found, key=lambda one: -one.size)
    half = next(one for one in ordered if one.size == sizes[0] // 2)
    rest = [one for one in ordered[1:] if one is not half and one.size < half.size]
    return [ordered[0], half, *rest]


def _stages(folder: Path) -> dict[str, str]:
    """Names and keys of the stages that a trajectory's result rests on."""
    try:
        record: Any = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        stages = record["stages"] if "trajectory" in record else None
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise ArgumentError(f"no trajectory could be read from {str(folder)!r}: {error!r:.200}") from error
    if not isinstance(stages, dict):
        raise ArgumentError(f"{str(folder)!r} is the folder of something else than a trajectory")
    return {str(name): str(key) for name, key in stages.items()}


def _refits(folder: Path, name: str, stages: dict[str, str]) -> Refits:
    candidates, sample = (_sample(folder, part, stages) for part in (name, f"{name.removesuffix('candidates')}sample"))
    nothing = torch.zeros(1, 0, dtype=torch.float64, device="cpu")
    return Refits(
        held_out=candidates.loss[None],
        weights=candidates.weight,
        own=sample.loss[None],
        own_weights=sample.weight[None],
        others=nothing,
        other_weights=nothing,
        moving=torch.tensor([moving_ratio(sample)], dtype=torch.float64, device="cpu"),
        seconds=torch.zeros(1, dtype=torch.float64, device="cpu"),
    )


def _sample(folder: Path, name: str, stages: dict[str, str]) -> ProjectedSample:
    found = read_stage(folder, name, ProjectedSample, stages.get(name, ""))
    if found is None:
        raise ArgumentError(
            f"the stage {name} of the trajectory in {str(folder)!r} is not there; repeat the trajectory"
        )
    return found[0]
