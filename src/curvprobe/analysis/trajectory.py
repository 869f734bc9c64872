"""The criteria along training or a growing sample, with the weights that belong to each size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvprobe.criteria.estimators import check_power
from curvprobe.criteria.expectation import expected_criterion, pool_dispersion
from curvprobe.criteria.expected import ExpectedCriterion
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.errors import ArgumentError
from curvprobe.numerics.intervals import standard_error
from curvprobe.numerics.power_law import PowerLaw, power_law
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.runtime import progress
from curvprobe.runtime.markup import table
from curvprobe.runtime.plain import brief, number, numbers
from curvprobe.runtime.store import Stage, Store, write_atomically
from curvprobe.subspace.eigenspace import gathered, handed_out, top_eigenspace
from curvprobe.subspace.projection import project
from curvprobe.subspace.spaces import Eigenspace
from curvprobe.version import __version__

TRAJECTORY_VERSION = 2
"""Of a trajectory's ``result.json``: 1 left out the tables of the expectations."""


_HEAD = ("k", "loss", "|gradient|", "dispersion V", "increment [95 %]", "overlap", "products")


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

    __repr__ = brief

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for i, k in enumerate(self.ks.tolist()):
            low, high = self.expected[i].rms_interval
            rows.append(
                (
                    f"{k}",
                    f"{float(self.loss[i]):.4g}",
                    f"{float(self.gradient_norm[i]):.2e}",
                    f"{float(self.dispersion[i]):.4g}",
                    f"{self.expected[i].rms:.3e} [{low:.2e}, {high:.2e}]",
                    f"{float(self.overlap[i - 1]):.3f}" if i else "",
                    f"{int(self.num_matvecs[i])}",
                )
            )
        return rows

    def _fitted(self) -> str:
        low, high = self.fit.interval
        return f"V grows as k^{self.fit.exponent:.2f}, 95 % interval [{low:.2f}, {high:.2f}]"

    def __str__(self) -> str:
        rows = [_HEAD, *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*lines, self._fitted()])

    def _repr_html_(self) -> str:
        """For a notebook."""
        return table(_HEAD, self._rows(), [self._fitted()])

    def to_html(self, path: str | Path, *, title: str = "") -> Path:
        """Write one self-contained page: the table, and dispersion, increments and overlaps over the sample size.

        Args:
            path: of the file; an earlier one is replaced.
            title: of the page.

        Raises:
            ImportError: without ``pip install 'curvprobe[report]'``.
        """
        from curvprobe.report.along_training import page

        file = Path(path)
        write_atomically(file, page(self, _HEAD, self._rows(), self._fitted(), title=title).encode())
        return file

    def to_json(self) -> dict[str, Any]:
        """Every number, as ``result.json`` holds it."""
        return {name: getattr(self, name) for name in (*_NUMBERS, "ks", "num_matvecs")} | {
            "expected": [expected.to_json() for expected in self.expected],
            "fit": asdict(self.fit),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Trajectory:
        """What :meth:`to_json` has written."""
        fit = record["fit"]
        low, high = fit["interval"]
        return cls(
            **{name: numbers(record[name]) for name in _NUMBERS},
            ks=torch.tensor(record["ks"], device="cpu"),
            num_matvecs=torch.tensor(record["num_matvecs"], device="cpu"),
            expected=tuple(ExpectedCriterion.from_json(expected) for expected in record["expected"]),
            fit=PowerLaw(
                number(fit["exponent"]), (number(low, -math.inf), number(high, math.inf)), number(fit["at_one"])
            ),
        )


_NUMBERS = ("loss", "gradient_norm", "dispersion", "dispersion_parts", "dispersion_stderr", "overlap")


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
    allow_overlap: bool = False,
    p: float = 2.0,
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
        out: folder for ``result.json`` and the finished eigenspaces and projections, which are found again when it is
            repeated.
        allow_overlap: take candidates that a sample holds too, by their content.
        p: order of the expected criterion, at least 1; the dispersion is of the second.

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
    check_power(p)
    sizes = _sizes(solutions, ks)
    Store.at(out)  # refuses a folder before anything is trained
    risk = solutions(sizes[0]) if callable(solutions) else solutions[0]
    store, looks = Store.at(out, risk.ranks), list[_Look]()
    with store.held(), progress.bar("trajectory (sample sizes)", len(sizes)) as advance:
        for i, k in enumerate(sizes):
            if i > 0:
                risk = solutions(k) if callable(solutions) else solutions[i]
            if len(risk) != k:
                raise ArgumentError(f"solutions({k}) returned a risk on {len(risk)} examples; expected {k}")
            new = None if candidates is None else risk.on(candidates)
            before = looks[-1].space if looks else None
            space, sample, fresh = _project(risk, new, before, store, dim=dim, tol=tol, seed=seed)
            shared = math.nan if before is None else float(before.inner(space).square().sum()) / dim
            terms = pool_dispersion(sample, sigma)
            expected = expected_criterion(sample, fresh, sigma, allow_overlap=allow_overlap, p=p)
            length = risk.probed.vectors.norm(risk.gradient())
            looks.append(_Look(risk.value(), length, terms, expected, space, shared))
            advance(1)
        found = _trajectory(sizes, looks)
        config = {"ks": sizes, "dim": dim, "sigma": sigma, "tol": tol, "seed": seed, "p": p}
        record = {"config": config, "trajectory": found.to_json()}
        store.write_result({"schema_version": TRAJECTORY_VERSION, "version": __version__, **record})
    return found


@dataclass(frozen=True, eq=False)
class _Look:
    """What one sample size shows; ``terms`` (n, 3) are those of the dispersion, ``overlap`` is with the one before."""

    loss: float
    gradient_norm: float
    terms: Tensor
    expected: ExpectedCriterion
    space: Eigenspace
    overlap: float


def _trajectory(sizes: list[int], looks: list[_Look]) -> Trajectory:
    dispersion = torch.tensor([float(look.terms.sum(1).mean()) for look in looks], dtype=torch.float64, device="cpu")
    return Trajectory(
        ks=torch.tensor(sizes, device="cpu"),
        loss=torch.tensor([look.loss for look in looks], dtype=torch.float64, device="cpu"),
        gradient_norm=torch.tensor([look.gradient_norm for look in looks], dtype=torch.float64, device="cpu"),
        dispersion=dispersion,
        dispersion_parts=torch.stack([look.terms.mean(0) for look in looks]),
        dispersion_stderr=torch.tensor(
            [standard_error(look.terms.sum(1)) for look in looks], dtype=torch.float64, device="cpu"
        ),
        expected=tuple(look.expected for look in looks),
        overlap=torch.tensor([look.overlap for look in looks[1:]], dtype=torch.float64, device="cpu"),
        num_matvecs=torch.tensor([look.space.num_matvecs for look in looks], device="cpu"),
        fit=power_law(torch.tensor(sizes, device="cpu"), dispersion),
    )


def _sizes(solutions: Callable[[int], EmpiricalRisk] | Sequence[EmpiricalRisk], ks: Sequence[int] | None) -> list[int]:
    """The sample sizes, from the one place that tells them."""
    if callable(solutions) and ks is None:
        raise ArgumentError("ks is None; expected the sample sizes for which to call solutions(k)")
    if not callable(solutions) and ks is not None:
        raise ArgumentError("ks came beside the risks themselves, whose sizes are their own; expected one of the two")
    sizes = [len(risk) for risk in solutions] if not callable(solutions) else [int(k) for k in ks or ()]
    if len(sizes) < 2 or min(sizes) < 2:
        raise ArgumentError(f"the sample sizes are {sizes}; expected at least 2 of them, each at least 2")
    return sizes


def _project(
    risk: EmpiricalRisk,
    new: EmpiricalRisk | None,
    before: Eigenspace | None,
    store: Store,
    *,
    dim: int,
    tol: float,
    seed: int,
) -> tuple[Eigenspace, ProjectedSample, ProjectedSample | None]:
    """Eigenspace and projections at one size."""
    key = risk.key()
    name = f"trajectory-k{len(risk)}-{key[:8]}"  # checkpoints may have one size
    space = store.result(
        Stage(
            f"{name}-eigenspace",
            [key, dim, tol, seed, None if before is None else before.key()],
            Eigenspace,
            lambda: top_eigenspace(risk, dim=dim, tol=tol, seed=seed, start=before),
            whole=lambda found: gathered(found, risk.ranks),
            divided=lambda found: handed_out(found, risk),
        )
    )
    basis = space.key()
    sample = store.result(Stage(f"{name}-sample", [key, basis], ProjectedSample, lambda: project(risk, space)))
    if new is None:
        return space, sample, None
    candidates = [key, new.key(), basis]
    fresh = Stage(f"{name}-candidates", candidates, ProjectedSample, lambda: project(new, space))
    return space, sample, store.result(fresh)
