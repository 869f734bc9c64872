"""When the search for missed copies of eigenvalues may end; docs/eigensolver.md derives the bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvprobe.eigensolver.krylov import KrylovBasis
from curvprobe.eigensolver.wanted import Wanted

SEARCH_STEPS = 10
"""Products of a look for missed copies, unless it can tell earlier; more while the best value outside may still belong
inside. benchmarks/solver.py counts what fewer miss in a crowded spectrum."""

LOOKS = 2
"""Looks, from random starts of their own, where what was seen only seems worse: one may settle on the next eigenvector
before a missed copy of the last one shows."""

MISSED = 1e-4
"""Probability, over the random start of the search, of missing an eigenvector when the search ends early; for one that
lies partly in what the start leaves out, up to a few times that."""


def would_have_shown(basis: KrylovBasis, wanted: Wanted, outside: Tensor, inside: Tensor) -> bool:
    """Whether an eigenvector outside, as wanted as the last one inside, would have shown itself.

    The components of a unit eigenvector of eigenvalue mu along the vectors q_1, q_2, ... of the search follow their
    three-term recurrence from <q_1, u>, and their squares sum to 1 at the most. So if the recurrence, started at 1,
    grows to a sum of squares K, then |<q_1, u>|^2 <= 1/K; and for a random q_1 in N dimensions that happens with
    probability sqrt(2 N / (pi K)).

    Args:
        basis: whose last vectors are the search's.
        wanted: which eigenpairs are.
        outside: the projected matrix (m, m) of the search's vectors.
        inside: the eigenvalues (D,) found before.
    """
    needed = 2 * basis.size / (math.pi * MISSED**2)
    last = abs(float(inside[-1]))
    step = wanted.crowded_bound(inside, last, basis)
    ends = {"algebraic": [float(inside[-1]) + step], "smallest": [float(inside[-1]) - step]}
    return all(_growth(basis, outside, mu) >= needed for mu in ends.get(wanted.which, [last + step, -last - step]))


def seems_worse(basis: KrylovBasis, wanted: Wanted, outside: Tensor, inside: Tensor) -> bool:
    """Whether the best pair that the search has seen is no better than the last one inside; arguments as above.

    It is worse even with its residual added; or has converged where no room is left: where a copy of the last one lies
    outside, no search could tell it from a more wanted one. Neither is a proof: from a start with little of a missed
    eigenvector in it, the search may settle on the next one first.
    """
    found, coefficients = basis.space.eigh(outside)
    best = int(wanted.order(found)[0])
    reach = basis.pending_norm * float(coefficients[-1, best].abs())
    if len(outside) >= SEARCH_STEPS and bool(wanted.merit(found[best]) + reach < wanted.merit(inside[-1])):
        return True
    return basis.full and reach <= wanted.crowded_bound(inside, float(inside[-1]), basis)


def _growth(basis: KrylovBasis, outside: Tensor, mu: float) -> float:
    """Sum of squares of the components, relative to the first, of an eigenvector of eigenvalue ``mu``."""
    found = torch.linalg.eigvalsh(outside)
    if found.min() <= mu <= found.max():
        return 0.0
    beta = [*outside.diagonal(1).tolist(), basis.pending_norm]
    before, component, total = 0.0, 1.0, 1.0
    for i, alpha in enumerate(outside.diagonal().tolist()):
        if not abs(beta[i]) > 10 * basis.epsilon * basis.largest:
            break  # an invariant subspace: what follows started anew
        before, component = component, ((mu - alpha) * component - (beta[i - 1] * before if i else 0.0)) / beta[i]
        total += component**2
        if total > 1e100:  # more than enough for any number of parameters, and short of overflow
            break
    return total
