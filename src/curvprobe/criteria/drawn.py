"""What it adds to the error of a criterion that the sample's mean is that of some of its examples, drawn at random."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvprobe.criteria.estimators import Estimate
from curvprobe.criteria.expected import ExpectedCriterion
from curvprobe.criteria.features import along_directions, features, membership
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.numerics.strata import degrees, errors, reaches

Intervals = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Ends for weights alpha and beta (G,) of a squared mean and a spread."""


@dataclass(frozen=True)
class DrawnError:
    r"""How the mean of some drawn examples moves ``alpha |mean|^2 + beta spread`` of the candidates' moves.

    .. math:: x_j = F_j (\psi_j - \bar\psi)

    To first order by the inner products of the examples' deviations with the derivative, which is the linear error of
    the draw; and by the mean of its square, a bias that is known.

    Attributes:
        noise: (m, P), what each drawn example adds to the error of the features' mean. The loss adds nothing: its mean
            over all examples is known.
        of_shift, of_spread: (P,), derivatives of the two, with the sign turned.
        bias_of_shift, bias_of_spread: (P,), by which noise makes each feature's part of the two too large.
    """

    noise: Tensor
    of_shift: Tensor
    of_spread: Tensor
    bias_of_shift: Tensor
    bias_of_spread: Tensor

    @classmethod
    def of(cls, sample: ProjectedSample, sigma: float | Tensor, factor: Tensor, moves: Tensor) -> DrawnError:
        """From the candidates' factors F (m,) and moves (m, P) against the drawn sample's mean."""
        m, off = len(moves), factor - factor.mean()
        noise = sample.deviations(features(replace(sample, loss=torch.zeros_like(sample.loss)), sigma))
        mixed, scatter = (off @ moves) / max(1, m - 1), float(off @ off) / max(1, m - 1)
        mean, square = float(factor.mean()), noise.square().sum(0)
        return cls(
            noise,
            2 * (mean * moves.mean(0) - mixed / m),
            2 * mixed,
            (mean**2 - scatter / m) * square,
            scatter * square,
        )

    def bias(self, alpha: float, beta: float) -> Tensor:
        """By feature (P,)."""
        return alpha * self.bias_of_shift + beta * self.bias_of_spread

    def deviations(self, alpha: float, beta: float) -> Tensor:
        """What each example adds to the error, by feature (m, P)."""
        return self.noise * (alpha * self.of_shift + beta * self.of_spread)

    def widening(self, intervals: Intervals, shift: float, spread: float) -> Intervals:
        """The ends of intervals of ``alpha shift + beta spread``, further apart by the error of the draw."""
        biases = float(self.bias_of_shift.sum()), float(self.bias_of_spread.sum())
        own = torch.stack([self.noise @ self.of_shift, self.noise @ self.of_spread], dim=1)

        def widened_ends(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
            low, high = intervals(alpha, beta)
            reach, value = reaches(own @ torch.stack([alpha, beta])), alpha * shift + beta * spread
            bias = alpha * biases[0] + beta * biases[1]
            least = value - bias - torch.hypot(value - low, reach)
            return least.clamp_min(torch.finfo(torch.float64).tiny), value + torch.hypot(high - value, reach)

        return widened_ends

    def from_feature(self, first: int) -> DrawnError:
        """The same of the features from this one on."""
        rest = (self.of_shift, self.of_spread, self.bias_of_shift, self.bias_of_spread)
        return DrawnError(self.noise[:, first:], *(part[first:] for part in rest))


def with_draw(found: ExpectedCriterion, error: DrawnError, b: int) -> ExpectedCriterion:
    """An expectation over ``b`` that join, without the bias and with the error of the draw."""
    dim = len(found.shape_by_direction)
    bias, own = error.bias(b**2, b), error.deviations(b**2, b)
    table, table_stderr = found.table.clone(), found.table_stderr.clone()
    table[0] -= bias @ membership(dim)
    table_stderr[0] = torch.hypot(table_stderr[0], errors(own @ membership(dim)))
    both = torch.stack([own.sum(1), own[:, 1:].sum(1)], dim=1)
    (stderr, _), (reach, shape_reach) = errors(both).tolist(), reaches(both).tolist()
    return replace(
        found,
        value=float(table.sum()),
        stderr=math.hypot(found.stderr, stderr),
        table=table,
        table_stderr=table_stderr,
        interval=widened(found.value, float(bias.sum()), found.interval, reach),
        shape_interval=widened(found.shape, float(bias[1:].sum()), found.shape_interval, shape_reach),
        shape_by_direction=found.shape_by_direction - bias @ along_directions(dim),
    )


def widened(value: float, bias: float, interval: tuple[float, float], reach: float) -> tuple[float, float]:
    """The interval of a positive quantity with an independent error that reaches as far on either side.

    The squares of the distances add up. The bias stays in at the upper end, where it may be all that is seen.

    Source: Zou & Donner (2008), "Construction of confidence limits about effect measures".

    Example:
        >>> widened(10.0, 0.0, (7.0, 14.0), 4.0)
        (5.0, 15.65685424949238)
    """
    low, high = interval
    return max(0.0, value - bias - math.hypot(value - low, reach)), value + math.hypot(high - value, reach)


def draw_error(sample: ProjectedSample, fresh: ProjectedSample, sigma: float | Tensor) -> Tensor:
    """What each drawn example adds to the error of the mean criterion of the fresh examples, and of its shape, (n, 2);
    each is the next one by itself."""
    mean = sample.mean()
    factor = fresh.weight / (mean.weight + fresh.weight)
    moves = factor[:, None] * (features(fresh, sigma) - features(mean, sigma))
    noise = sample.deviations(features(replace(sample, loss=torch.zeros_like(sample.loss)), sigma))
    own = noise * (2 * (factor @ moves) / len(fresh))
    return torch.stack([own.sum(1), own[:, 1:].sum(1)], dim=1)


def also_drawn(estimate: Estimate, own: Tensor) -> Estimate:
    """The estimate with the error of the draw, to which each drawn example adds its own (n,)."""
    stderr, freedom = float(errors(own[:, None])), float(degrees(own[:, None]))
    both = math.hypot(estimate.stderr, stderr)
    if not stderr > 0:
        return estimate
    # The degrees of freedom of a sum of two, by Welch and Satterthwaite.
    shared = both**4 / (estimate.stderr**4 / estimate.freedom + stderr**4 / freedom)
    return replace(estimate, stderr=both, freedom=shared)
