"""The criterion averaged over which example comes next, with its parts and its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from curvprobe.criteria.distribution import absolute_moments
from curvprobe.criteria.drawn import DrawnError, with_draw
from curvprobe.criteria.draws import check_sigma
from curvprobe.criteria.estimators import check_power
from curvprobe.criteria.expected import ExpectedCriterion
from curvprobe.criteria.features import along_directions, features, membership
from curvprobe.criteria.increment import fresh_increments, last_increments
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.criteria.weighted_sets import ratio_of_sets
from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.numerics.intervals import ShiftAndSpread, log_interval, mean_interval, pseudo_values, standard_error
from curvprobe.runtime.digest import overlap

FEWEST = 5
"""Candidates below which no interval is given."""

UNKNOWN = (0.0, math.inf)
"""An interval that says nothing."""


def expected_criterion(
    sample: ProjectedSample | Sequence[ProjectedSample],
    fresh: ProjectedSample | Sequence[ProjectedSample] | None = None,
    sigma: float | Tensor = 1e-3,
    grow_by: int | Literal["double"] = 1,
    *,
    k: int | None = None,
    allow_overlap: bool = False,
    p: float = 2.0,
) -> ExpectedCriterion:
    r"""Expectation of the closed-form criterion over which examples come next, at fixed solution and subspace.

    .. math:: E\,\Delta_2^{(D)} = f^2 ( |\mu - \bar\psi_k|^2 + \mathrm{tr}\,\Sigma / b ), \quad f = b / (k + b)

    with mean :math:`\mu` and covariance :math:`\Sigma` of the candidates' features. The first term is the mean shift
    (the generalisation gap, as the landscape sees it), the second the spread. Both are estimated without bias. With
    unequal weights every candidate has its own factor; where several of those join, the factor of a set is that of its
    own total weight: 4096 random sets tell by how much that corrects what the mean weight gives.

    Args:
        sample: the k examples that define the risk; or several samples, one for each seed or checkpoint.
        fresh: candidates outside the sample (one for each sample where several came), each as likely to be the next.
            None takes the sample itself for a draw from the population: the average over all orders of a pool.
        sigma: standard deviation in parameter units, scalar or (D,).
        grow_by: number b of examples that join at once, or "double" for b = k.
        k: without candidates, the sample size at which the expectation is taken; None is the sample's own.
        allow_overlap: take candidates that the sample holds too; they are found by their content.
        p: order, at least 1. Another than 2 is averaged over single candidates, each in closed form; without candidates
            over each example of the sample as the next of all others.

    Returns:
        The value with a standard error, a 95 % interval and its table. Over candidates the interval comes from a
        bootstrap of what each contributes, over seeds from their scatter (and, where all have the same candidates,
        from that of these too), both on a logarithmic scale.

    Raises:
        ValueError: for candidates in the sample, too few candidates, or sizes that make no sense.

    Source: derived in docs/theory.md from the closed form of Kiselev & Grabovoy (2026), arXiv:2604.14870.

    Example:
        >>> import torch
        >>> from curvprobe.criteria.sample import ProjectedSample
        >>> def flat(*losses):
        ...     n = len(losses)
        ...     return ProjectedSample(torch.tensor(losses), torch.ones(n), torch.zeros(n, 1), torch.zeros(n, 1, 1))
        >>> expected = expected_criterion(flat(1.0, 1.0, 1.0), flat(2.0, 4.0), sigma=0.1)
        >>> expected.value, expected.table[:, 0].tolist()   # (1^2 + 3^2) / 2 / 4^2, of which the spread is 2 / 4^2
        (0.3125, [0.1875, 0.125])
    """
    if not isinstance(sample, ProjectedSample):
        return _over_seeds(list(sample), fresh, sigma, grow_by, k=k, allow_overlap=allow_overlap, p=p)
    if fresh is not None and not isinstance(fresh, ProjectedSample):
        raise ArgumentTypeError("several samples of candidates came for one sample; expected one, or as many samples")
    if k is not None and (fresh is not None or not isinstance(k, Integral) or k < 1):
        raise ArgumentError(f"k is {k!r}; expected a positive number, and only without candidates")
    size = sample.size if k is None else int(k)
    count = size if grow_by == "double" else grow_by
    if not isinstance(count, Integral) or count < 1:
        raise ArgumentError(f"grow_by is {grow_by!r}; expected a positive number of examples or 'double'")
    check_power(p)
    if fresh is not None:
        check_fresh(sample, fresh, allow_overlap=allow_overlap)
    if p != 2:
        sample.expect_whole()
        if count != 1 or k is not None:
            raise ArgumentError(
                f"p is {p:g}; the expectation of another order than 2 is known for one that joins, at k"
            )
        return _of_order(sample, fresh, check_sigma(sigma, sample.dim), p)
    if fresh is None:
        return _over_pool(sample, sigma, size, int(count))
    (moves, factor), b = _moves(sample, fresh, sigma, int(count)), int(count)
    found = _over_candidates(moves, sample.dim, b)
    if sample.design is not None:
        found = with_draw(found, DrawnError.of(sample, sigma, factor, moves), b)
    if b == 1 or bool((fresh.weight == fresh.weight[0]).all()):
        return found
    return _scaled(found, *ratio_of_sets(moves, fresh.weight, float(sample.weight.sum()), b))


def _of_order(sample: ProjectedSample, fresh: ProjectedSample | None, sigma: Tensor, p: float) -> ExpectedCriterion:
    """The moment of order p, each next example by itself."""
    increments = last_increments(sample) if fresh is None else next(fresh_increments(sample, fresh, [sample.size]))
    terms = absolute_moments(increments, sigma, p)
    table = torch.full((2, 3), math.nan, dtype=torch.float64, device="cpu")
    return ExpectedCriterion(
        value=float(terms.mean()),
        stderr=standard_error(terms),
        interval=_interval(terms),
        table=table,
        table_stderr=table,
        contributions=terms,
        grow_by=1,
        shape_interval=UNKNOWN,
        shape_by_direction=torch.full((sample.dim,), math.nan, dtype=torch.float64, device="cpu"),
        pool=fresh is None,
        p=p,
    )


def _interval(terms: Tensor) -> tuple[float, float]:
    """Of the mean of what examples contribute (n,)."""
    return mean_interval(terms) if len(terms) >= FEWEST else UNKNOWN


def _over_pool(sample: ProjectedSample, sigma: float | Tensor, size: int, b: int) -> ExpectedCriterion:
    """Over all orders of the sample, when ``b`` join ``size`` of its kind."""
    squares = (b / (size + b)) ** 2 * pool_squares(sample, sigma)
    by_part = squares @ membership(sample.dim)
    shift, spread = by_part / size, by_part / b
    return _expectation(
        torch.stack([shift.mean(0), spread.mean(0)]),
        (shift, spread),
        _interval((shift + spread).sum(1)),
        _interval((shift + spread)[:, 1:].sum(1)),
        (1 / size + 1 / b) * squares.mean(0) @ along_directions(sample.dim),
        b,
        pool=True,
    )


def _over_candidates(moves: Tensor, dim: int, b: int) -> ExpectedCriterion:
    """Over candidates, from what each adds to the features of the risk when it is one of ``b`` that join."""
    shift, spread = b**2 * squared_mean(moves), b * moves.var(0)
    shift_terms, spread_terms = move_terms(moves, dim)
    return _expectation(
        torch.stack([shift, spread]) @ membership(dim),
        (b**2 * shift_terms, b * spread_terms),
        _interval_of_moves(moves, b),
        _interval_of_moves(moves[:, 1:], b),
        (shift + spread) @ along_directions(dim),
        b,
        pool=False,
        alone=moves.square().sum(1) if b == 1 else None,
    )


def _interval_of_moves(moves: Tensor, b: int) -> tuple[float, float]:
    """Of the mean square of what ``b`` of these moves (m, P) make together."""
    if b == 1 or len(moves) < FEWEST:
        return _interval(moves.square().sum(1))
    low, high = ShiftAndSpread(moves).intervals(*torch.tensor([[b**2], [b]], dtype=torch.float64, device="cpu"))
    return (float(low), float(high))


def _scaled(found: ExpectedCriterion, ratio: float, error: float) -> ExpectedCriterion:
    """All of it times a ratio that is known to a standard error."""
    (low, high), (flat, steep) = found.interval, found.shape_interval
    least, most = max(0.0, ratio - 2 * error), ratio + 2 * error
    return replace(
        found,
        value=ratio * found.value,
        stderr=math.hypot(ratio * found.stderr, error * found.value),
        interval=(least * low, most * high),
        table=ratio * found.table,
        table_stderr=ratio * found.table_stderr,
        contributions=ratio * found.contributions,
        shape_interval=(least * flat, most * steep),
        shape_by_direction=ratio * found.shape_by_direction,
    )


def _expectation(
    table: Tensor,
    by_source: tuple[Tensor, Tensor],
    interval: tuple[float, float],
    shape_interval: tuple[float, float],
    directions: Tensor,
    b: int,
    *,
    pool: bool,
    alone: Tensor | None = None,
) -> ExpectedCriterion:
    """From the table, each example's part (n, 3) in its rows, and, where one joins, what each does alone."""
    terms = (by_source[0] + by_source[1]).sum(1) if alone is None else alone
    errors = torch.stack([part.std(0) / math.sqrt(len(part)) for part in by_source])
    return ExpectedCriterion(
        float(table.sum()), standard_error(terms), interval, table, errors, terms, b, shape_interval, directions, pool
    )


