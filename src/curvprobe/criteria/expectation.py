"""The criterion averaged over which example comes next, with its parts and its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor

from curvprobe.criteria.distribution import absolute_moments
from curvprobe.criteria.draws import check_sigma
from curvprobe.criteria.estimators import check_power
from curvprobe.criteria.increment import fresh_increments, last_increments
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.criteria.weighted_sets import ratio_of_sets
from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.numerics.intervals import ShiftAndSpread, log_interval, mean_interval, pseudo_values, standard_error
from curvprobe.runtime.digest import overlap
from curvprobe.runtime.plain import number, numbers

FEWEST = 5
"""Candidates below which no interval is given."""

PARTS = ("level", "slope", "curvature")
SOURCES = ("mean shift", "spread")


@dataclass(frozen=True, eq=False)
class ExpectedCriterion:
    """Expectation of Delta_2^(D), or of another order p, over the next examples; loss units to the power p.

    Attributes:
        value: the expectation; the sum of the table's cells.
        stderr: its standard error over candidates (over seeds too, where several came); NaN where they are too few.
        interval: 95 % confidence interval of ``value``.
        table: float64 (2, 3), {mean shift, spread} x {level, slope, curvature}. An unbiased estimate of a squared shift
            may be negative where the shift is within the noise.
        table_stderr: (2, 3), standard errors of its cells; up to 1.4 times too large for a shift within the noise.
        contributions: (n,), what each candidate adds to the mean that ``value`` is; its own criterion when one joins.
        grow_by: examples that join at once.
        pool: whether the sample itself stood for the population, without candidates outside it.
        p: order of the criterion; the table is that of the second, and NaN for others.
    """

    value: float
    stderr: float
    interval: tuple[float, float]
    table: Tensor
    table_stderr: Tensor
    contributions: Tensor
    grow_by: int
    pool: bool
    p: float = 2.0

    @property
    def num_candidates(self) -> int:
        """Examples that the expectation is taken over."""
        return len(self.contributions)

    @property
    def rms(self) -> float:
        """``value ** (1/p)``, in loss units."""
        return float(max(0.0, self.value) ** (1 / self.p))

    @property
    def rms_interval(self) -> tuple[float, float]:
        """That of ``interval``, in loss units."""
        low, high = self.interval
        return (float(low ** (1 / self.p)), float(high ** (1 / self.p)))

    @property
    def shape(self) -> float:
        """The value without its level parts."""
        return float(self.table[:, 1:].sum())

    def to_json(self) -> dict[str, Any]:
        """Plain values; the table by source and part."""
        rows = zip(SOURCES, self.table.tolist(), self.table_stderr.tolist(), strict=True)
        names = ("grow_by", "value", "stderr", "interval", "rms", "rms_interval", "shape")
        return {name: getattr(self, name) for name in names} | {
            "table": {
                source: {part: {"value": v, "stderr": e} for part, v, e in zip(PARTS, values, errors, strict=True)}
                for source, values, errors in rows
            },
            "contributions": self.contributions,
            "pool": self.pool,
            "p": self.p,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> ExpectedCriterion:
        """What :meth:`to_json` has written."""
        table, errors = (
            numbers([[record["table"][source][part][what] for part in PARTS] for source in SOURCES])
            for what in ("value", "stderr")
        )
        low, high = record["interval"]
        return cls(
            number(record["value"]),
            number(record["stderr"]),
            (number(low), number(high, math.inf)),
            table,
            errors,
            numbers(record["contributions"]),
            record["grow_by"],
            record["pool"],
            record.get("p", 2.0),
        )

    def __str__(self) -> str:
        low, high = self.rms_interval
        name = "RMS increment" if self.p == 2 else f"Mean increment of order {self.p:g}"
        rows = [f"{name} {self.rms:.4g} [{low:.4g}, {high:.4g}] when {self.grow_by} more join"]
        if self.p != 2:
            return rows[0]
        rows.append(f"{'':12}" + "".join(f"{name:>12}" for name in PARTS))
        rows += [
            f"{source:12}" + "".join(f"{cell:12.3g}" for cell in row)
            for source, row in zip(SOURCES, self.table.tolist(), strict=True)
        ]
        return "\n".join(rows)


def features(sample: ProjectedSample, sigma: float | Tensor) -> Tensor:
    r"""Feature vectors whose squared distance is the closed form, float64 (n, 1 + D + D^2).

    .. math:: \psi_i = ( l_i + \sigma^2 \mathrm{tr} B_i / 2, \; \sigma c_i, \; \sigma^2 \mathrm{vec} B_i / \sqrt 2 )
    """
    scale = check_sigma(sigma, sample.dim).expand(sample.dim)
    scaled = sample.hessian * scale[:, None] * scale
    level = sample.loss + scaled.diagonal(dim1=-2, dim2=-1).sum(-1) / 2
    return torch.cat([level[:, None], sample.gradient * scale, scaled.flatten(1) / math.sqrt(2)], dim=1)


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
    size = len(sample) if k is None else int(k)
    count = size if grow_by == "double" else grow_by
    if not isinstance(count, Integral) or count < 1:
        raise ArgumentError(f"grow_by is {grow_by!r}; expected a positive number of examples or 'double'")
    check_power(p)
    if fresh is not None:
        check_fresh(sample, fresh, allow_overlap=allow_overlap)
    if p != 2:
        if count != 1 or k is not None:
            raise ArgumentError(
                f"p is {p:g}; the expectation of another order than 2 is known for one that joins, at k"
            )
        return _of_order(sample, fresh, check_sigma(sigma, sample.dim), p)
    if fresh is None:
        return _over_pool(sample, sigma, size, int(count))
    moves, b = _moves(sample, fresh, sigma, int(count)), int(count)
    found = _over_candidates(moves, sample.dim, b)
    if b == 1 or bool((fresh.weight == fresh.weight[0]).all()):
        return found
    return _scaled(found, *ratio_of_sets(moves, fresh.weight, float(sample.weight.sum()), b))


def _of_order(sample: ProjectedSample, fresh: ProjectedSample | None, sigma: Tensor, p: float) -> ExpectedCriterion:
    """The moment of order p, each next example by itself."""
    increments = last_increments(sample) if fresh is None else next(fresh_increments(sample, fresh, [len(sample)]))
    terms = absolute_moments(increments, sigma, p)
    interval = mean_interval(terms) if len(terms) >= FEWEST else (0.0, math.inf)
    unknown = torch.full((2, 3), math.nan, dtype=torch.float64, device="cpu")
    return ExpectedCriterion(
        float(terms.mean()), standard_error(terms), interval, unknown, unknown, terms, 1, fresh is None, p
    )


def _over_pool(sample: ProjectedSample, sigma: float | Tensor, size: int, b: int) -> ExpectedCriterion:
    """Over all orders of the sample, when ``b`` join ``size`` of its kind."""
    dispersion = pool_dispersion(sample, sigma)
    factor = (b / (size + b)) ** 2
    shift, spread = factor / size * dispersion, factor / b * dispersion
    table = torch.stack([shift.mean(0), spread.mean(0)])
    return _expectation(table, shift, spread, (shift + spread).sum(1), None, b, pool=True)


def _over_candidates(moves: Tensor, dim: int, b: int) -> ExpectedCriterion:
    """Over candidates, from what each adds to the features of the risk when it is one of ``b`` that join."""
    table = torch.stack([b**2 * squared_mean(moves), b * moves.var(0)]) @ membership(dim)
    shift, spread = (power * part for power, part in zip((b**2, b), move_terms(moves, dim), strict=True))
    if b == 1:
        return _expectation(table, shift, spread, moves.square().sum(1), None, b, pool=False)
    interval = (0.0, math.inf)
    if len(moves) >= FEWEST:
        low, high = ShiftAndSpread(moves).intervals(*torch.tensor([[b**2], [b]], dtype=torch.float64, device="cpu"))
        interval = (float(low), float(high))
    return _expectation(table, shift, spread, (shift + spread).sum(1), interval, b, pool=False)


def _scaled(found: ExpectedCriterion, ratio: float, error: float) -> ExpectedCriterion:
    """All of it times a ratio that is known to a standard error."""
    low, high = found.interval
    return replace(
        found,
        value=ratio * found.value,
        stderr=math.hypot(ratio * found.stderr, error * found.value),
        interval=(max(0.0, ratio - 2 * error) * low, (ratio + 2 * error) * high),
        table=ratio * found.table,
        table_stderr=ratio * found.table_stderr,
        contributions=ratio * found.contributions,
    )


def _expectation(
    table: Tensor,
    shift: Tensor,
    spread: Tensor,
    terms: Tensor,
    interval: tuple[float, float] | None,
    b: int,
    *,
    pool: bool,
) -> ExpectedCriterion:
    """From the table, each example's part in its rows, and in the whole; None takes the interval of the mean."""
    if interval is None:
        interval = mean_interval(terms) if len(terms) >= FEWEST else (0.0, math.inf)
    errors = torch.stack([part.std(0) / math.sqrt(len(part)) for part in (shift, spread)])
    return ExpectedCriterion(float(table.sum()), standard_error(terms), interval, table, errors, terms, b, pool)


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


