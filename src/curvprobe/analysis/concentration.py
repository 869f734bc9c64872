"""How much of the full-space signal a few directions capture, as their number grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvprobe.criteria.draws import check_sigma
from curvprobe.criteria.estimators import moment_parts
from curvprobe.criteria.increment import QuadraticIncrement, fresh_increments
from curvprobe.errors import ArgumentError
from curvprobe.numerics.intervals import pseudo_values, standard_error
from curvprobe.probing.full_space import FullSpaceParts, full_space_parts
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.runtime.plain import brief, number, numbers
from curvprobe.subspace.named import subspace_makers
from curvprobe.subspace.projection import mean_projection, project
from curvprobe.subspace.spaces import Eigenspace, Subspace


@dataclass(frozen=True, eq=False)
class ConcentrationCurve:
    """Share of the full-space signal in the first D' directions of several subspaces, averaged over next examples.

    Attributes:
        names: (M,), of the subspaces.
        certified: int (M,), how many of the leading directions are certified as what they are called; those of a
            subspace that is not an eigenspace need no certificate.
        dims: int (P,), dimensions D'; a subspace with fewer directions has NaN beyond.
        criterion: float64 (M, P), share of the paper's criterion, level included.
        criterion_stderr: (M, P), over the examples, with the error of the traces.
        shape: (M, P), share of the shape criterion.
        shape_stderr: (M, P).
        null: (P,), D' / N: what a random subspace captures of the slope on average.
        num_params: N.
        sigma: standard deviation of the probe.
        full_criterion, full_criterion_stderr, full_shape: the mean full-space signal that the shares are of, squared
            loss units.
    """

    names: tuple[str, ...]
    certified: Tensor
    dims: Tensor
    criterion: Tensor
    criterion_stderr: Tensor
    shape: Tensor
    shape_stderr: Tensor
    num_params: int
    sigma: float
    full_criterion: float
    full_criterion_stderr: float
    full_shape: float

    __repr__ = brief

    @property
    def null(self) -> Tensor:
        """D' / N, float64 (P,)."""
        return self.dims.double() / self.num_params

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "dims": self.dims,
            "null": self.null,
            "num_params": self.num_params,
            "sigma": self.sigma,
            "full_space": {
                "value": self.full_criterion,
                "stderr": self.full_criterion_stderr,
                "shape": self.full_shape,
            },
            "subspaces": {
                name: {
                    "certified": self.certified[i],
                    "shape": self.shape[i],
                    "shape_stderr": self.shape_stderr[i],
                    "criterion": self.criterion[i],
                    "criterion_stderr": self.criterion_stderr[i],
                }
                for i, name in enumerate(self.names)
            },
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> ConcentrationCurve:
        """What :meth:`to_json` has written."""
        rows, full = record["subspaces"].values(), record["full_space"]
        shares = ("criterion", "criterion_stderr", "shape", "shape_stderr")
        return cls(
            names=tuple(record["subspaces"]),
            certified=torch.tensor([row["certified"] for row in rows], device="cpu"),
            dims=torch.tensor(record["dims"], device="cpu"),
            num_params=record["num_params"],
            sigma=record["sigma"],
            full_criterion=number(full["value"]),
            full_criterion_stderr=number(full["stderr"]),
            full_shape=number(full["shape"]),
            **{name: numbers([row[name] for row in rows]) for name in shares},
        )

    def __str__(self) -> str:
        lines = [
            f"Full space, averaged over the candidates: criterion {self.full_criterion:.4e} +- "
            f"{self.full_criterion_stderr:.1e}, of it shape {self.full_shape:.4e}",
            f"Share of the full-space shape signal in the first D of {self.num_params}, sigma {self.sigma:g}",
        ]
        lines.append(f"  {'D':>14} " + "".join(f"{d:>18}" for d in self.dims.tolist()))
        for i, name in enumerate(self.names):
            cells = zip(self.shape[i].tolist(), self.shape_stderr[i].tolist(), strict=True)
            lines.append(
                f"  {name:>14} "
                + "".join(" " * 17 + "-" if math.isnan(v) else f"{v:>9.2e} +-{e:.0e} " for v, e in cells)
            )
            if int(self.certified[i]) < int((~self.shape[i].isnan()).double().mul(self.dims).max()):
                lines[-1] += f" ({int(self.certified[i])} directions certified)"
        lines.append(f"  {'null D/N':>14} " + "".join(f"{v:>9.2e}         " for v in self.null.tolist()))
        return "\n".join(lines)


