"""The loss itself over a plane of parameter space, point by point, beside its quadratic model: the usual picture."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from curvprobe.errors import ArgumentError, ArgumentTypeError, NotFiniteError
from curvprobe.risk.displaced import displaced_values, in_blocks
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.runtime import progress
from curvprobe.runtime.plain import brief
from curvprobe.subspace.projection import mean_projection
from curvprobe.subspace.spaces import Subspace

MOST_POINTS = 501
"""Along a side."""

ROUNDING = 1e-6
"""Part of the loss that its rounding may make of a departure."""


@dataclass(frozen=True, eq=False)
class Plane:
    """The loss over the plane ``w* + x u + y v`` of two directions.

    Attributes:
        x, y: float64 (P,), coordinates along the two directions, ascending.
        loss: float64 (P, P), of the sample: ``loss[i, j]`` at ``x[j]`` and ``y[i]``; not finite where the loss is not.
        model: float64 (P, P), the quadratic model of it at the solution.
        at_solution: the loss at the solution.
        lengths: Euclidean lengths of u and v: how far a step of 1 moves the parameters.
        names: of the directions.
    """

    x: Tensor
    y: Tensor
    loss: Tensor
    model: Tensor
    at_solution: float
    lengths: tuple[float, float]
    names: tuple[str, str] = ("first direction", "second direction")

    __repr__ = brief

    @property
    def departure(self) -> Tensor:
        """The loss less its quadratic model, float64 (P, P), in loss units."""
        return self.loss - self.model

    def trusted_radius(self, share: float = 0.1) -> float:
        """How far from the solution, in steps along the directions, the quadratic model is off by no more than this
        share of the most that it rises or falls as far out; 0 where it is off at once. No farther than was looked at
        in every direction; NaN where the solution lies outside, or rounding of the loss may hide all of the change."""
        rise, off = (self.model - self.at_solution).abs(), self.departure.abs()
        distance = (self.x[None, :].square() + self.y[:, None].square()).sqrt()
        reach = min(float(end) for side in (self.x, self.y) for end in (-side[0], side[-1]))
        if reach < 0 or float(rise.max()) <= ROUNDING / share * abs(self.at_solution):
            return math.nan
        order = distance.flatten().argsort()
        distance, rise, off = (part.flatten()[order] for part in (distance, rise, off))
        off = off.nan_to_num(nan=math.inf)
        good = off.cummax(0).values <= share * rise.cummax(0).values + ROUNDING * abs(self.at_solution)
        departs = float(distance[~good].min()) if not bool(good.all()) else math.inf
        trusted = distance[(distance < departs) & (distance <= reach)]
        return float(trusted.max()) if len(trusted) else 0.0

    def _trusted(self) -> str:
        radius = self.trusted_radius()
        if math.isnan(radius):
            return (
                "how far the quadratic model holds is not told: the solution lies outside, or rounding hides the change"
            )
        return f"the quadratic model is within 10 % of the change up to {radius:.3g} steps away"

    def __str__(self) -> str:
        finite = self.loss[self.loss.isfinite()]
        least = int(self.loss.nan_to_num(nan=math.inf).argmin())
        at = float(self.x[least % len(self.x)]), float(self.y[least // len(self.x)])
        lost = self.loss.numel() - len(finite)
        lines = [
            f"loss {self.at_solution:.4g} at the solution; over {len(self.x)} x {len(self.y)} points along "
            f"{self.names[0]} and {self.names[1]}, from {float(self.x[0]):.3g} to {float(self.x[-1]):.3g} steps of "
            f"length {self.lengths[0]:.3g} and {self.lengths[1]:.3g}:",
            f"  least {float(finite.min()):.4g} at ({at[0]:.3g}, {at[1]:.3g}), largest {float(finite.max()):.4g}"
            + (f"; not finite at {lost} points" if lost else ""),
            f"  {self._trusted()}",
        ]
        return "\n".join(lines)

    def to_dataframe(self) -> Any:
        """A row for every point, as a pandas DataFrame."""
        import pandas

        across, up = (part.flatten() for part in torch.meshgrid(self.x, self.y, indexing="xy"))
        columns = {"x": across, "y": up, "loss": self.loss.flatten(), "model": self.model.flatten()}
        return pandas.DataFrame({name: column.numpy() for name, column in columns.items()})


def plane(
    risk: EmpiricalRisk,
    directions: Subspace | Tensor,
    *,
    axes: tuple[int, int] = (0, 1),
    reach: float | tuple[float, float] | None = None,
    points: int = 41,
    names: tuple[str, str] | None = None,
) -> Plane:
    """The loss over the plane of two directions, and its quadratic model there.

    Costs ``points`` squared passes forward over the sample, and two Hessian products.

    Args:
        risk: on the k examples.
        directions: a subspace, or columns (N, D) of your own, of any length: :func:`filter_directions`,
            :func:`checkpoint_directions`.
        axes: which two of them span the plane, from 0.
        reach: how far to go either way along each, in units of the directions' lengths, or from where to where. None
            goes as far as the quadratic model rises by the loss at the solution along the plane's steepest direction.
        points: along each side, 3 to 501; an odd number has the solution among them.
        names: of the directions, for figures.

    Returns:
        The plane. A loss that is not finite far out is kept as it is.

    Raises:
        ValueError: for directions that do not fit, or a plane of no extent.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> data = torch.eye(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, data)
        >>> found = cp.plane(risk, torch.eye(2, dtype=torch.float64), reach=1.0, points=5)
        >>> torch.allclose(found.loss, found.model)   # the loss is quadratic
        True
    """
    expect_risk(risk)
    two = _two(risk, directions, axes)
    count = check_points(points)
    mean = mean_projection(risk, two)
    value, slope, bend = float(mean.loss[0]), mean.gradient[0], mean.hessian[0]
    low, high = _extent(reach, value, bend)
    x = torch.linspace(low, high, count, dtype=torch.float64, device="cpu")
    x[x.abs() < 1e-12 * (high - low)] = 0.0  # the solution itself, which rounding may miss
    z = torch.stack([part.flatten() for part in torch.meshgrid(x, x, indexing="xy")], dim=1)
    model = value + z @ slope + torch.einsum("pi,ij,pj->p", z, bend, z) / 2
    lengths = [risk.probed.vectors.norm(column) for column in two.basis.T]
    loss = _losses(risk, two, z)
    if not bool(loss.isfinite().any()):
        raise NotFiniteError(f"the loss is finite at no point from {low:g} to {high:g}; take a smaller reach=")
    return Plane(
        x=x,
        y=x.clone(),
        loss=loss.view(len(x), len(x)),
        model=model.view(len(x), len(x)),
        at_solution=value,
        lengths=(lengths[0], lengths[1]),
        names=names or ("first direction", "second direction"),
    )


def check_points(points: int) -> int:
    """So many along a side, if that makes sense."""
    if not isinstance(points, Integral) or not 3 <= points <= MOST_POINTS:
        raise ArgumentError(f"{points!r} points along a side of the plane; expected a whole number, 3 to {MOST_POINTS}")
    return int(points)


def _two(risk: EmpiricalRisk, directions: Subspace | Tensor, axes: tuple[int, int]) -> Subspace:
    """Two columns (N, 2), of any length, in the risk's own dtype."""
    if isinstance(directions, Tensor) and directions.is_floating_point():
        shape = tuple(directions.shape)
    elif isinstance(directions, Subspace):
        shape = (directions.num_params, directions.dim)
    else:
        raise ArgumentTypeError(f"directions is a {type(directions).__name__}; expected a Subspace, or columns (N, D)")
    if len(shape) != 2 or shape[1] < 2 or shape[0] != risk.num_params:
        raise ArgumentError(
            f"the directions have shape {shape}; expected two or more of {risk.num_params} parameters: "
            f"({risk.num_params}, D)"
        )
    chosen = [operator.index(axis) for axis in axes]
    if len(chosen) != 2 or chosen[0] == chosen[1] or not all(0 <= axis < shape[1] for axis in chosen):
        raise ArgumentError(f"axes is {axes!r}; expected two different numbers from 0 to {shape[1] - 1}")
    columns = directions[:, chosen] if isinstance(directions, Tensor) else directions.columns(chosen)
    two = columns.detach().to(device=risk.device, dtype=risk.dtype)
    if not all(0 < risk.probed.vectors.norm(column) < math.inf for column in two.T):
        raise ArgumentError("a direction is zero or not finite; expected two that lead somewhere")
    return Subspace(two, space=risk.space if risk.probed.divided is not None else None)


def _extent(reach: float | tuple[float, float] | None, value: float, bend: Tensor) -> tuple[float, float]:
    if reach is None:
        steepest = float(torch.linalg.eigvalsh(bend).abs().max())
        reach = math.sqrt(2 * abs(value) / steepest) if steepest > 0 else math.nan
        if not 0 < reach < math.inf:
            raise ArgumentError(
                f"the loss is {value:g} and its curvature in the plane {steepest:g}: how far to go does not follow; "
                "give reach="
            )
    try:
        low, high = (float(end) for end in (reach if isinstance(reach, tuple | list) else (-reach, reach)))
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"reach is {reach!r}; expected a number, or two: from where to where") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ArgumentError(f"reach is {reach!r}; expected a positive number, or two that ascend")
    return low, high


def _losses(risk: EmpiricalRisk, two: Subspace, z: Tensor) -> Tensor:
    """The mean loss at every point ``w* + basis z`` (S,), float64."""
    found: list[Tensor] = []
    with progress.bar("plane (points)", len(z)) as advance:
        for block in in_blocks(map(two.at, z), risk):
            found.append(displaced_values(risk, block, finite=False))
            advance(len(block))
    return torch.cat(found)