def membership(dim: int) -> Tensor:
    """Which part each feature belongs to, float64 (1 + D + D^2, 3)."""
    part = torch.tensor([0] + [1] * dim + [2] * dim**2, device="cpu")
    return torch.nn.functional.one_hot(part, 3).double()


def _moves(sample: ProjectedSample, fresh: ProjectedSample, sigma: float | Tensor, b: int) -> Tensor:
    """What each candidate adds to the features of the risk when it is one of ``b`` that join, (m, P)."""
    share = sample.weight / sample.weight.sum()
    distance = features(fresh, sigma) - share @ features(sample, sigma)
    weight = fresh.weight if b == 1 else b * fresh.weight.mean()
    return (fresh.weight / (sample.weight.sum() + weight))[:, None] * distance  # where b join, each for its own part


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


def pool_dispersion(sample: ProjectedSample, sigma: float | Tensor) -> Tensor:
    """Terms (n, 3), by part, whose mean estimates the trace of the features' covariance.

    Each example is tried as the next one of all others, with its own factor; for equal weights the mean is the
    unbiased sample covariance.
    """
    n, weight, total = len(sample), sample.weight, sample.weight.sum()
    if n < 2:
        raise ArgumentError("the sample has one example; without candidates the expectation needs at least 2")
    psi = features(sample, sigma)
    others = (weight @ psi - weight[:, None] * psi) / (total - weight)[:, None]
    moves = (weight / total)[:, None] * (psi - others)
    return n * (n - 1) * moves.square() @ membership(sample.dim)


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
    return ExpectedCriterion(
        value,
        stderr,
        log_interval(value, stderr, len(values) - 1),
        tables.mean(0),
        tables.std(0) / math.sqrt(len(values)),
        contributions,
        each[0].grow_by,
        fresh is None,
        p,
    )
