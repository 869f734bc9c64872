"""The few numbers from which a page recomputes the criteria: sums over examples, never the examples themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvprobe.criteria.drawn import draw_error, widened
from curvprobe.criteria.expectation import FEWEST, UNKNOWN
from curvprobe.criteria.increment import (
    QuadraticIncrement,
    fresh_increments,
    joining_factor,
    prefix_means,
    spaced_sizes,
)
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.numerics.intervals import mean_intervals
from curvprobe.numerics.strata import reaches
from curvprobe.runtime.plain import brief, plain

POINTS = 40
"""Sample sizes, at most."""

PLANE = 6
"""Leading directions of which any two may span the plane of the landscape."""


@dataclass(frozen=True, eq=False)
class Aggregates:
    """Sums over examples from which all that a page's sliders change is a polynomial in sigma.

    With a the level, c the slope and B the curvature of the increment by a candidate, in the leading D' directions, the
    criterion is the mean of ``(a + sigma^2 tr B / 2)^2 + sigma^2 |c|^2 + sigma^4 |B|_F^2 / 2`` over candidates.

    Attributes:
        ks: (K,), sample sizes, the last one the whole sample.
        moments: (K, D, 5), means over the candidates of a^2, a tr B, (tr B)^2, |c|^2 and |B|_F^2, for every k and every
            number of leading directions.
        cells: (D, 9), at the whole sample: means and variances over the candidates, see :data:`CELLS`.
        moves: (D, 9), the same without the factor of the increment, for the required size.
        products: (D, 5, 5), covariances over the candidates of the coefficients of sigma^0, sigma^2 and sigma^4 in
            their criteria, and of sigma^2 and sigma^4 in their shapes, over their number: the squared standard error of
            a mean is a quadratic form of it.
        risk: (K, 1 + P + P^2), loss, gradient and Hessian of the risk on the first k examples, in P directions.
        candidates: (1 + P + P^2,), the same of the candidates' mean.
        joined: (1 + P + P^2,), the same of the sample and all candidates together.
        num_candidates: m.
        sigmas: (G,), at which the next is known; the one that was analysed is among them.
        intervals: (D, G, 4), 95 % intervals of the criterion and of its shape at the whole sample.
        quantiles: (D, G, 3), of the candidates' own criteria there, for each of :data:`QUANTILES`.
    """

    ks: list[int]
    moments: Tensor
    cells: Tensor
    moves: Tensor
    products: Tensor
    risk: Tensor
    candidates: Tensor
    joined: Tensor
    num_candidates: int
    sigmas: Tensor
    intervals: Tensor
    quantiles: Tensor

    __repr__ = brief

    def to_json(self) -> dict[str, Any]:
        """Plain values, to twelve digits; those of every sigma, of which there are many, to eight."""
        digits = {"intervals": 8, "quantiles": 8, "sigmas": 17}
        return {name: _rounded(plain(value), digits.get(name, 12)) for name, value in vars(self).items()}


QUANTILES = (0.05, 0.5, 0.95)
"""Of the candidates, by what each of them does by itself."""

CELLS = (
    *("mean_a", "mean_tr", "var_a", "var_tr", "cov_a_tr"),
    *("mean_c_squared", "var_c", "mean_B_squared", "var_B"),
)
"""Columns of :attr:`Aggregates.cells`."""


def aggregates(sample: ProjectedSample, fresh: ProjectedSample, sigmas: Tensor) -> Aggregates:
    """Of a projected sample and the candidates; intervals and quantiles at some sigmas (G,)."""
    m = len(fresh)
    ks = spaced_sizes(sample, POINTS)
    before = prefix_means(sample, ks)
    last = next(fresh_increments(before[-1:], fresh, [1]))  # the whole sample as one example
    few, coefficients = min(PLANE, sample.dim), _coefficients(last)
    risk, mean = _flat(before, few), _flat(fresh.mean(), few)[0]
    share = float(fresh.weight.sum() / (sample.weight.sum() + fresh.weight.sum()))
    return Aggregates(
        ks=ks,
        moments=_moments(before, fresh),
        cells=_cells(last),
        moves=_cells(_moves(sample, fresh)),
        products=_products(coefficients),
        risk=risk,
        candidates=mean,
        joined=(1 - share) * risk[-1] + share * mean,
        num_candidates=m,
        sigmas=sigmas,
        intervals=_with_draw(_intervals(coefficients, sigmas), coefficients, sample, fresh, sigmas),
        quantiles=_quantiles(coefficients, sigmas),
    )


def _moves(sample: ProjectedSample, fresh: ProjectedSample) -> QuadraticIncrement:
    """What the candidates have beyond the sample, each by its own weight over their mean weight."""
    before, share = sample.mean(), fresh.weight / fresh.weight.mean()
    return QuadraticIncrement(
        share * (fresh.loss - before.loss),
        share[:, None] * (fresh.gradient - before.gradient),
        share[:, None, None] * (fresh.hessian - before.hessian),
    )


def _moments(before: ProjectedSample, fresh: ProjectedSample) -> Tensor:
    """Means over the candidates of a^2, a tr B, (tr B)^2, |c|^2 and |B|_F^2 at every prefix, (K, D, 5).

    The curvatures are gone through once, whatever the number of prefixes: about the candidates' mean C, a candidate's
    ``f^2 (H - H_k)^2`` is ``f^2 ((H - C)^2 + 2 (H - C)(C - H_k) + (C - H_k)^2)``, of which nothing cancels.
    """
    factors = torch.stack([joining_factor(weight, fresh.weight) for weight in before.weight])
    squares, m = factors.square(), len(fresh)
    centre = fresh.mean().hessian[0]
    off = (fresh.hessian - centre).flatten(1)
    apart = (centre - before.hessian).flatten(1)
    bend = squares @ off.square() + 2 * (squares @ off) * apart + squares.sum(1, keepdim=True) * apart.square()
    traces = fresh.hessian.diagonal(dim1=1, dim2=2)
    columns = []
    for i, factor in enumerate(factors):
        level = (factor * (fresh.loss - before.loss[i]))[:, None]
        trace = (factor[:, None] * (traces - before.hessian[i].diagonal())).cumsum(1)
        slope = factor[:, None] * (fresh.gradient - before.gradient[i])
        at_k = (
            level.square().expand_as(trace).mean(0),
            (level * trace).mean(0),
            trace.square().mean(0),
            slope.square().mean(0).cumsum(0),
            _leading(bend[i].view_as(centre) / m),
        )
        columns.append(torch.stack(at_k, dim=1))
    return torch.stack(columns)


def _coefficients(increments: QuadraticIncrement) -> Tensor:
    """Of each candidate's criterion those of sigma^0, sigma^2 and sigma^4, of its shape the last two, (5, m, D)."""
    level, trace = increments.level[:, None], _traces(increments.curvature)
    slope, squares = increments.slope.square().cumsum(1), increments.curvature.square()
    # What direction d adds: its square, and those that it shares with the directions before it.
    bend = (2 * squares.tril(-1).sum(2) + squares.diagonal(dim1=1, dim2=2)).cumsum(1)
    whole = (level.square().expand_as(trace), level * trace + slope, trace.square() / 4 + bend / 2)
    return torch.stack([*whole, slope, bend / 2])