def check_fresh(sample: ProjectedSample, fresh: ProjectedSample, *, allow_overlap: bool) -> None:
    """Refuse candidates that are too few, of another subspace, or in the sample."""
    if sample.dim != fresh.dim:
        raise ArgumentError(f"the sample is projected on {sample.dim} directions and the candidates on {fresh.dim}")
    if len(fresh) < 2:
        raise ArgumentError(f"{len(fresh)} candidate came; an expectation over candidates needs at least 2")
    shared = overlap(sample.digests, fresh.digests)
    if shared and not allow_overlap:
        raise ArgumentError(
            f"{len(shared)} of {len(fresh)} candidates are in the sample too (the first is candidate {shared[0]}); "
            "expected examples outside it: leave them out, or pass allow_overlap=True"
        )


def _moves(sample: ProjectedSample, fresh: ProjectedSample, sigma: float | Tensor, b: int) -> tuple[Tensor, Tensor]:
    """What each candidate adds to the features of the risk when it is one of ``b`` that join, (m, P), and its factor
    (m,)."""
    share = sample.weight / sample.weight.sum()
    distance = features(fresh, sigma) - share @ features(sample, sigma)
    weight = fresh.weight if b == 1 else b * fresh.weight.mean()
    factor = fresh.weight / (sample.weight.sum() + weight)  # where b join, each for its own part
    return factor[:, None] * distance, factor


