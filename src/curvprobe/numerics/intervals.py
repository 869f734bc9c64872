"""Standard errors and confidence intervals of quantities that are, or nearly are, means over examples."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

CONFIDENCE = 0.95

NORMAL = 1.96
"""Standard errors in half of a 95 % interval, where nothing better is known than that many terms make the error."""

RESAMPLES = 999

FEWEST_FOR_UPPER = 250
"""Terms below which an interval has no upper end. A kind of examples that makes up 3 / n of a population is absent from
one sample of n in twenty, and nothing in such a sample tells: at 250 that is 1.2 %. The gate is on n alone. A gate on
what the sample shows (its width, its effective number of terms, the index of its tail) keeps the very samples that have
missed the large terms, and coverage among those that pass it falls."""

ALLOWED_FOR = 3
"""Further terms as large as the largest seen that the upper end allows for."""

FARTHEST = 100.0
"""Factor from a root mean square beyond which its upper end is infinite: a few terms have made the whole mean, some
resamples are without any of them, and the end would be a figure like 1e35 that says no more."""

_CHUNK = 1 << 15
"""Numbers drawn at a time."""

_ROWS = 128
"""Resamples that are multiplied at a time."""


def pseudo_values(value: Tensor, left_out: Tensor) -> Tensor:
    """Jackknife pseudo-values (n,) of a statistic, from its values with each example left out.

    They stand for what each example contributes: their mean is the statistic without its first-order bias, and they
    scatter as independent contributions would. For a plain mean they are the examples' own terms.

    Source: Tukey (1958), "Bias and confidence in not-quite large samples".
    """
    return len(left_out) * value - (len(left_out) - 1) * left_out


def standard_error(terms: Tensor) -> float:
    """Of the mean of independent terms (n,); NaN for one."""
    return float(terms.std() / math.sqrt(len(terms))) if len(terms) > 1 else math.nan


def freedom(terms: Tensor) -> float:
    """Degrees of freedom of the standard error of the mean of terms (n,): the effective number of squares that make it.

    n - 1 is right for normal terms. What Monte Carlo corrects a closed form by is far from normal: a few draws make its
    scatter, and Student's interval with n - 1 covers 72 % at 8 pairs of draws where this one covers 87 %.
    """
    squares = (terms - terms.mean()).square()
    total = float(squares.sum())
    if len(terms) < 2 or total == 0:
        return max(1.0, len(terms) - 1.0)
    return max(1.0, min(len(terms) - 1.0, total**2 / float(squares.square().sum()) - 1))


def student_reach(stderr: float, freedom: float) -> float:
    """Half the width of a 95 % interval about a mean."""
    from scipy.special import stdtrit

    return float(stdtrit(min(freedom, 1e9), (1 + CONFIDENCE) / 2)) * stderr


def log_interval(value: float, stderr: float, freedom: int) -> tuple[float, float]:
    """95 % interval of a positive quantity, symmetric on a logarithmic scale; (0, inf) where nothing is known."""
    if not value > 0 or not math.isfinite(stderr) or freedom < 1:
        return (0.0, math.inf)
    factor = math.exp(min(700.0, student_reach(stderr / value, freedom)))
    return (value / factor, value * factor)


def resamples(n: int, seed: int = 0) -> Iterator[Tensor]:
    """How often each of ``RESAMPLES`` draws of n out of n holds each of them, float64 (some, n) at a time."""
    generator = torch.Generator().manual_seed(seed)
    left, rows = RESAMPLES, max(1, _CHUNK // n)
    while left > 0:
        count = min(left, rows)
        drawn = torch.randint(n, (count, n), generator=generator, device="cpu")
        one = torch.ones(1, dtype=torch.float64, device="cpu").expand_as(drawn)
        yield torch.zeros(count, n, dtype=torch.float64, device="cpu").scatter_add_(1, drawn, one)
        left -= count


def _together(parts: Iterator[Tensor]) -> Iterator[Tensor]:
    """Rows of at least ``_ROWS`` at a time: what they are multiplied with is then read less often."""
    held = list[Tensor]()
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= _ROWS:
            yield torch.cat(held)
            held = []
    if held:
        yield torch.cat(held)


def expanded_tail(terms: Tensor) -> float:
    r"""Probability to leave out at either end of a 95 % interval of the mean of positive terms (n,), by a bootstrap.

    .. math:: \Phi( -t_{0.975, \, m - 1} ), \qquad m = \Big(\sum x\Big)^2 \Big/ \sum x^2

    Resamples hold no more than the sample does, and so their quantiles are too narrow, as a normal law's are where
    Student's are right. m is the number of equal terms that would scatter as much: small where a few large ones make
    the mean, however many there are beside.

    Source: the expanded percentile interval of Hesterberg (2015), "What Teachers Should Know About the Bootstrap",
    with Kish's effective number in place of n.

    Example:
        >>> import torch
        >>> round(expanded_tail(torch.ones(1000)), 4), round(expanded_tail(torch.ones(10)), 4)
        (0.0249, 0.0118)
    """
    from scipy.special import ndtr, stdtrit

    squares = float(terms.square().sum())
    m = max(2.0, float(terms.sum()) ** 2 / squares) if squares else 2.0
    return float(ndtr(-stdtrit(m - 1, (1 + CONFIDENCE) / 2)))


def bootstrap_t(
    value: Tensor, stderr: Tensor, truth: Tensor, values: Tensor, stderrs: Tensor, tail: float | list[float]
) -> tuple[Tensor, Tensor]:
    r"""95 % intervals of positive quantities by the bootstrap-t on a logarithmic scale.

    .. math:: t^* = \frac{\log x^* - \log x_0}{s^* / x^*}, \qquad
        x \, e^{- q_{1 - \alpha} \, s / x} \le \mu \le x \, e^{- q_{\alpha} \, s / x}

    with the quantiles q of t* over resamples. Squared increments are skewed: a normal interval covers too seldom,
    because a sample that has missed the large ones has a small scatter too. The resamples know of that.

    Args:
        value, stderr: (m,), m estimates and their standard errors.
        truth: (m,), what the resamples estimate: the quantities of the sample, taken for the population.
        values, stderrs: (B, m), the estimates from the resamples.
        tail: alpha, see :func:`expanded_tail`; one for all, or of each.

    Returns:
        The ends (m,); 0 and infinity where nothing is known. An upper end 10^4 times the estimate is infinite too.

    Source: Efron & Tibshirani (1993), "An Introduction to the Bootstrap", chapter 12.
    """
    t = ((values / truth).log() * values / stderrs).nan_to_num(nan=-torch.inf)  # not positive: far below
    tails = tail if isinstance(tail, list) else [tail] * t.shape[1]
    last = torch.tensor([[max(1, round(alpha * (len(t) + 1))) for alpha in tails]], device="cpu")
    ordered = t.sort(dim=0).values
    below, above = (ordered.gather(0, row)[0] for row in (last - 1, len(t) - last))
    low, high = (value * (-q * stderr / value).exp() for q in (above, below))
    known = (value > 0) & (truth > 0) & low.isfinite()
    low = torch.where(known, low, 0.0)
    high = torch.where(known & (high <= FARTHEST**2 * value), high, torch.inf)
    certain = (value > 0) & (stderr == 0)
    return torch.where(certain, value, low), torch.where(certain, value, high)


def mean_interval(terms: Tensor) -> tuple[float, float]:
    """95 % interval of the positive mean of independent terms (n,); infinite above for fewer than 250.

    The upper end is that of the terms and three more as large as the largest: without them heavy tails (squares of
    lognormal losses, or of Student's t with 3 degrees of freedom) are covered by 86 to 91 % only.

    Example:
        >>> import torch
        >>> low, high = mean_interval(torch.linspace(0, 2, 400, dtype=torch.float64))
        >>> round(low, 2), round(high, 2)
        (0.94, 1.06)
    """
    low, high = mean_intervals(terms[None, :, None], torch.ones(1, 1, dtype=torch.float64, device="cpu"))
    return float(low), float(high)


def mean_intervals(parts: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`mean_interval` of many sums of parts, all from one set of resamples.

    Args:
        parts: (M, n, J), of which M kinds of terms are made.
        weights: (G, J), of the parts in G sums: the terms of each are ``parts @ weights.T``.

    Returns:
        The ends (M, G).
    """
    low, _ = _mean_intervals(parts, weights, 0)
    if parts.shape[1] < FEWEST_FOR_UPPER:
        return low, torch.full_like(low, math.inf)
    return low, _mean_intervals(parts, weights, ALLOWED_FOR)[1]


def _mean_intervals(parts: Tensor, weights: Tensor, more: int) -> tuple[Tensor, Tensor]:
    """By the bootstrap-t, of these terms and some more as large as the largest."""
    (kinds, n, width), sums = parts.shape, len(weights)
    terms = parts @ weights.T
    terms = torch.cat([terms, terms.amax(1, keepdim=True).expand(-1, more, -1)], dim=1)
    i, j = torch.triu_indices(width, width, device="cpu")
    columns = torch.cat([parts, parts[:, :, i] * parts[:, :, j]], dim=2)
    flat, drawn, added = columns.movedim(1, 0).reshape(n, -1), list[Tensor](), list[Tensor]()
    for counts in _together(resamples(n + more)):
        drawn.append(counts[:, :n] @ flat)
        added.append(counts[:, n:].sum(1))
    moments, extra = torch.cat(drawn).view(-1, kinds, columns.shape[2]), torch.cat(added)[:, None, None]
    squares = weights[:, i] * weights[:, j] * torch.where(i == j, 1.0, 2.0)
    largest = terms[:, -1]  # none of them is added where there are no more
    first = ((moments[:, :, :width] @ weights.T + extra * largest) / (n + more)).flatten(1)
    second = ((moments[:, :, width:] @ squares.T + extra * largest.square()) / (n + more)).flatten(1)
    stderrs = ((second - first.square()).clamp_min(0.0) / (n + more)).sqrt()
    mean, stderr = (part.flatten() for part in (terms.mean(1), terms.std(1, correction=0) / math.sqrt(n + more)))
    tails = [expanded_tail(column) for kind in terms for column in kind.T]
    low, high = bootstrap_t(mean, stderr, mean, first, stderrs, tails)
    return low.view(kinds, sums), high.view(kinds, sums)


class ShiftAndSpread:
    r"""95 % intervals of ``alpha |mean|^2 + beta spread`` of independent vectors, for any alpha and beta.

    The squared mean is estimated without its bias, ``|m|^2 - V / n``, and the spread is the trace V of the covariance.
    For the upper end the bias stays in: where the mean is within the noise, the linear error that the bootstrap goes by
    does not see how much larger it may be. Like that of :func:`mean_interval` it is that of the vectors and three more
    as long as the longest, and infinite for fewer than 250.

    Args:
        vectors: (n, P), at least 3.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.below = _Resampled(vectors)
        self.above = None
        if len(vectors) >= FEWEST_FOR_UPPER:
            longest = vectors[vectors.square().sum(1).argmax()]
            self.above = _Resampled(torch.cat([vectors, longest.expand(ALLOWED_FOR, -1)]))

    def intervals(self, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Ends (m,) of the intervals for weights (m,) each."""
        low, _ = self.below.intervals(alpha, beta)
        return low, torch.full_like(low, math.inf) if self.above is None else self.above.intervals(alpha, beta)[1]


class _Resampled:
    """The squared mean and the spread of vectors (n, P) and of their resamples."""

    def __init__(self, vectors: Tensor) -> None:
        n, size = vectors.shape
        self.n = n
        self.tail = expanded_tail((vectors - vectors.mean(0)).square().sum(1))
        # The inner product of any combination of the vectors with every vector, by the cheaper of two ways.
        gram = vectors @ vectors.T if n <= size else None
        lengths = vectors.square().sum(1)

        def statistics(counts: Tensor) -> tuple[Tensor, ...]:
            along = counts @ gram if gram is not None else (counts @ vectors) @ vectors.T
            return self._statistics(counts, along / n, lengths)

        self.sample = statistics(torch.ones(1, n, dtype=torch.float64, device="cpu"))
        parts = [statistics(counts) for counts in resamples(n)]
        self.resampled = tuple(torch.cat(part) for part in zip(*parts, strict=True))

    @staticmethod
    def _statistics(counts: Tensor, along: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Squared mean, spread (with n in the denominator), and the moments of their influences, (B, 1) each.

        ``along`` (B, n) are the inner products of the means with every vector.
        """
        n = counts.shape[1]
        square = (along * counts).sum(1, keepdim=True) / n
        distance = lengths - 2 * along + square
        spread = (counts * distance).sum(1, keepdim=True) / n
        shifts, spreads = 2 * (along - square), distance - spread
        pairs = ((shifts, shifts), (shifts, spreads), (spreads, spreads))
        moments = ((counts * a * b).sum(1, keepdim=True) / n for a, b in pairs)
        return square, spread, *moments

    def intervals(self, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Ends (m,) of the intervals for weights (m,) each."""

        def estimate(statistics: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            square, plain, both_shifts, mixed, both_spreads = statistics
            spread = plain * self.n / (self.n - 1)
            variance = alpha**2 * both_shifts + 2 * alpha * beta * mixed + beta**2 * both_spreads
            return alpha * (square - spread / self.n) + beta * spread, (variance.clamp_min(0.0) / self.n).sqrt()

        value, stderr = (part[0] for part in estimate(self.sample))
        truth = (alpha * self.sample[0] + beta * self.sample[1])[0]
        values, stderrs = estimate(self.resampled)
        low, _ = bootstrap_t(value, stderr, truth, values, stderrs, self.tail)
        with_noise = value + alpha * self.sample[1][0] / (self.n - 1)
        return low, bootstrap_t(with_noise, stderr, truth, values, stderrs, self.tail)[1]