def _products(coefficients: Tensor) -> Tensor:
    """Their covariances over the number of candidates, (D, 5, 5)."""
    deviations, m = coefficients - coefficients.mean(1, keepdim=True), coefficients.shape[1]
    return torch.einsum("imd,jmd->dij", deviations, deviations) / (m * max(1, m - 1))


def _powers(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """By what the coefficients of the whole and those of the shape are weighted, (G, 3) and (G, 2)."""
    s2 = sigmas.square()
    return torch.stack([torch.ones_like(s2), s2, s2.square()], dim=1), torch.stack([s2, s2.square()], dim=1)


def _intervals(coefficients: Tensor, sigmas: Tensor) -> Tensor:
    """Of the mean over the candidates, (D, G, 4): as :func:`curvprobe.expected_criterion` gives them."""
    _, m, dim = coefficients.shape
    if m < FEWEST:
        return torch.tensor(2 * UNKNOWN, dtype=torch.float64, device="cpu").expand(dim, len(sigmas), 4)
    parts, (whole, shape) = coefficients.movedim(0, 2).movedim(1, 0), _powers(sigmas)
    return torch.stack([*mean_intervals(parts[..., :3], whole), *mean_intervals(parts[..., 3:], shape)], dim=2)


def _with_draw(
    intervals: Tensor, coefficients: Tensor, sample: ProjectedSample, fresh: ProjectedSample, sigmas: Tensor
) -> Tensor:
    """The same with the error of having drawn the sample's examples."""
    if sample.design is None:
        return intervals
    wider, whole, shape = intervals.clone(), *_powers(sigmas)
    for d in range(sample.dim):
        means = coefficients[:, :, d].mean(1)
        values = torch.stack([whole @ means[:3], shape @ means[3:]], dim=1)
        for g, sigma in enumerate(sigmas):
            reach = reaches(draw_error(sample.truncate(d + 1), fresh.truncate(d + 1), sigma))
            for what in range(2):
                low, high = intervals[d, g, 2 * what : 2 * what + 2].tolist()
                ends = widened(float(values[g, what]), 0.0, (low, high), float(reach[what]))
                wider[d, g, 2 * what : 2 * what + 2] = torch.tensor(ends, dtype=torch.float64, device="cpu")
    return wider


def _quantiles(coefficients: Tensor, sigmas: Tensor) -> Tensor:
    """Over the candidates, of each one's own criterion, (D, G, 3)."""
    levels = torch.tensor(QUANTILES, dtype=torch.float64, device="cpu")
    weights = _powers(sigmas)[0]
    return torch.stack([(weights @ part[:3]).quantile(levels, dim=1).T for part in coefficients.movedim(2, 0)])


def _traces(curvature: Tensor) -> Tensor:
    """tr B in the leading directions, (m, D)."""
    return curvature.diagonal(dim1=1, dim2=2).cumsum(1)


def _leading(matrix: Tensor) -> Tensor:
    """Sums of the leading square blocks of a matrix (D, D), (D,)."""
    return matrix.cumsum(0).cumsum(1).diagonal()


def _cells(increments: QuadraticIncrement) -> Tensor:
    """See :data:`CELLS`, (D, 9)."""
    level, slope, curvature = increments.level, increments.slope, increments.curvature
    dim, m, trace = slope.shape[1], len(level), _traces(curvature)
    centred, traces = level - level.mean(), trace - trace.mean(0)
    divisor = max(1, m - 1)

    def variance(values: Tensor) -> Tensor:
        return values.var(0, correction=1) if m > 1 else torch.zeros_like(values[0])

    one = torch.ones(dim, dtype=torch.float64, device="cpu")
    columns = (
        level.mean() * one,
        trace.mean(0),
        centred.square().sum() / divisor * one,
        traces.square().sum(0) / divisor,
        (centred[:, None] * traces).sum(0) / divisor,
        slope.mean(0).square().cumsum(0),
        variance(slope).cumsum(0),
        _leading(curvature.mean(0).square()),
        _leading(variance(curvature)),
    )
    return torch.stack(columns, dim=1)


def _flat(means: ProjectedSample, few: int) -> Tensor:
    """Loss, gradient and Hessian in a few directions, (n, 1 + P + P^2)."""
    hessian = means.hessian[:, :few, :few].flatten(1)
    return torch.cat([means.loss[:, None], means.gradient[:, :few], hessian], dim=1)


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    return [_rounded(item, digits) for item in value] if isinstance(value, list) else value
