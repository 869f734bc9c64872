"""Gradient and Hessian of single examples in a subspace: one by one, and of many examples together."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils import _pytree as pytree

from curvprobe.curvature.linearisation import Linearisation, gradient_derivative, kind_of
from curvprobe.numerics.linalg import quick_inner
from curvprobe.risk.examples import Batch
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Microbatch

TOGETHER = "examples projected together"
"""Name of the fast way."""

FEW = 3
"""Directions in which the two ways are compared."""


def project_one(model: ProbedModel, example: Microbatch, basis: Tensor, held: int) -> tuple[Tensor, Tensor]:
    """(D,) and (D, D) of a single example, by double backward on one first-order graph; ``held`` products at once."""
    leaves = model.leaves()
    loss_sum, weight = model.batch_losses(leaves, example)
    gradients = model.first_order((loss_sum / weight).sum(), leaves, create_graph=True)
    slope = quick_inner(basis.T, model.flatten(gradients))
    products = Linearisation(
        model, "example", kind_of(model, example), gradient_derivative(leaves, gradients)
    ).products(basis)
    block, curved = torch.empty_like(basis.T[:held]), []  # memory of its own: fresh memory takes as long as the sums
    for start in range(0, basis.shape[1], held):
        rows = block[: basis.shape[1] - start]
        for row in rows:
            row.copy_(next(products))
        curved.append(quick_inner(rows, basis))
    return slope.cpu(), torch.cat(curved).cpu()


def project_together(model: ProbedModel, examples: Microbatch, basis: Tensor) -> tuple[Tensor, Tensor]:
    """(n, D) and (n, D, D), by vmap over examples of forward-over-reverse products."""
    params = {name: p.detach() for name, p in model.leaves().items()}
    count, batch = len(examples), examples.batch

    def loss_of(at: dict[str, Tensor], example: Batch) -> Tensor:
        alone = pytree.tree_map(lambda t: t.unsqueeze(0), example)
        loss_sum, weight = model.batch_losses(at, Microbatch(alone, slice(0, 1)))
        return (loss_sum / weight)[0]

    columns = [model.split(column.contiguous()) for column in basis.T]
    bases = {name: torch.stack([column[name].reshape(-1) for column in columns]) for name in model.names}

    def contract(parts: dict[str, Tensor]) -> Tensor:
        """Inner products (n, D) of the examples' vectors, given by parameter, with the basis."""
        total = torch.zeros(count, basis.shape[1], dtype=torch.float64, device=basis.device)
        for name, part in parts.items():
            total += quick_inner(part.reshape(count, -1), bases[name].T)
        return total

    gradient: Callable[..., dict[str, Tensor]] = grad(loss_of)
    slope = contract(vmap(gradient, in_dims=(None, 0))(params, batch))
    curved = []
    for tangent in columns:

        def product(example: Batch, tangent: dict[str, Tensor] = tangent) -> Any:
            return jvp(lambda at: gradient(at, example), (params,), (tangent,))[1]

        curved.append(contract(vmap(product)(batch)))
    return slope.cpu(), torch.stack(curved, dim=1).cpu()


def together_holds(
    model: ProbedModel, examples: Microbatch, read: Callable[[int, int], Microbatch], basis: Tensor
) -> bool:
    """Whether projecting such examples together gives what projecting one does; ``read`` brings some of the sample."""
    few, start = basis[:, :FEW], examples.rows.start

    def compare() -> tuple[Tensor, Tensor]:
        at = start if len(examples) > 1 or start == 0 else start - 1  # two are needed
        two, first = read(at, at + 2), read(at, at + 1)
        alone = project_one(model, first, few, FEW)
        with model.undisturbed(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, on the first use of forward mode
            found = [part[0] for part in project_together(model, two, few)]
        # Each part by its own size: slopes may be much larger than curvatures, or the other way round.
        sizes = [float(part.abs().max()) or 1.0 for part in alone]
        fast, slow = (
            torch.cat([(part / size).flatten() for part, size in zip(parts, sizes, strict=True)])
            for parts in (found, alone)
        )
        return fast, slow

    tolerance = 1e-3 if model.dtype == torch.float32 else 1e-8
    kind = (model.dtype, examples.kind)
    return model.fast_paths.hold(TOGETHER, kind, compare, rtol=tolerance, atol=tolerance)
