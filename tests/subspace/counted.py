"""How often a model is evaluated, seen from outside."""

from collections.abc import Callable
from typing import Any

import curvprobe as cp
from tests import cases


class Counted:
    """A loss that counts its calls: one for every forward pass of the model."""

    def __init__(self, loss: Callable) -> None:
        self.loss, self.calls = loss, 0

    def __call__(self, outputs: Any, batch: Any) -> Any:
        self.calls += 1
        return self.loss(outputs, batch)


def counted(case: cases.Case, **options) -> tuple[cp.EmpiricalRisk, Counted]:
    """The risk of a case, and its loss."""
    loss = Counted(case.loss)
    return cp.EmpiricalRisk(case.model, loss, case.data, **options), loss