def concentration_curve(
    risk: EmpiricalRisk,
    candidates: EmpiricalRisk,
    *,
    sigma: float,
    subspaces: Mapping[str, Subspace | Callable[[], Subspace]] | None = None,
    dim: int = 10,
    dims: Sequence[int] | None = None,
    num_probes: int = 16,
    seed: int = 0,
) -> ConcentrationCurve:
    r"""Share of the full-space criterion, and of its shape, that subspaces capture as their dimension grows.

    .. math:: \frac{ \sum_j \sigma^2 |U^T b_j|^2 + \sigma^4 |U^T A_j U|_F^2 / 2 }
        { \sum_j \sigma^2 |b_j|^2 + \sigma^4 |A_j|_F^2 / 2 }

    over the candidates j as next examples. The share of the paper's criterion is close to 1 for any subspace at small
    sigma, because the level is in it; the shape's is the answer to "how much of the deformation lives in these
    directions?".

    Args:
        risk: on the k examples.
        candidates: the next examples, outside the sample.
        sigma: standard deviation in parameter units.
        subspaces: by name, each as it is or as a function that makes it; None takes those of
            :func:`default_subspaces`, of ``dim`` directions, one after the other.
        dims: dimensions D' at which to look; None is 1, 2, 4, ... up to the largest subspace.
        num_probes: random probes for the full space's traces.
        seed: of the probes.

    Source: derived in docs/theory.md.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> x = torch.eye(4)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, 5 + torch.zeros(4, 1)))
        >>> new = risk.on((2 * x[:2], torch.zeros(2, 1)))
        >>> everything = {"all": cp.Subspace.from_basis(torch.eye(4))}
        >>> curve = cp.concentration_curve(risk, new, sigma=0.1, subspaces=everything, dims=[4])
        >>> round(float(curve.shape), 4)
        1.0
    """
    single = float(check_sigma(sigma))
    makers = subspace_makers(risk, candidates, dim, seed=seed) if subspaces is None else dict(subspaces)
    if not makers:
        raise ArgumentError("subspaces is empty; expected at least one")
    known = [space.dim for space in makers.values() if isinstance(space, Subspace)]
    if dims is not None and len(known) == len(makers):
        _check_dims(list(dims), max(known))
    # One basis at a time: what is left of it is small.
    projected = {name: _projected(risk, candidates, given) for name, given in makers.items()}
    largest = max(one.increments.dim for one in projected.values())
    chosen = sorted({*(2**i for i in range(largest.bit_length())), largest}) if dims is None else list(dims)
    _check_dims(chosen, largest)
    full = full_space_parts(risk, candidates, sigma=single, num_probes=num_probes, seed=seed)
    shares = [_shares(one.increments, full, chosen, single) for one in projected.values()]
    criterion, criterion_stderr, shape, shape_stderr = torch.stack(shares, dim=1)
    return ConcentrationCurve(
        names=tuple(projected),
        certified=torch.tensor([one.certified for one in projected.values()], device="cpu"),
        dims=torch.as_tensor(chosen, device="cpu"),
        criterion=criterion,
        criterion_stderr=criterion_stderr,
        shape=shape,
        shape_stderr=shape_stderr,
        num_params=risk.num_params,
        sigma=single,
        full_criterion=full.expected.value,
        full_criterion_stderr=full.expected.stderr,
        full_shape=float(full.shape.mean()),
    )


@dataclass(frozen=True)
class _Projected:
    """The increments (m,) of all candidates in a subspace, and how many of its directions are certified."""

    increments: QuadraticIncrement
    certified: int


def _check_dims(dims: list[int], largest: int) -> None:
    if not dims or not all(1 <= d <= largest for d in dims):
        raise ArgumentError(f"dims is {dims}; expected dimensions from 1 to {largest}")


def _projected(risk: EmpiricalRisk, candidates: EmpiricalRisk, given: Subspace | Callable[[], Subspace]) -> _Projected:
    space = given() if callable(given) else given
    certified = int(space.converged.sum()) if isinstance(space, Eigenspace) else space.dim
    return _Projected(next(fresh_increments(mean_projection(risk, space), project(candidates, space))), certified)


def _shares(increments: QuadraticIncrement, full: FullSpaceParts, dims: Sequence[int], sigma: float) -> Tensor:
    """Shares of the criterion and of the shape with their standard errors, (4, P); NaN beyond the subspace."""
    shares = torch.full((4, len(dims)), math.nan, dtype=torch.float64, device="cpu")
    for j, d in enumerate(dims):
        if d <= increments.dim:
            level, slope, curvature = moment_parts(increments.truncate(d), check_sigma(sigma))
            shares[:2, j] = _share(level + slope + curvature, full.value, full.value_terms)
            shares[2:, j] = _share(slope + curvature, full.shape, full.shape_terms)
    return shares


def _share(captured: Tensor, whole: Tensor, probe_terms: Tensor) -> Tensor:
    """Ratio of the means of ``captured`` and ``whole`` (m,), and its standard error over examples and probes."""
    m, total = len(captured), float(whole.sum())
    ratio = captured.sum() / total
    over_probes = float(ratio) * standard_error(probe_terms) * m / total
    over_examples = 0.0
    if m > 1:
        left_out = (captured.sum() - captured) / (total - whole)
        over_examples = standard_error(pseudo_values(ratio, left_out))
    return torch.tensor([float(ratio), math.hypot(over_probes, over_examples)], dtype=torch.float64, device="cpu")
