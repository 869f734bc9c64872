"""One increment under many probing laws: in closed form, and on the true loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvprobe.criteria.estimators import Estimate
from curvprobe.criteria.row_errors import RowError
from curvprobe.errors import ArgumentError
from curvprobe.probing.laws import Probe, form_of
from curvprobe.probing.monte_carlo import closed_form, controlled_monte_carlo, direct_monte_carlo
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.runtime.plain import brief, numbers

UNKNOWN = Estimate(math.nan, math.nan, level=math.nan, slope=math.nan, curvature=math.nan)
"""Closed form of a law that has none."""


@dataclass(frozen=True, eq=False)
class LawTable:
    """The second moment of one increment under L laws, squared loss units.

    Attributes:
        names: (L,).
        parts: float64 (L, 3), level, slope and curvature of the closed form; NaN for a law that is not Gaussian.
        closed_stderr: (L,), of the closed form: zero in a subspace, where it is exact for the quadratic model.
        true, true_stderr: (L,), Monte Carlo on the true loss, with the quadratic model as control variate in a
            subspace.
        true_reach: (L,), half the width of its 95 % interval.
    """

    names: tuple[str, ...]
    parts: Tensor
    closed_stderr: Tensor
    true: Tensor
    true_stderr: Tensor
    true_reach: Tensor

    __repr__ = brief

    @property
    def closed(self) -> Tensor:
        """The closed form (L,)."""
        return self.parts.sum(1)

    @property
    def shape(self) -> Tensor:
        """Its shape criterion (L,)."""
        return self.parts[:, 1:].sum(1)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> LawTable:
        """What :meth:`to_json` has written."""

        def column(name: str) -> Tensor:
            return numbers([law[name] for law in record.values()])

        parts = torch.stack([column(part) for part in ("level", "slope", "curvature")], dim=1)
        errors = column("true_stderr")
        known = all("true_reach" in law for law in record.values())  # not in a result of schema 3 or before
        reach = column("true_reach") if known else 1.96 * errors
        return cls(tuple(record), parts, column("closed_stderr"), column("true"), errors, reach)

    def __str__(self) -> str:
        lines = [
            f"{'law':<22} {'closed form':>12} {'shape':>11}  {'on the true loss, 95 %':>25}  against the closed form"
        ]
        columns = (self.closed.tolist(), self.shape.tolist(), self.true.tolist(), self.true_reach.tolist())
        for name, closed, shape, true, reach in zip(self.names, *columns, strict=True):
            row = f"{name:<22} {closed:>12.5e} {shape:>11.3e}  {true:>14.5e} +- {reach:.1e}"
            against = RowError(true / closed - 1, reach / closed, math.nan, math.nan) if closed > 0 else "none"
            lines.append(f"{row}  {against}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """By law."""
        names = ("closed", "closed_stderr", "shape", "true", "true_stderr", "true_reach")
        columns = {name: getattr(self, name).tolist() for name in names}
        level, slope, curvature = self.parts.T.tolist()
        columns |= {"level": level, "slope": slope, "curvature": curvature}
        return {law: {name: column[i] for name, column in columns.items()} for i, law in enumerate(self.names)}


def compare_laws(
    risk: EmpiricalRisk,
    new: EmpiricalRisk,
    laws: Mapping[str, Probe | Callable[[], Probe]],
    *,
    num_probes: int = 64,
    num_products: int = 16,
    seed: int = 0,
) -> LawTable:
    """The second moment of the increment when ``new`` joins, under every law.

    Args:
        risk: on the k examples.
        new: on the examples that join.
        laws: by name, each as it is or as a function that makes it; one that is not Gaussian has Monte Carlo only, and
            no closed form.
        num_probes: Monte-Carlo draws a law.
        num_products: Hessian products a law where the closed form needs traces.
        seed: of the draws.

    Raises:
        ValueError: without a law.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.eye(2).double(), torch.zeros(2, 1).double()))
        >>> new = risk.on((torch.tensor([[2.0, 1.0]]).double(), torch.ones(1, 1).double()))
        >>> laws = cp.default_laws(risk, cp.top_eigenspace(risk, dim=1), sigma=1e-2)
        >>> table = cp.compare_laws(risk, new, laws | {"isotropic": cp.IsotropicProbe(1e-2)})
        >>> bool(((table.true - table.closed).abs() < 5 * table.true_stderr + 1e-12).all())   # the loss is quadratic
        True
    """
    expect_risk(risk)
    if not laws:
        raise ArgumentError("no law came; expected at least one, by name")
    closed, true = list[Estimate](), list[Estimate]()
    for given in laws.values():
        # A law may hold a basis: one at a time.
        law = given() if callable(given) and not isinstance(given, Probe) else given
        form = form_of(law)
        gaussian = form in ("subspace", "full space")
        closed.append(closed_form(risk, new, law, num_probes=num_products, seed=seed) if gaussian else UNKNOWN)
        if form == "subspace":
            true.append(controlled_monte_carlo(risk, new, law, num_probes=num_probes, seed=seed))
        else:  # its control would take a product a pair of draws
            true.append(direct_monte_carlo(risk, new, law, num_probes=num_probes, seed=seed))
    return LawTable(
        tuple(laws),
        torch.tensor([[e.level, e.slope, e.curvature] for e in closed], dtype=torch.float64, device="cpu"),
        torch.tensor([e.stderr for e in closed], dtype=torch.float64, device="cpu"),
        torch.tensor([e.value for e in true], dtype=torch.float64, device="cpu"),
        torch.tensor([e.stderr for e in true], dtype=torch.float64, device="cpu"),
        torch.tensor([e.reach for e in true], dtype=torch.float64, device="cpu"),
    )
