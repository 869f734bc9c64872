"""What is asked of a risk, the same by plain double backward, and what must be left alone meanwhile."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import reject
from torch import Tensor

import curvprobe as cp
from tests.cases import bits, state_of
from tests.generated.recipes import Recipe
from tests.generated.tasks import Task, depends

DIM = 2
"""Directions that examples are projected on."""

EACH = ("projected loss", "projected gradient", "projected Hessian", "weights", "losses", "gradient norms")
"""Answers that there is one of for every example."""

Answers = dict[str, Tensor]


def task_of(recipe: Recipe) -> Task:
    """The task, if there is something to ask of it."""
    task = Task.make(recipe)
    keep(depends(task))
    return task


def keep(legitimate: bool) -> None:
    """Leave out what there is no answer for."""
    if not legitimate:
        reject()


def directions(task: Task) -> tuple[cp.Subspace, Tensor]:
    """A subspace, and a block of vectors that begins with its basis."""
    size = sum(p.numel() for name, p in task.model.named_parameters() if name in task.names)
    generator = torch.Generator().manual_seed(task.recipe.seed)
    draws = torch.randn(size, DIM + 1, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(draws[:, : min(DIM, size)]).Q
    vectors = torch.cat([basis, draws[:, DIM:]], dim=1)
    return cp.Subspace.from_basis(basis), vectors if task.recipe.seed % 2 else vectors.T.contiguous().T


def has_ggn(recipe: Recipe) -> bool:
    return not recipe.penalty and recipe.outputs != "object"


def answers(task: Task, risk: cp.EmpiricalRisk) -> Answers:
    """What is asked of a risk at its solution."""
    subspace, vectors = directions(task)
    sample = cp.project(risk, subspace)
    found = {
        "projected loss": sample.loss,
        "projected gradient": sample.gradient,
        "projected Hessian": sample.hessian,
        "weights": risk.weights,
        "Hessian products": cp.hessian(risk) @ vectors,
        "gradient": risk.gradient(),
        "losses": risk.losses(),
        "value": torch.tensor(risk.value(), dtype=torch.float64),
        "gradient norms": cp.gradient_norms(risk),
    }
    if has_ggn(task.recipe):
        found["Gauss-Newton products"] = cp.ggn(risk) @ vectors
    return found


def naive_answers(task: Task, rows: Sequence[int] | None = None) -> Answers:
    """The same by plain autograd, example by example."""
    items = task.items if rows is None else [task.items[row] for row in rows]
    subspace, vectors = directions(task)
    naive, U = task.at(), subspace.basis
    losses, weights = naive.losses(items)
    found = [naive.derivatives(item, vectors) for item in items]
    gradients, products = (torch.stack(parts) for parts in zip(*found, strict=True))
    keep(bool(gradients.isfinite().all() and products.isfinite().all()))
    curved = U.T @ products[..., : U.shape[1]]
    result = {
        "projected loss": losses,
        "projected gradient": gradients @ U,
        "projected Hessian": (curved + curved.mT) / 2,
        "weights": weights,
        "Hessian products": mean(products, weights),
        "gradient": mean(gradients, weights),
        "losses": losses,
        "value": mean(losses, weights),
        "gradient norms": gradients.norm(dim=1),
    }
    if has_ggn(task.recipe):
        result["Gauss-Newton products"] = mean(torch.stack([naive.ggn(item, vectors) for item in items]), weights)
    return result


def mean(values: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("n,n...->...", weights, values) / weights.sum()


def assert_close(found: Answers, expected: Answers, task: Task, tolerance: float = 1e-8) -> None:
    """Every answer by its own size, down to what rounding leaves of the terms that it is made of."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        size = float(expected[name].abs().max()) if expected[name].numel() else 0.0
        allowed = tolerance * size + 1e-12 * task.unit_of(name)
        assert value.shape == expected[name].shape, name
        apart = float((value - expected[name]).abs().max()) if value.numel() else 0.0
        assert apart <= allowed, f"{name} is {apart:.3g} off, of {size:.3g}"


def check(recipe: Recipe, judge: Callable[[Task], None]) -> None:
    """Hold a property against a task, which must be left as it was."""
    task = task_of(recipe)
    before, held, data = state_of(task.model), attributes(task.model), bits_of(task)
    judge(task)
    assert state_of(task.model) == before
    assert attributes(task.model) == held
    assert bits_of(task) == data


def attributes(model: torch.nn.Module) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Everything that modules hold, by identity; lists and dicts with what is in them."""

    def content(value: Any) -> Any:
        if isinstance(value, dict):
            return id(value), [(key, id(part)) for key, part in value.items()]
        if isinstance(value, list):
            return id(value), [id(part) for part in value]
        return (id(value), bits(value)) if isinstance(value, Tensor) else id(value)

    return [
        (name, sorted((key, content(value)) for key, value in vars(module).items() if key != "training"))
        for name, module in model.named_modules()
    ]


def bits_of(task: Task) -> list[bytes]:
    return [part.numpy().tobytes() for item in task.items for part in item.values()]
