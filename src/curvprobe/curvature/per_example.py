"""Gradient and Hessian of single examples in a subspace: one by one, and of many examples together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils import _pytree as pytree

from curvprobe.curvature.linearisation import Linearisation, derivatives, gradient_derivative, kind_of
from curvprobe.errors import CurvprobeError
from curvprobe.numerics.linalg import all_finite, quick_inner
from curvprobe.risk.examples import Batch
from curvprobe.risk.fast_paths import DIRECTIONS_TOGETHER, Compared, difference, quietly
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Microbatch
from curvprobe.runtime.memory import ran_out

CONFIRMED_OF = 8
"""Of examples that are differentiated one by one, one in so many is confirmed by double backward."""

TOGETHER, NORMS_TOGETHER = "examples projected together", "examples differentiated together"
PRODUCTS_TOGETHER = "products of examples together"
"""Names of the fast ways."""

ROUNDING = 1000
"""Units of rounding that two ways to a vector of the parameters may be apart."""


Projected = tuple[Tensor, Tensor]
"""Slopes (n, D) and curvatures (n, D, D) of some examples."""


def project_one(
    model: ProbedModel, example: Microbatch, basis: Tensor, held: int, at_once: int
) -> tuple[Projected, Tensor]:
    """A single example's, by double backward on one first-order graph, and its loss.

    ``held`` products lie in memory together, of which ``at_once`` are made together if that works.
    """
    leaves = model.leaves()
    loss_sum, weight = model.batch_losses(leaves, example)
    gradients = model.first_order((loss_sum / weight).sum(), leaves, create_graph=True)
    slope = quick_inner(basis.T, model.flatten(gradients))
    products = Linearisation(
        model, "example", kind_of(model, example), gradient_derivative(leaves, gradients)
    ).products(basis, at_once)
    block, curved = torch.empty_like(basis.T[:held]), []  # memory of its own: fresh memory takes as long as the sums
    for start in range(0, basis.shape[1], held):
        rows = block[: basis.shape[1] - start]
        for row in rows:
            row.copy_(next(products))
        curved.append(quick_inner(rows, basis))
    return (slope[None].cpu(), torch.cat(curved)[None].cpu()), (loss_sum / weight).detach().double().cpu()


def project_divided(model: ProbedModel, example: Microbatch, basis: Tensor, at_once: int) -> tuple[Projected, Tensor]:
    """A single example's where the weights are divided, and its loss: derivatives in the coordinates themselves.

    Along ``at_once`` directions together if that works, which then exchange weights and derivatives once.
    """
    z = torch.zeros(basis.shape[1], dtype=torch.float64, device=basis.device, requires_grad=True)
    moved = model.moved(z, basis)
    with moved.undisturbed():
        loss_sum, weight = moved.batch_losses(moved.state.probed, example)
        slope = derivatives([(loss_sum / weight).sum()], [z], create_graph=True)[0]
        curved = _directions_together(moved, example, slope, z, at_once) if at_once > 1 else None
        if curved is None:
            curved = torch.stack([derivatives([part], [z])[0] for part in slope])
    return (slope.detach()[None].cpu(), curved[None].cpu()), (loss_sum / weight).detach().double().cpu()


def _directions_together(
    model: ProbedModel, example: Microbatch, slope: Tensor, z: Tensor, at_once: int
) -> Tensor | None:
    """Derivatives (D, D) of slopes (D,) in z, by vmap over so many of these.

    None where one of the processes finds that this fails; or, in one of eight examples, that it disagrees with a
    derivative by itself.
    """
    fast_paths, divided = model.fast_paths, model.divided
    assert divided is not None
    if not fast_paths.open(DIRECTIONS_TOGETHER) or not slope.requires_grad:
        return None

    def product(along: Tensor) -> Tensor:
        return derivatives([slope], [z], [along])[0]

    right = False
    try:
        with quietly():
            blocks = torch.split(torch.eye(len(z), dtype=z.dtype, device=z.device), at_once)
            found = torch.cat([vmap(product)(block) for block in blocks])
    except Exception as error:  # whatever a batching rule raises, in all processes alike
        if isinstance(error, CurvprobeError) or ran_out(error):
            raise
    else:
        right = example.rows.start % CONFIRMED_OF > 0 or _agrees(model, example, found, product)
    fast_paths.verdicts[DIRECTIONS_TOGETHER] = bool(divided.ranks.least(int(right)))
    return found if fast_paths.open(DIRECTIONS_TOGETHER) else None


def _agrees(model: ProbedModel, example: Microbatch, curved: Tensor, product: Callable[[Tensor], Tensor]) -> bool:
    """Whether a symmetric matrix (D, D) has this product with a random vector: an error in any entry shows there."""
    along = torch.randn(len(curved), generator=_generator(example), dtype=torch.float64, device="cpu").to(curved)
    both = along @ curved, product(along)
    return difference(lambda: both, rtol=1e-3 if model.dtype == torch.float32 else 1e-8) is None


def project_together(model: ProbedModel, examples: Microbatch, basis: Tensor) -> Projected:
    """Many examples', by vmap over them of forward-over-reverse products."""
    params = {name: p.detach() for name, p in model.leaves().items()}
    count, batch = len(examples), examples.batch
    columns = [model.trained(model.split(column.contiguous())) for column in basis.T]
    bases = {name: torch.stack([column[name].reshape(-1) for column in columns]) for name in model.names}

    def contract(parts: dict[str, Tensor]) -> Tensor:
        """Inner products (n, D) of the examples' vectors, given by parameter, with the basis."""
        total = torch.zeros(count, basis.shape[1], dtype=torch.float64, device=basis.device)
        for name, part in parts.items():
            total += quick_inner(part.reshape(count, -1), bases[name].T)
        return total

    slope = contract(vmap(grad(loss_of_one(model)), in_dims=(None, 0))(params, batch))
    curved = [contract(_products(model, params, batch, tangent)) for tangent in columns]
    return slope.cpu(), torch.stack(curved, dim=1).cpu()


