"""The Hessian product as one function compiled by torch.compile: forward over reverse, fresh at every product."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp

from curvprobe.examples import Batch
from curvprobe.linearisation import Derivative, agree
from curvprobe.risk import EmpiricalRisk

Compiled = Callable[[Batch, int], Derivative]
"""Maps a microbatch and its number of examples to the derivative of its gradient along tangents."""


def compile_hessian(risk: EmpiricalRisk) -> Compiled:
    """The Hessian products of this risk's microbatches, compiled at the first of each shape."""

    def product(at: dict[str, Tensor], batch: Batch, rows: int, tangents: dict[str, Tensor]) -> dict[str, Tensor]:
        def summed(w: dict[str, Tensor]) -> Tensor:
            return risk.batch_losses(w, batch, rows)[0].sum()

        pushed: dict[str, Tensor] = jvp(grad(summed), (at,), (tangents,))[1]
        return pushed

    compiled: list[Any] = []
    params = {name: leaf.detach() for name, leaf in risk.leaves().items()}

    def linearised(batch: Batch, rows: int) -> Derivative:
        def derivative(tangents: list[Tensor], batched: bool) -> list[Tensor]:
            if batched:
                raise RuntimeError("compiled products are taken one by one")
            if not compiled:
                compiled.append(torch.compile(product))
            return list(compiled[0](params, batch, rows, dict(zip(params, tangents, strict=True))).values())

        return derivative

    return linearised


def trusted(compiled: Callable[[], Tensor], plain: Callable[[], Tensor]) -> bool:
    """Whether the compiled product exists and agrees with the plain one; says why where it does not."""
    try:
        difference = None if agree(compiled(), plain()) else "it disagrees with the product that is not compiled"
    except Exception as error:  # whatever the compiler raises: there is a product without it
        difference = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if difference is not None:
        warnings.warn(f"the compiled product is not used: {difference}", stacklevel=6)
    return difference is None
