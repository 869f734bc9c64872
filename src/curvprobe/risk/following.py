"""A risk at other weights of its model, while that trains: what was checked of it is not checked again."""

from __future__ import annotations

from torch import nn

from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.risk.probed import ProbedModel


def at_weights_of(risk: EmpiricalRisk, model: nn.Module) -> EmpiricalRisk:
    """The same risk at the weights and buffers that its model has now.

    Raises:
        ValueError: for another model than the risk's.
    """
    return _of(risk, risk.probed.at(model))


def beside(risk: EmpiricalRisk, other: EmpiricalRisk) -> EmpiricalRisk:
    """The same examples at the weights of another risk of the same model."""
    return _of(risk, other.probed)


def _of(risk: EmpiricalRisk, probed: ProbedModel) -> EmpiricalRisk:
    sizes = (risk.given_microbatch_size, risk.microbatch_size)
    return EmpiricalRisk.of(probed, risk.sample.anew(), risk.budget, *sizes, risk.ranks)
