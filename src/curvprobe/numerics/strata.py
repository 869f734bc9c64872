"""Examples drawn of many, so many of each stratum of like weight, and how far what they tell may be from the whole."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace

import torch
from torch import Tensor

from curvprobe.numerics.intervals import CONFIDENCE

MOST_STRATA = 32
"""Strata at most: the weights within one differ little then."""

EACH = 8
"""Examples that there are for each stratum, on average: fewer would tell little of their scatter."""

FEWEST = 2
"""Examples of a stratum that is not taken whole: one tells nothing of the scatter."""


@dataclass(frozen=True, eq=False)
class Draw:
    """Some of many examples, drawn without replacement.

    Attributes:
        rows: int (m,), their positions among all, in order.
        weight: float64 (m,), what each stands for: those of a stratum sum to the weight of all in it.
        scale: float64 (m,), the same over its own weight.
        design: int (m, 2), for each its stratum, and how many of all examples are in that.
    """

    rows: Tensor
    weight: Tensor
    scale: Tensor
    design: Tensor


def draw(weight: Tensor, count: int, seed: int) -> Draw:
    """``count`` of the examples of these weights (n,).

    Of every stratum of like weight about as many as the stratum has of the whole weight: each of those drawn then
    stands for about as much, and an example that is heavy by itself is always among them.

    Example:
        >>> import torch
        >>> found = draw(torch.tensor([1.0, 1.0, 1.0, 1.0, 96.0], dtype=torch.float64), 4, seed=0)
        >>> len(found.rows), 4 in found.rows, round(float(found.weight.sum()))
        (4, True, 100)
    """
    stratum = _strata(weight, count)
    sizes, held = torch.bincount(stratum), _sums(weight, stratum)
    taken = _allotted(sizes, held, count)
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(seed), device="cpu")
    order = order[stratum[order].argsort(stable=True)]  # stratum after stratum, at random within each
    place = torch.arange(len(weight), device="cpu") - (sizes.cumsum(0) - sizes)[stratum[order]]
    rows = order[place < taken[stratum[order]]].sort().values
    within = stratum[rows]
    scale = (held / _sums(weight[rows], within))[within]
    return Draw(rows, weight[rows] * scale, scale, torch.stack([within, sizes[within]], dim=1))


def _strata(weight: Tensor, count: int) -> Tensor:
    """The stratum of every example (n,), by its weight alone: each holds about as much of the whole weight."""
    which = _numbered(weight)
    held = _sums(weight, which)
    middle = (held.cumsum(0) - held / 2) / held.sum()
    number = max(1, min(MOST_STRATA, count // EACH))
    return _numbered((middle * number).long()[which])


def _numbered(values: Tensor) -> Tensor:
    """The number of each value (n,) among those that there are, in their order."""
    found: Tensor = torch.unique(values, return_inverse=True)[1]
    return found


def _allotted(sizes: Tensor, held: Tensor, count: int) -> Tensor:
    """Examples to take of each stratum: one after the other from where each of those taken stands for most."""
    taken, most, of = sizes.clamp_max(FEWEST).tolist(), sizes.tolist(), held.tolist()
    left = [(-of[h] / taken[h], h) for h in range(len(most)) if taken[h] < most[h]]
    heapify(left)
    for _ in range(min(count, sum(most)) - sum(taken)):
        h = left[0][1]
        taken[h] += 1
        if taken[h] < most[h]:
            heapreplace(left, (-of[h] / taken[h], h))
        else:
            heappop(left)
    return torch.tensor(taken, device="cpu")


def _sums(values: Tensor, group: Tensor) -> Tensor:
    """Of the values (n, ...) in each group, by its number."""
    number = int(group.max()) + 1
    return torch.zeros(number, *values.shape[1:], dtype=torch.float64, device="cpu").index_add_(0, group, values)


def whole_size(design: Tensor) -> int:
    """How many examples there are in all strata, from the design of a draw."""
    first = torch.zeros(int(design[:, 0].max()) + 1, dtype=torch.long, device="cpu")
    return int(first.scatter_(0, design[:, 0], design[:, 1]).sum())


def deviations(terms: Tensor, weight: Tensor, design: Tensor) -> Tensor:
    r"""What each drawn example adds to the error of the mean of terms (m, J): their squares sum to its variance.

    .. math:: e_i = \frac{w_i}{W} (x_i - \bar x_h) \sqrt{(1 - m_h / n_h) \, m_h / (m_h - 1)}

    about the mean of the stratum h, of whose n_h examples m_h were drawn: none is left where all were.

    Source: the linearised variance of a separate ratio estimator, Cochran (1977), "Sampling Techniques", 6.10.
    """
    stratum, size = design.unbind(1)
    share, taken = (weight / weight.sum())[:, None], torch.bincount(stratum)[stratum]
    mean = _sums(share * terms, stratum) / _sums(share, stratum)
    correction = (1 - taken / size) * taken / (taken - 1).clamp_min(1)
    return share * (terms - mean[stratum]) * correction.double().sqrt()[:, None]


def errors(deviations: Tensor) -> Tensor:
    """Standard errors (J,) from what the examples add to them (m, J)."""
    return deviations.square().sum(0).sqrt()


def degrees(deviations: Tensor) -> Tensor:
    """Their degrees of freedom (J,): the effective number of squares less one, see :func:`intervals.freedom`."""
    squares = deviations.square()
    effective = squares.sum(0).square() / squares.square().sum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return (effective - 1).clamp_min(1.0)


def reaches(deviations: Tensor) -> Tensor:
    """Half the widths (J,) of 95 % intervals: Student's."""
    from scipy.special import stdtrit

    return torch.from_numpy(stdtrit(degrees(deviations).numpy(), (1 + CONFIDENCE) / 2)) * errors(deviations)