def _products(
    model: ProbedModel, params: dict[str, Tensor], batch: Batch, tangent: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Products of every example's Hessian with a tangent, (n, *shape) by parameter."""
    gradient: Callable[..., dict[str, Tensor]] = grad(loss_of_one(model))

    def product(example: Batch) -> Any:
        return jvp(lambda at: gradient(at, example), (params,), (tangent,))[1]

    found: dict[str, Tensor] = vmap(product)(batch)
    return found


def products_together(model: ProbedModel, examples: Microbatch, vector: Tensor) -> Tensor | None:
    """Products (n, N) of every example's Hessian with a vector (N,), by vmap; None where double backward disagrees.

    What is compared is their sum with random signs, each time: an error in any of them shows there.
    """

    if not model.fast_paths.open(PRODUCTS_TOGETHER):
        return None
    products: list[Tensor] = []

    def compare() -> Compared:
        params = {name: p.detach() for name, p in model.leaves().items()}
        parts = model.trained(_products(model, params, examples.batch, model.trained(model.split(vector))), lead=1)
        products.append(torch.cat([parts[name].reshape(len(examples), -1) for name in model.names], dim=1))
        signs = _signs(_generator(examples), len(examples)).to(vector)
        leaves = model.leaves()
        loss_sum, weight = model.batch_losses(leaves, examples)
        gradients = model.first_order((signs.to(loss_sum) * loss_sum / weight).sum(), leaves, create_graph=True)
        derivative = gradient_derivative(leaves, gradients)
        slow = next(Linearisation(model, "example", kind_of(model, examples), derivative).products(vector[:, None]))
        return torch.tensordot(signs, products[0], dims=1), slow

    model.fast_paths.verdicts[PRODUCTS_TOGETHER] = difference(compare) is None
    return products[0] if model.fast_paths.open(PRODUCTS_TOGETHER) else None


def loss_of_one(model: ProbedModel) -> Callable[[dict[str, Tensor], Batch], Tensor]:
    """The mean loss of an example without its batch dimension, as a function of the parameters."""

    def loss_of(at: dict[str, Tensor], example: Batch) -> Tensor:
        alone = pytree.tree_map(lambda t: t.unsqueeze(0), example)
        loss_sum, weight = model.batch_losses(at, Microbatch(alone, slice(0, 1)))
        return (loss_sum / weight)[0]

    return loss_of


def norms_together(model: ProbedModel, examples: Microbatch) -> tuple[Tensor, Tensor] | None:
    """Norms of many examples' gradients, by vmap over them, and their losses; None where backward disagrees.

    What is held against a backward pass is their sum with random signs: an error in any of them shows there.
    """
    params = {name: p.detach() for name, p in model.leaves().items()}
    found = vmap(grad(loss_of_one(model)), in_dims=(None, 0))(params, examples.batch)
    for name, rows in model.padding_rows.items():
        found[name][:, rows] = 0
    parts = [torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=torch.float64) for part in found.values()]
    leaves, signs = model.leaves(), _signs(_generator(examples), len(examples))
    loss_sum, weight = model.batch_losses(leaves, examples)
    slow = model.first_order((signs.to(loss_sum) * loss_sum / weight).sum(), leaves)
    fast = [torch.tensordot(signs.to(found[name]), found[name], dims=1) for name in leaves]
    if difference(lambda: (model.flatten(fast), model.flatten(slow))) is not None:
        return None
    return torch.stack(parts).norm(dim=0).cpu(), (loss_sum / weight).detach().double().cpu()


def _generator(examples: Microbatch) -> torch.Generator:
    """The same for the same examples."""
    return torch.Generator().manual_seed(examples.rows.start)


def _signs(generator: torch.Generator, count: int) -> Tensor:
    return torch.randint(0, 2, (count,), generator=generator, device="cpu").double() * 2 - 1


def confirmed(model: ProbedModel, examples: Microbatch, basis: Tensor, found: Projected) -> Tensor | None:
    """The examples' losses, if one product by double backward agrees with what their projection together ``found``.

    Of the examples' sum with random signs, along a random vector of the subspace: an error in any of them shows, unless
    it is a thousandth (in float64 a hundred-millionth) of them all.
    """
    generator = _generator(examples)
    signs = _signs(generator, len(examples))
    along = torch.randn(basis.shape[1], generator=generator, dtype=torch.float64, device="cpu")
    leaves = model.leaves()
    loss_sum, weight = model.batch_losses(leaves, examples)
    gradients = model.first_order((signs.to(loss_sum) * loss_sum / weight).sum(), leaves, create_graph=True)
    vector = basis @ along.to(basis)
    derivative = gradient_derivative(leaves, gradients)
    product = next(Linearisation(model, "example", kind_of(model, examples), derivative).products(vector[:, None]))
    tolerance, eps = 1e-3 if model.dtype == torch.float32 else 1e-8, torch.finfo(model.dtype).eps
    for each, whole in ((found[0], model.flatten(gradients)), (found[1] @ along, product)):
        # Each of both by its own size; what has no part in the subspace is rounding of what it has outside.
        allowed = tolerance * float(each.norm()) + ROUNDING * eps * float(whole.norm())
        off = float((signs @ each - quick_inner(basis.T, whole).cpu()).norm())
        if not (off <= allowed if bool(each.isfinite().all()) else not all_finite(whole)):
            return None
    return (loss_sum / weight).detach().double().cpu()
