"""Which next examples would move the landscape most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvprobe.criteria.draws import check_sigma
from curvprobe.criteria.estimators import moment_parts
from curvprobe.criteria.increment import fresh_increments
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.errors import ArgumentError
from curvprobe.runtime.plain import brief, numbers

SHOWN = 5
"""Candidates in the text."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Every candidate's contribution to the expected criterion, beside plain baselines; float64 (m,) each.

    Attributes:
        total: criterion of the candidate as the next example, squared loss units.
        shape: its shape criterion.
        loss: loss of the candidate at the solution.
        gradient_norm: norm of its gradient; NaN where the model was not at hand.
        projected_gradient_norm: norm of its gradient in the subspace.
    """

    total: Tensor
    shape: Tensor
    loss: Tensor
    gradient_norm: Tensor
    projected_gradient_norm: Tensor

    __repr__ = brief

    @property
    def order(self) -> Tensor:
        """Positions of the candidates, the largest total first."""
        return self.total.argsort(descending=True, stable=True)

    def agreement(self) -> dict[str, dict[str, float]]:
        """Spearman's rank correlation of total and shape with every baseline: near 1, the baseline would do as well.

        NaN where all candidates are alike.
        """
        baselines = ("loss", "gradient_norm", "projected_gradient_norm")
        known = [name for name in baselines if bool(getattr(self, name).isfinite().all())]
        return {
            column: {name: _rank_correlation(getattr(self, column), getattr(self, name)) for name in known}
            for column in ("total", "shape")
        }

    def columns(self) -> dict[str, list[float]]:
        """The table by column, in the candidates' order."""
        names = ("total", "shape", "loss", "gradient_norm", "projected_gradient_norm")
        return {name: getattr(self, name).tolist() for name in names}

    def to_json(self) -> dict[str, Any]:
        """The table by column, and how far plain baselines agree with it."""
        return {"columns": self.columns(), "rank_correlation": self.agreement()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Ranking:
        """What :meth:`to_json` has written."""
        return cls(**{name: numbers(column) for name, column in record["columns"].items()})

    def __str__(self) -> str:
        return self.text({})

    def text(self, comments: Mapping[int, str]) -> str:
        """The candidates that would move the landscape most, beside plain baselines, with the comments on them."""
        shape = self.agreement()["shape"]
        agreement = (
            "Ranking by shape agrees with "
            + ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in shape.items())
            + " (rank correlation)"
        )
        if len(self.total) < 2:
            return agreement
        columns = self.columns()
        lines = [
            "Candidates that would move it most" + (" (at the end, the truth against the total):" if comments else ":"),
            "  " + f"{'candidate':>9}" + "".join(f"{name.replace('_', ' '):>25}" for name in columns),
        ]
        lines += [
            f"  {j:>9}"
            + "".join(f"{column[j]:>25.4g}" for column in columns.values())
            + (f"  {comments[j]}" if j in comments else "")
            for j in self.order[:SHOWN].tolist()
        ]
        return "\n".join([*lines, agreement])

    def to_dataframe(self) -> Any:
        """The table as a pandas DataFrame, a row for each candidate, the largest total first."""
        import pandas

        return pandas.DataFrame(self.columns()).iloc[self.order.tolist()].rename_axis("candidate")


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    from scipy.stats import rankdata  # takes half a second to import

    ranks = torch.stack([torch.from_numpy(rankdata(values.numpy())) for values in (a, b)]).double()
    return float(torch.corrcoef(ranks)[0, 1]) if len(a) > 1 else math.nan


def rank_candidates(
    sample: ProjectedSample,
    fresh: ProjectedSample,
    sigma: float | Tensor,
    *,
    gradient_norms: Tensor | None = None,
) -> Ranking:
    """Every candidate's contribution to the expected criterion, beside its loss and gradient norms.

    How far a candidate moves the landscape at these weights is not how much training on it helps: where some labels
    were wrong, those that moved it most were mostly these (measured in docs/numbers.md).

    Args:
        sample: the k examples that define the risk, projected.
        fresh: the candidates, projected onto the same subspace.
        sigma: standard deviation in parameter units, scalar or (D,).
        gradient_norms: of the candidates, from :func:`gradient_norms`; None leaves that column out.

    Raises:
        ValueError: if the norms are not those of the candidates.

    Example:
        >>> import torch
        >>> from curvprobe.criteria.sample import ProjectedSample
        >>> def flat(*losses):
        ...     n = len(losses)
        ...     return ProjectedSample(torch.tensor(losses), torch.ones(n), torch.zeros(n, 1), torch.zeros(n, 1, 1))
        >>> rank_candidates(flat(1.0), flat(2.0, 5.0, 1.0), sigma=0.1).order
        tensor([1, 0, 2])
    """
    if gradient_norms is None:
        gradient_norms = torch.full((len(fresh),), torch.nan, dtype=torch.float64, device="cpu")
    if gradient_norms.shape != fresh.loss.shape:
        raise ArgumentError(f"{len(gradient_norms)} gradient norms came for {len(fresh)} candidates; expected as many")
    increments = next(fresh_increments(sample, fresh, [sample.size]))
    level, slope, curvature = moment_parts(increments, check_sigma(sigma, sample.dim))
    return Ranking(
        total=level + slope + curvature,
        shape=slope + curvature,
        loss=fresh.loss,
        gradient_norm=gradient_norms,
        projected_gradient_norm=fresh.gradient.norm(dim=1),
    )
