"""The criteria along training or a growing sample, with the weights that belong to each size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvprobe import progress
from curvprobe.examples import digest
from curvprobe.expectation import ExpectedCriterion, expected_criterion, pool_dispersion
from curvprobe.intervals import standard_error, student_reach
from curvprobe.linalg import inner, norm
from curvprobe.projection import ProjectedSample, project
from curvprobe.risk import EmpiricalRisk
from curvprobe.store import Store
from curvprobe.subspace import Subspace, top_eigenspace


@dataclass(frozen=True)
class PowerLaw:
    """A fit of ``V = c k^exponent`` by least squares on logarithmic scales.

    Attributes:
        exponent: of k.
        interval: its 95 % confidence interval, for independent errors of one size; infinite for fewer than 3 points.
        at_one: c.
    """

    exponent: float
    interval: tuple[float, float]
    at_one: float


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What a trajectory found at every sample size.

    Attributes:
        ks: int (K,), sample sizes.
        loss, gradient_norm: float64 (K,), of the risk at its own solution.
        dispersion: (K,), landscape dispersion V of the sample, squared loss units.
        dispersion_parts: (K, 3), its level, slope and curvature parts.
        dispersion_stderr: (K,), over the examples.
        expected: the expected criterion at every size, over the candidates where there are any.
        overlap: (K - 1,), ``|U^T U'|_F^2 / D`` of neighbouring eigenspaces: 1 for the same, D / N for unrelated ones.
        num_matvecs: int (K,), products of each eigenspace.
        fit: of the dispersion over k.
    """

    ks: Tensor
    loss: Tensor
    gradient_norm: Tensor
    dispersion: Tensor
    dispersion_parts: Tensor
    dispersion_stderr: Tensor
    expected: tuple[ExpectedCriterion, ...]
    overlap: Tensor
    num_matvecs: Tensor
    fit: PowerLaw

    def __str__(self) -> str:
        lines = [
            f"{'k':>7} {'loss':>11} {'|gradient|':>12} {'dispersion V':>14}   RMS increment [95 %]  overlap  products"
        ]
        for i, k in enumerate(self.ks.tolist()):
            low, high = self.expected[i].rms_interval
            shared = f"{float(self.overlap[i - 1]):8.3f}" if i else "        "
            lines.append(
                f"{k:>7} {float(self.loss[i]):>11.4g} {float(self.gradient_norm[i]):>12.2e} "
                f"{float(self.dispersion[i]):>14.4g}   {self.expected[i].rms:.3e} [{low:.2e}, {high:.2e}] {shared} "
                f"{int(self.num_matvecs[i]):>9}"
            )
        low, high = self.fit.interval
        lines.append(f"V grows as k^{self.fit.exponent:.2f}, 95 % interval [{low:.2f}, {high:.2f}]")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Every number, as ``result.json`` holds it."""
        names = (
            *("ks", "loss", "gradient_norm", "dispersion", "dispersion_parts", "dispersion_stderr", "overlap"),
            "num_matvecs",
        )
        return {name: getattr(self, name) for name in names} | {
            "expected": [
                {"value": e.value, "stderr": e.stderr, "rms": e.rms, "rms_interval": e.rms_interval, "shape": e.shape}
                for e in self.expected
            ],
            "fit": asdict(self.fit),
        }


def trajectory(
    solutions: Callable[[int], EmpiricalRisk] | Sequence[EmpiricalRisk],
    ks: Sequence[int] | None = None,
    *,
    candidates: Any = None,
    dim: int = 10,
    sigma: float = 1e-3,
    tol: float = 1e-3,
    seed: int = 0,
    out: str | Path | None = None,
) -> Trajectory:
    """Dispersion and criteria along sample sizes, at the weights that were trained on each.

    At fixed weights the decay with k is arithmetic; what can differ from task to task is how the dispersion V changes
    when the weights follow the sample.

    Args:
        solutions: maps a sample size k to the risk on the first k examples at weights trained on them (retrained, or
            streaming through the data); or the risks themselves, one for each checkpoint, such as
            ``cp.EmpiricalRisk(model, loss, data[:k])`` made after each stretch of training (a risk keeps its own copy
            of the weights).
        ks: sample sizes, ascending; not needed where the risks came.
        candidates: next examples in any form that the risk takes, outside every sample; None takes each sample for a
            draw from the population.
        dim: dimension of each eigenspace; the one before is its start.
        sigma: standard deviation in parameter units.
        tol: of the eigenspaces.
        seed: of the eigenspaces.
        out: folder for the finished eigenspaces and projections, which are found again when it is repeated.

    Raises:
        ValueError: for fewer than 2 sizes, sizes beside risks, or candidates that a sample holds.

    Example:
        >>> import torch, curvprobe as cp
        >>> x = torch.linspace(-1, 1, 64, dtype=torch.float64)[torch.randperm(64, generator=torch.manual_seed(0)), None]
        >>> def fitted(k):   # least squares through the first k points of a cubic
        ...     model = torch.nn.Linear(1, 1, bias=False).double()
        ...     model.weight.data = torch.linalg.lstsq(x[:k], x[:k] ** 3).solution
        ...     return cp.EmpiricalRisk(model, cp.losses.mse, (x[:k], x[:k] ** 3))
        >>> path = cp.trajectory(fitted, [8, 16, 32, 64], dim=1, sigma=0.01)
        >>> path.overlap.tolist(), path.fit.interval[0] < path.fit.exponent < path.fit.interval[1]
        ([1.0, 1.0, 1.0], True)
    """
    if callable(solutions):
        if ks is None:
            raise ValueError("ks is None; expected the sample sizes for which to call solutions(k)")
        sizes = [int(k) for k in ks]
    else:
        if ks is not None:
            raise ValueError("ks came beside the risks themselves, whose sizes are their own; expected one of the two")
        sizes = [len(risk) for risk in solutions]
    if len(sizes) < 2 or min(sizes) < 2:
        raise ValueError(f"the sample sizes are {sizes}; expected at least 2 of them, each at least 2")
    rows, expected, overlaps, products = [], [], [], []
    before: Subspace | None = None
    store = Store.at(out)
    with progress.bar("trajectory (sample sizes)", len(sizes)) as advance:
        for i, k in enumerate(sizes):
            risk = solutions(k) if callable(solutions) else solutions[i]
            if len(risk) != k:
                raise ValueError(f"solutions({k}) returned a risk on {len(risk)} examples; expected {k}")
            new = None if candidates is None else risk.on(candidates)
            space, sample, fresh = _look(risk, new, before, store, dim=dim, tol=tol, seed=seed)
            expected.append(expected_criterion(sample, fresh, sigma))
            terms = pool_dispersion(sample, sigma)
            rows.append(
                [
                    risk.value(),
                    norm(risk.gradient()),
                    float(terms.sum(1).mean()),
                    standard_error(terms.sum(1)),
                    *terms.mean(0).tolist(),
                ]
            )
            if before is not None:
                overlaps.append(float(inner(before.basis.T, space.basis).square().sum()) / dim)
            products.append(space.num_matvecs)
            before = space
            advance(1)
    table = torch.tensor(rows, dtype=torch.float64)
    return Trajectory(
        ks=torch.tensor(sizes),
        loss=table[:, 0],
        gradient_norm=table[:, 1],
        dispersion=table[:, 2],
        dispersion_parts=table[:, 4:],
        dispersion_stderr=table[:, 3],
        expected=tuple(expected),
        overlap=torch.tensor(overlaps, dtype=torch.float64),
        num_matvecs=torch.tensor(products),
        fit=power_law(torch.tensor(sizes), table[:, 2]),
    )


def _look(
    risk: EmpiricalRisk,
    new: EmpiricalRisk | None,
    before: Subspace | None,
    store: Store,
    *,
    dim: int,
    tol: float,
    seed: int,
) -> tuple[Subspace, ProjectedSample, ProjectedSample | None]:
    """Eigenspace and projections at one size."""
    key = risk.key()
    name = f"trajectory-k{len(risk)}-{key[:8]}"  # checkpoints may have one size
    start = None if before is None else digest(before.basis)
    space, _ = store.stage(
        f"{name}-eigenspace",
        [key, dim, tol, seed, start],
        Subspace,
        lambda: top_eigenspace(risk, dim=dim, tol=tol, seed=seed, start=before),
    )
    basis = digest(space.basis)
    sample, _ = store.stage(f"{name}-sample", [key, basis], ProjectedSample, lambda: project(risk, space))
    if new is None:
        return space, sample, None
    fresh, _ = store.stage(f"{name}-candidates", [key, new.key(), basis], ProjectedSample, lambda: project(new, space))
    return space, sample, fresh


def power_law(ks: Tensor, values: Tensor) -> PowerLaw:
    """Least squares through ``log values`` (K,) over ``log ks`` (K,)."""
    x, y = ks.double().log(), values.log()
    spread = (x - x.mean()).square().sum()
    if not float(spread) > 0:
        return PowerLaw(math.nan, (-math.inf, math.inf), math.nan)
    exponent = float(((x - x.mean()) * (y - y.mean())).sum() / spread)
    at_one = float(y.mean() - exponent * x.mean())
    reach, freedom = math.inf, len(x) - 2
    if freedom > 0:
        left = (y - at_one - exponent * x).square().sum()
        reach = student_reach(math.sqrt(float(left / spread) / freedom), freedom)
    return PowerLaw(exponent, (exponent - reach, exponent + reach), math.exp(at_one))