def squared_mean(moves: Tensor) -> Tensor:
    """Square of each feature's mean (P,), without the bias that the spread of the candidates gives it."""
    return moves.mean(0).square() - moves.var(0) / len(moves)


def move_terms(moves: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """What each candidate contributes to the squared mean (without bias) and to the spread of the moves, (m, 3) each.

    Jackknife pseudo-values by part; NaN for two candidates, which cannot do without one.
    """
    m, parts = len(moves), membership(dim)
    if m < 3:
        return (torch.full((m, 3), math.nan, dtype=torch.float64, device="cpu"),) * 2
    mean, centred = moves.mean(0), moves - moves.mean(0)
    distance = centred.square() @ parts
    spread = (distance.sum(0) - m / (m - 1) * distance) / (m - 2)
    shift = (mean - centred / (m - 1)).square() @ parts - spread / (m - 1)
    return pseudo_values(squared_mean(moves) @ parts, shift), pseudo_values(moves.var(0) @ parts, spread)


def pool_squares(sample: ProjectedSample, sigma: float | Tensor) -> Tensor:
    """Terms (n, 1 + D + D^2) whose mean estimates the variance of each feature.

    Each example is tried as the next one of all others, with its own factor; for equal weights the mean is the
    unbiased sample covariance.
    """
    n, weight, total = len(sample), sample.weight, sample.weight.sum()
    if n < 2:
        raise ArgumentError("the sample has one example; without candidates the expectation needs at least 2")
    sample.expect_whole()
    psi = features(sample, sigma)
    others = (weight @ psi - weight[:, None] * psi) / (total - weight)[:, None]
    moves = (weight / total)[:, None] * (psi - others)
    return n * (n - 1) * moves.square()


def pool_dispersion(sample: ProjectedSample, sigma: float | Tensor) -> Tensor:
    """The same by part, (n, 3): their mean estimates the trace of the features' covariance."""
    return pool_squares(sample, sigma) @ membership(sample.dim)


def _paired(
    samples: list[ProjectedSample], fresh: ProjectedSample | Sequence[ProjectedSample] | None
) -> list[ProjectedSample | None]:
    """The candidates of every sample."""
    if isinstance(fresh, ProjectedSample):
        raise ArgumentTypeError(
            "one sample of candidates came for several samples; expected as many, each in its own subspace"
        )
    candidates: list[ProjectedSample | None] = [None] * len(samples) if fresh is None else list(fresh)
    if len(samples) < 2 or len(candidates) != len(samples):
        raise ArgumentError(
            f"{len(samples)} samples and {len(candidates)} candidate samples came; expected 2 or more pairs"
        )
    return candidates


def _over_seeds(
    samples: list[ProjectedSample],
    fresh: ProjectedSample | Sequence[ProjectedSample] | None,
    sigma: float | Tensor,
    grow_by: int | Literal["double"],
    *,
    k: int | None,
    allow_overlap: bool,
    p: float,
) -> ExpectedCriterion:
    """The mean over seeds or checkpoints, with the scatter between them as its uncertainty."""
    candidates = _paired(samples, fresh)
    each = [
        expected_criterion(one, new, sigma, grow_by, k=k, allow_overlap=allow_overlap, p=p)
        for one, new in zip(samples, candidates, strict=True)
    ]
    values = torch.tensor([result.value for result in each], dtype=torch.float64, device="cpu")
    value, variance = float(values.mean()), float(values.var() / len(values))
    contributions = torch.cat([result.contributions for result in each])
    names = {(new or one).digests for one, new in zip(samples, candidates, strict=True)}
    if len(names) == 1 and names != {()}:
        # The same candidates for all: what they share does not show between the seeds.
        contributions = torch.stack([result.contributions for result in each]).mean(0)
        variance += standard_error(contributions) ** 2
    stderr = math.sqrt(variance)
    tables = torch.stack([result.table for result in each])
    shapes = torch.tensor([result.shape for result in each], dtype=torch.float64, device="cpu")
    return ExpectedCriterion(
        value=value,
        stderr=stderr,
        interval=log_interval(value, stderr, len(values) - 1),
        table=tables.mean(0),
        table_stderr=tables.std(0) / math.sqrt(len(values)),
        contributions=contributions,
        grow_by=each[0].grow_by,
        shape_interval=log_interval(float(shapes.mean()), standard_error(shapes), len(shapes) - 1),
        shape_by_direction=torch.full_like(each[0].shape_by_direction, math.nan),
        pool=fresh is None,
        p=p,
    )
