"""The paper's theorem, corollary and proposition, held against the data at hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from curvprobe.criteria.draws import check_sigma
from curvprobe.criteria.estimators import gaussian_moment
from curvprobe.criteria.increment import increment, joining_factor
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.errors import ArgumentError
from curvprobe.runtime.plain import number


@dataclass(frozen=True)
class RateBound:
    """The paper's upper bound on Delta_2^(D) and what it bounds, squared loss units.

    Attributes:
        bound: the bound.
        value: the criterion, in closed form.
        loss_bound, gradient_bound, hessian_bound: the constants M_l, M_g and M_H at the solution.
        ambient_bound: the same with the N of all parameters in place of D, and the constants of the subspace, which are
            not larger than those of the whole space: so the paper's bound on the isotropic Delta_2 is at least this
            much. NaN where N was not told.
    """

    bound: float
    value: float
    loss_bound: float
    gradient_bound: float
    hessian_bound: float
    ambient_bound: float = math.nan

    @property
    def holds(self) -> bool:
        """Whether the criterion is within the bound; always, but for a defect."""
        return self.value <= self.bound * (1 + 1e-12)

    @property
    def slack(self) -> float:
        """Bound over value."""
        return self.bound / self.value if self.value > 0 else math.inf


def rate_bound(
    sample: ProjectedSample, new: ProjectedSample, sigma: float, *, num_params: int | None = None
) -> RateBound:
    r"""Upper bound on Delta_2^(D) with its constants estimated at the solution.

    .. math:: \Delta_2^{(D)} \le f^2 ( 12 M_l^2 + 3 \sigma^2 M_g^2 + 3 \sigma^4 (D^2 + 2 D) M_H^2 )

    with :math:`|l_i| \le M_l`, :math:`|U^T g_{k+1}| + |U^T g^{(k)}| \le M_g` (the paper takes :math:`g^{(k)} = 0`) and
    :math:`|U^T H_i U| \le M_H` in the spectral norm; f is 1 / (k + 1) for unit weights.

    Args:
        sample: the k examples, projected.
        new: the example that joins.
        sigma: standard deviation in parameter units.
        num_params: N, for the bound in which the ambient dimension stands where D does.

    Source: Kiselev & Grabovoy (2026), arXiv:2604.14870, theorem on the rate; derivation with g^(k) in docs/theory.md.

    Example:
        >>> import torch
        >>> from curvprobe.criteria.sample import ProjectedSample
        >>> two = ProjectedSample(torch.tensor([1.0, 2.0]), torch.ones(2), torch.eye(2), torch.zeros(2, 2, 2))
        >>> found = rate_bound(two[:1], two[1], sigma=0.1)
        >>> found.holds, round(found.bound, 4), round(found.value, 4)
        (True, 12.03, 0.255)
    """
    single = float(check_sigma(sigma))
    value = gaussian_moment(increment(sample, new), sigma=single).value
    before, dim = sample.mean(), sample.dim
    factor = float(joining_factor(before.weight[0], new.weight.sum()))
    loss = max(float(part.loss.abs().max()) for part in (sample, new))
    gradient = float(new.mean().gradient.norm() + before.gradient.norm())
    hessian = max(float(torch.linalg.matrix_norm(part.hessian, ord=2).max()) for part in (sample, new))

    def bound(size: float) -> float:
        bends = 3 * single**4 * (size**2 + 2 * size) * hessian**2
        return factor**2 * (12 * loss**2 + 3 * single**2 * gradient**2 + bends)

    ambient = math.nan if num_params is None else bound(num_params)
    return RateBound(bound(dim), value, loss, gradient, hessian, ambient)


@dataclass(frozen=True)
class SpectralClosedForm:
    """The criterion from the shifts of the eigenvalues alone, beside what it stands for.

    Attributes:
        value: the spectral form, squared loss units.
        curvature_only: the closed form with level and slope set to zero, which it equals for shared eigenvectors.
        full: the closed form with everything.
        misalignment: share of ``|B|_F`` that is not in the shifts, ``sqrt(1 - sum d^2 / |B|_F^2)``: 0 for shared
            eigenvectors, whichever basis stands for those that share an eigenvalue.
    """

    value: float
    curvature_only: float
    full: float
    misalignment: float


def spectral_closed_form(sample: ProjectedSample, new: ProjectedSample, sigma: float) -> SpectralClosedForm:
    r"""Delta_2^(D) from the shifts d of the top-D eigenvalues when ``new`` joins.

    .. math:: \frac{\sigma^4}{4} \Big( 2 \sum_i d_i^2 + \big( \sum_i d_i \big)^2 \Big), \quad
        d_i = \lambda_i^{(k+1)} - \lambda_i^{(k)}

    Eigenvalues are matched by their eigenvectors, not by their order, which a shift may change. True where level and
    slope vanish and both Hessians have the same eigenvectors; the result shows by how much that fails.

    Args:
        sample: the k examples, projected.
        new: the example that joins.
        sigma: standard deviation in parameter units.

    Source: Kiselev & Grabovoy (2026), arXiv:2604.14870, corollary on the spectral form.

    Example:
        >>> import torch
        >>> from curvprobe.criteria.sample import ProjectedSample
        >>> hessians = torch.stack([torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([4.0, 1.0]))])
        >>> two = ProjectedSample(torch.zeros(2), torch.ones(2), torch.zeros(2, 2), hessians)
        >>> spectral_closed_form(two[:1], two[1], sigma=1.0)
        SpectralClosedForm(value=0.75, curvature_only=0.75, full=0.75, misalignment=0.0)
    """
    from scipy.optimize import linear_sum_assignment

    single = float(check_sigma(sigma))
    model = increment(sample, new)
    B, before = model.curvature, sample.mean().hessian[0]
    (old, Q), (moved, R) = torch.linalg.eigh(before), torch.linalg.eigh(before + B)
    rows, columns = linear_sum_assignment((Q.T @ R).square().numpy(), maximize=True)
    shifts = moved[columns] - old[rows]
    size = float(B.norm())
    return SpectralClosedForm(
        value=single**4 / 4 * float(2 * shifts.square().sum() + shifts.sum() ** 2),
        curvature_only=single**4 / 4 * float(2 * B.square().sum() + B.trace() ** 2),
        full=gaussian_moment(model, sigma=single).value,
        misalignment=_root_of_rest(float(shifts.norm()) / size) if size > 0 else 0.0,
    )


def _root_of_rest(share: float) -> float:
    """``sqrt(1 - share^2)``; zero where rounding alone keeps the share from 1."""
    rest = (1 - share) * (1 + share)
    return math.sqrt(rest) if rest > 1e-14 else 0.0


MOST_SETS = 20_000
"""Sets of directions that are tried, at most."""


@dataclass(frozen=True)
class Extremality:
    """How the leading directions compare with other choices of as many.

    Attributes:
        leading: curvature functional ``2 |B|_F^2 + (tr B)^2`` of the first ``dim`` directions.
        best: the largest among the sets that were tried; ``best_set`` are its positions.
        share_below: share of the sets whose functional is at most that of the leading ones.
        num_sets: sets that were tried: all, or that of the largest diagonal entries of B and a random choice.
        premise: whether the proposition speaks of these data: shifts that are not negative and in descending order, and
            directions that B does not mix (off-diagonal share below 1 %).
    """

    leading: float
    best: float
    best_set: tuple[int, ...]
    share_below: float
    num_sets: int
    premise: bool


def extremality(sample: ProjectedSample, new: ProjectedSample, dim: int, *, seed: int = 0) -> Extremality:
    r"""Whether the first ``dim`` of D directions bend more than any other choice of as many.

    .. math:: I \mapsto 2 \sum_{i, j \in I} B_{ij}^2 + \Big( \sum_{i \in I} B_{ii} \Big)^2

    With a common eigenbasis and shifts :math:`d_1 \ge d_2 \ge \dots \ge 0` the proposition says so; real increments
    have shifts of both signs in any order, and the result tells how the leading directions fare there.

    Args:
        sample: the k examples, projected on D directions.
        new: the example that joins.
        dim: number of directions to choose.
        seed: of the choice of sets where there are more than 20 000.

    Source: Kiselev & Grabovoy (2026), arXiv:2604.14870, proposition on extremality.

    Example:
        >>> import torch
        >>> from curvprobe.criteria.sample import ProjectedSample
        >>> hessians = torch.stack([torch.zeros(3, 3), torch.diag(torch.tensor([3.0, 2.0, 1.0]))])
        >>> two = ProjectedSample(torch.zeros(2), torch.ones(2), torch.zeros(2, 3), hessians)
        >>> found = extremality(two[:1], two[1], dim=2)
        >>> found.best_set, found.share_below, found.premise
        ((0, 1), 1.0, True)
    """
    if not 1 <= dim <= sample.dim:
        raise ArgumentError(f"dim is {dim}; expected 1 to {sample.dim}")
    B = increment(sample, new).curvature
    sets = _sets(B.diagonal(), dim, seed)
    picked = B[sets[:, :, None], sets[:, None, :]]
    values = 2 * picked.square().sum((1, 2)) + picked.diagonal(dim1=1, dim2=2).sum(1).square()
    shifts, size = B.diagonal(), float(B.norm())
    ordered = bool((shifts.diff() <= 0).all()) and float(shifts[-1]) >= 0
    mixed = float((B - torch.diag(shifts)).norm()) > 0.01 * size
    best = int(values.argmax())
    return Extremality(
        leading=float(values[0]),
        best=float(values[best]),
        best_set=tuple(sets[best].tolist()),
        share_below=float((values <= values[0] * (1 + 1e-12)).double().mean()),
        num_sets=len(sets),
        premise=ordered and not mixed,
    )


def _sets(diagonal: Tensor, dim: int, seed: int) -> Tensor:
    """Sets of ``dim`` positions, the leading ones first: all, or that of the largest entries and many at random."""
    available = len(diagonal)
    if math.comb(available, dim) <= MOST_SETS:
        return torch.tensor(list(itertools.combinations(range(available), dim)), device="cpu")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(MOST_SETS - 2, available, generator=generator, device="cpu").argsort(1)[:, :dim].sort(1).values
    largest = diagonal.abs().argsort(descending=True)[:dim].sort().values
    return torch.cat([torch.arange(dim, device="cpu")[None], largest[None], drawn])


@dataclass(frozen=True)
class TheoryChecks:
    """The paper's statements at one increment; see the functions of the same names."""

    rate_bound: RateBound
    spectral_closed_form: SpectralClosedForm
    extremality: Extremality

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> TheoryChecks:
        """What :meth:`to_json` has written."""
        best = tuple(record["extremality"]["best_set"])
        bound = record["rate_bound"]
        return cls(
            RateBound(**bound | {"ambient_bound": number(bound.get("ambient_bound"))}),
            SpectralClosedForm(**record["spectral_closed_form"]),
            Extremality(**record["extremality"] | {"best_set": best}),
        )

    def __str__(self) -> str:
        bound, sets, form = self.rate_bound, self.extremality, self.spectral_closed_form
        ambient = "" if math.isnan(bound.ambient_bound) else f" (with N for D at least {bound.ambient_bound:.2e})"
        holds = (
            "holds" if sets.premise else "does not hold: the shifts are not all positive and in order, or B mixes them"
        )
        return (
            f"Theory, first candidate: rate bound {bound.bound:.2e}{ambient}, {bound.slack:.2g} times the value; "
            f"spectral form {form.value:.2e}, {100 * form.misalignment:.0f} % of B is not in the shifts;\n"
            f"  of {sets.num_sets} sets of {len(sets.best_set)} of the directions found, "
            f"{100 * sets.share_below:.0f} % bend no more than the leading ones (the proposition's premise {holds})"
        )


def theory_checks(
    sample: ProjectedSample, new: ProjectedSample, sigma: float, num_params: int | None = None
) -> TheoryChecks:
    """All three for the example that joins; extremality for half of the directions."""
    return TheoryChecks(
        rate_bound(sample, new, sigma, num_params=num_params),
        spectral_closed_form(sample, new, sigma),
        extremality(sample, new, (sample.dim + 1) // 2),
    )
