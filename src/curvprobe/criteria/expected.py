"""What is expected of the next examples: the value, its parts, and what carries it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from curvprobe.runtime.plain import brief, number, numbers

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
        shape_interval: 95 % confidence interval of ``shape``; (0, inf) where p is not 2.
        shape_by_direction: (D,), the parts of ``shape`` along each direction, whose sum it is: a direction's slope, and
            its row of the curvature. NaN where p is not 2, or over several subspaces.
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
    shape_interval: tuple[float, float]
    shape_by_direction: Tensor
    pool: bool
    p: float = 2.0

    __repr__ = brief

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
    def shape_rms(self) -> float:
        """Root of ``shape``, in loss units."""
        return math.nan if math.isnan(self.shape) else math.sqrt(max(0.0, self.shape))

    @property
    def shape_rms_interval(self) -> tuple[float, float]:
        """That of ``shape_interval``, in loss units."""
        low, high = self.shape_interval
        return (math.sqrt(low), math.sqrt(high))

    def largest_contributors(self, count: int = 3) -> tuple[list[int], float]:
        """Positions of the ``count`` candidates that contribute most, and their share of the sum of contributions."""
        order = self.contributions.argsort(descending=True, stable=True)[:count]
        total = float(self.contributions.clamp_min(0.0).sum())
        share = float(self.contributions[order].clamp_min(0.0).sum()) / total if total > 0 else math.nan
        return order.tolist(), share

    @property
    def shape(self) -> float:
        """The value without its level parts."""
        return float(self.table[:, 1:].sum())

    def to_dataframe(self) -> Any:
        """The table as a pandas DataFrame with a row for every source and part."""
        import pandas

        rows = [
            {"source": source, "part": part, "value": float(self.table[i, j]), "stderr": float(self.table_stderr[i, j])}
            for i, source in enumerate(SOURCES)
            for j, part in enumerate(PARTS)
        ]
        return pandas.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        """Plain values; the table by source and part."""
        rows = zip(SOURCES, self.table.tolist(), self.table_stderr.tolist(), strict=True)
        names = ("grow_by", "value", "stderr", "interval", "rms", "rms_interval", "shape", "shape_interval")
        return {name: getattr(self, name) for name in names} | {
            "table": {
                source: {part: {"value": v, "stderr": e} for part, v, e in zip(PARTS, values, errors, strict=True)}
                for source, values, errors in rows
            },
            "contributions": self.contributions,
            "shape_by_direction": self.shape_by_direction,
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
        interval, shape_interval = (
            (number(low), number(high, math.inf))
            for low, high in (record["interval"], record.get("shape_interval", (0.0, math.inf)))  # schema 4 had none
        )
        return cls(
            number(record["value"]),
            number(record["stderr"]),
            interval,
            table,
            errors,
            numbers(record["contributions"]),
            record["grow_by"],
            shape_interval,
            numbers(record.get("shape_by_direction", [])),
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
