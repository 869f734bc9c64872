"""What an analysis will take, stage by stage, before anything long runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from curvprobe.analysis.amounts import Counts, Price, amounts
from curvprobe.analysis.analyze import checked_settings, limited, points_of_surface, sample_and_candidates, sigma_grid
from curvprobe.analysis.stages import Job, stage_names
from curvprobe.analysis.unit_costs import UnitCosts, measure
from curvprobe.eigensolver.wanted import check_wanted
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.runtime.plain import in_bytes
from curvprobe.subspace.eigenspace import plan_memory

NOTES = (
    "Products with the sample's Hessian, examples projected or differentiated alone,",
    "memory beyond the model and the data. The report and the figures come after.",
)


@dataclass(frozen=True)
class PlannedStage:
    """What a stage of an analysis will take.

    Attributes:
        name: under which the result's ``seconds`` tells what it took.
        products: with the sample's Hessian, from and to.
        examples: that are projected, or differentiated alone.
        losses: of single examples at displaced points, from and to.
        seconds: from and to.
        memory: bytes at the most, beyond the model and the data.
    """

    name: str
    products: Counts
    examples: int
    losses: Counts
    seconds: tuple[float, float]
    memory: int

    @property
    def time(self) -> str:
        """The seconds in words."""
        return _ranged(*(rough_time(side) for side in self.seconds))

    def counted(self, part: Literal["products", "losses"]) -> str:
        """The range of a number in words; nothing where there are none."""
        return _ranged(*(f"{side:,}" if side else "" for side in getattr(self, part)))

    def __str__(self) -> str:
        products, losses = self.counted("products"), self.counted("losses")
        examples = f"{self.examples:,}" if self.examples else ""
        return f"{self.name:<15} {products:>11} {examples:>9} {losses:>16} {self.time:>15} {in_bytes(self.memory):>8}"


@dataclass(frozen=True)
class Plan:
    """What an analysis will take on this machine, stage by stage; print it for a table.

    Attributes:
        stages: in their order.
    """

    stages: tuple[PlannedStage, ...]

    @property
    def total(self) -> PlannedStage:
        """All stages together: sums, and the largest memory."""
        rows = self.stages
        return PlannedStage(
            "in all",
            (sum(row.products[0] for row in rows), sum(row.products[1] for row in rows)),
            sum(row.examples for row in rows),
            (sum(row.losses[0] for row in rows), sum(row.losses[1] for row in rows)),
            (sum(row.seconds[0] for row in rows), sum(row.seconds[1] for row in rows)),
            max(row.memory for row in rows),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"stages": [asdict(row) for row in self.stages], "total": asdict(self.total)}

    def __str__(self) -> str:
        head = f"{'stage':<15} {'products':>11} {'examples':>9} {'displaced losses':>16} {'time':>15} {'memory':>8}"
        rule = "-" * len(head)
        return "\n".join([head, rule, *map(str, self.stages), rule, str(self.total), "", *NOTES])


def plan(
    risk: EmpiricalRisk,
    candidates: Any = None,
    *,
    dim: int = 10,
    sigma: float | Literal["auto"] = "auto",
    tol: float = 1e-3,
    num_probes: int = 64,
    p: float = 2.0,
    max_examples: int | None = None,
    laws: bool = False,
    concentration: bool = False,
    surface: int = 21,
    stages: Literal["full", "quick"] = "full",
    seed: int = 0,
    allow_overlap: bool = False,
) -> Plan:
    """What :func:`analyze` with these arguments will take on this machine: products, time and memory of every stage.

    Takes seconds. Products, gradients, projections and displaced losses are timed on as many examples as that allows.
    How many products the eigenspace takes depends on the spectrum: that of some examples is found first, and takes
    nearly as many, so the number is told from and to; a quick one is found of all, and its number is exact. Nothing is
    kept, neither of the model nor in a folder.

    Args:
        risk, candidates, dim, sigma, tol, num_probes, p, max_examples, laws, concentration, surface, stages, seed,
            allow_overlap: as of :func:`analyze`.

    Returns:
        A row for every stage.

    Raises:
        ValueError: for what :func:`analyze` refuses.

    Example:
        >>> import torch, curvprobe as cp
        >>> x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[::2], x[::2].sin()))
        >>> planned = cp.plan(risk, (x[1::2], x[1::2].sin()), dim=3, stages="quick")
        >>> [(row.name, row.examples) for row in planned.stages][1:3], planned.total.seconds[1] < 600
        ([('sample', 20), ('candidates', 20)], True)
    """
    expect_risk(risk)
    risk.probed.expect_whole("a plan, other than from sizes alone,")
    settings = checked_settings(dim, sigma, "algebraic", tol, None, num_probes, seed, False, allow_overlap, p)
    risk, new = sample_and_candidates(risk, candidates, settings, [])
    settings = limited(settings, max_examples, risk, new, compared=laws or concentration)
    side, whole, risk = points_of_surface(surface, stages, settings.dim), risk, _some(risk, settings.max_examples)
    names = stage_names(settings, stages == "full", laws=laws, concentration=concentration, surface=side)
    check_wanted(risk.num_params, settings.dim, settings.which, settings.tol)
    plan_memory(risk, settings.dim)  # refuses a budget in which nothing fits, before any work
    costs = measure(job := Job(risk, new, settings))
    price, work = Price(job, costs), amounts(job, costs, len(sigma_grid(settings.sigma)), side)
    return Plan(
        (() if risk is whole else (_drawing(whole, costs),))
        + tuple(
            PlannedStage(
                name,
                work[name].products,
                sum(work[name].projected) + work[name].gradients,
                work[name].losses(len(risk)),
                price.seconds(work[name]),
                price.bytes(name, work[name]),
            )
            for name in names
        )
    )


def _some(whole: EmpiricalRisk, count: int | None) -> EmpiricalRisk:
    """As many examples as will be drawn; any will do, since drawing them takes a pass over all."""
    return whole if count is None else whole[torch.linspace(0, len(whole) - 1, count, device="cpu").long()]


def _drawing(whole: EmpiricalRisk, costs: UnitCosts) -> PlannedStage:
    """The pass over all examples by which some of them are drawn."""
    seconds, n = costs.losses.of(len(whole), whole.microbatch_size), len(whole)
    return PlannedStage("drawing", (0, 0), 0, (n, n), (seconds, seconds), whole.footprint.activation)


def rough_time(seconds: float) -> str:
    """Two digits at the most, in seconds, minutes or hours."""
    for size, unit in ((3600, "h"), (60, "min"), (1, "s")):
        if seconds >= 2 * size or size == 1:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
    raise AssertionError


def _ranged(low: str, high: str) -> str:
    """One where they are the same; the unit once where they share it."""
    if low == high:
        return high
    unit = high.rpartition(" ")[1:]
    return f"{low.removesuffix(''.join(unit)) if unit[0] else low}-{high}"
