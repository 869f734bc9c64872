"""A population of which everything is known: examples around a fitted logistic regression."""

from functools import cache

import torch

import curvprobe as cp


@cache
def logistic() -> tuple[cp.ProjectedSample, cp.ProjectedSample]:
    """Sixty examples that a logistic regression was fitted to, and 40 000 more of their kind, in a subspace of 3."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40_060, 5, generator=draw, dtype=torch.float64)
    true = torch.tensor([1.5, -1.0, 0.5, 0.0, 0.3], dtype=torch.float64)
    labels = (torch.rand(len(x), generator=draw, dtype=torch.float64) < (x @ true).sigmoid()).double()
    weights = torch.zeros(5, dtype=torch.float64)
    for _ in range(30):  # Newton's method
        p = (x[:60] @ weights).sigmoid()
        bend = (x[:60].T * p * (1 - p)) @ x[:60]
        weights -= torch.linalg.solve(bend, x[:60].T @ (p - labels[:60]))
    basis = torch.linalg.eigh(bend).eigenvectors[:, [4, 3, 2]]
    p, along = (x @ weights).sigmoid(), x @ basis
    loss = torch.nn.functional.binary_cross_entropy(p, labels, reduction="none")
    whole = cp.ProjectedSample(
        loss,
        torch.ones(len(x)),
        (p - labels)[:, None] * along,
        (p * (1 - p))[:, None, None] * along[:, :, None] * along[:, None, :],
    )
    return whole[:60], whole[60:]


def drawn(population: cp.ProjectedSample, count: int, seed: int, *, names: bool = False) -> cp.ProjectedSample:
    """Examples from the population, with repetition; ``names`` gives them digests."""
    rows = torch.randint(len(population), (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    one = population[rows]
    digests = tuple(map(str, rows)) if names else ()
    return cp.ProjectedSample(one.loss, one.weight, one.gradient, one.hessian, digests)
