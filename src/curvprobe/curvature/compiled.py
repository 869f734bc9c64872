"""The Hessian product as one function compiled by torch.compile: forward over reverse, fresh at every product."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp

from curvprobe.curvature.linearisation import Linearisation, kind_of, linearise
from curvprobe.risk.fast_paths import difference
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Microbatch

Compiled = Callable[[Microbatch], Linearisation]
"""Maps a microbatch to the derivative of its gradient along tangents."""


def compile_hessian(model: ProbedModel) -> Compiled:
    """The Hessian products of this model's microbatches, compiled at the first of each shape."""

    def product(
        at: dict[str, Tensor], batch: Any, rows: int, scale: Tensor | None, tangents: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        def summed(w: dict[str, Tensor]) -> Tensor:
            return model.batch_losses(w, Microbatch(batch, slice(0, rows), scale))[0].sum()

        pushed: dict[str, Tensor] = jvp(grad(summed), (at,), (tangents,))[1]
        return pushed

    compiled: list[Any] = []
    params = {name: leaf.detach() for name, leaf in model.leaves().items()}

    def linearised(microbatch: Microbatch) -> Linearisation:
        def derivative(tangents: list[Tensor], batched: bool) -> list[Tensor]:
            if batched:
                raise RuntimeError("compiled products are taken one by one")
            if not compiled:
                compiled.append(torch.compile(product))
            named = model.trained(dict(zip(params, tangents, strict=True)))
            return list(compiled[0](params, microbatch.batch, len(microbatch), microbatch.scale, named).values())

        return Linearisation(model, "compiled", kind_of(model, microbatch), derivative)

    return linearised


def trusted(compiled: Compiled, model: ProbedModel, microbatch: Microbatch) -> bool:
    """Whether the compiled product exists and agrees with the plain one; says why where it does not."""
    draws = torch.randn(model.num_params, 1, generator=torch.Generator().manual_seed(0), device="cpu")
    block = draws.to(device=model.device, dtype=model.dtype)

    def compare() -> tuple[Tensor, Tensor]:
        fast = next(compiled(microbatch).products(block))
        return fast, next(linearise(model, "hessian", microbatch).products(block))

    found = difference(compare)
    if found is not None:
        warnings.warn(f"the compiled product is not used: {found}", stacklevel=5)
    return found is None
