"""What the error of the quadratic model says of its use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from curvprobe.numerics.intervals import student_reach
from curvprobe.runtime.plain import brief, number, numbers

Verdict = Literal["valid", "marginal", "invalid"]


MARGINAL = 4.0
"""A model whose error is up to this many times the threshold is called marginal rather than invalid."""

CLEARLY_VALID, CLEARLY_INVALID = 1 / 4, 2.0
"""Parts of the bounds of valid and of invalid within, and beyond, which an error from two mirrored pairs of draws
settles the verdict. The two pairs' own scatter has one degree of freedom: by Student's reach more sigmas stay open,
and yet more of those called clear are judged otherwise by 16 draws, as it is small by chance too. The lower part is the
farther off: where the model holds, its error may come from a kink that one draw in ten meets; where it fails, the error
is about as large along most draws. tests/probing/test_first_draws.py counts both."""


@dataclass(frozen=True, eq=False)
class QuadraticValidity:
    """Relative error of the quadratic model over a grid of sigmas.

    Attributes:
        sigmas: (S,), ascending.
        loss_error: (S,), root-mean-square error of the model of ``L_k(w* + d) - L_k(w*)`` over that of the change
            itself.
        increment_error: (S,), the same for the increment's change ``Delta(w* + d) - Delta(w*)``, pooled over the new
            examples; None without any. The criteria rest on this one.
        threshold: error up to which the model is called valid.
        verdicts: one per sigma, by ``increment_error`` if there is one, else by ``loss_error``.
        num_probes: (S,), draws behind the numbers of each sigma.
        stderr: (S,), standard error of the error that the verdicts go by, over the draws.
        change: (S,), root mean square of what the errors are relative to: the true change; NaN where it is unknown.
        loss: of the risk at the solution.
    """

    sigmas: Tensor
    loss_error: Tensor
    increment_error: Tensor | None
    threshold: float
    verdicts: tuple[Verdict, ...]
    num_probes: Tensor
    stderr: Tensor
    change: Tensor
    loss: float

    __repr__ = brief

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = (
            *("sigmas", "loss_error", "increment_error", "stderr", "change", "loss", "threshold", "verdicts"),
            *("num_probes", "validated_sigma", "precision_floor"),
        )
        change = None if bool(self.change.isnan().any()) else self.change
        return {name: getattr(self, name) for name in names} | {"change": change}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> QuadraticValidity:
        """What :meth:`to_json` has written."""
        joined = record["increment_error"]
        return cls(
            sigmas=numbers(record["sigmas"]),
            loss_error=numbers(record["loss_error"], math.inf),
            increment_error=None if joined is None else numbers(joined, math.inf),
            threshold=record["threshold"],
            verdicts=tuple(record["verdicts"]),
            num_probes=torch.tensor(record["num_probes"], device="cpu"),
            stderr=numbers(record["stderr"], math.inf),
            change=torch.full_like(numbers(record["sigmas"]), math.nan)
            if record["change"] is None
            else numbers(record["change"], math.inf),
            loss=number(record["loss"]),
        )

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for every sigma."""
        import pandas

        names = ("loss_error", "increment_error", "stderr", "change", "num_probes")
        known = {name: part.numpy() for name in names if (part := getattr(self, name)) is not None}
        return pandas.DataFrame({"sigma": self.sigmas.numpy(), **known, "verdict": self.verdicts})

    @property
    def error(self) -> Tensor:
        """The error that the verdicts go by, (S,)."""
        return self.loss_error if self.increment_error is None else self.increment_error

    @property
    def validated_sigma(self) -> float | None:
        """The largest sigma up to which the model is valid without a gap from where it is best; None if nowhere."""
        best = int(self.error.nan_to_num(nan=torch.inf).argmin())
        if self.verdicts[best] != "valid":
            return None
        last = best
        while last + 1 < len(self.verdicts) and self.verdicts[last + 1] == "valid":
            last += 1
        return float(self.sigmas[last])

    @property
    def precision_floor(self) -> float | None:
        """The smallest sigma of the validated regime, where smaller ones of the grid fail by rounding; None else."""
        best = int(self.error.nan_to_num(nan=torch.inf).argmin())
        first = best
        while first > 0 and self.verdicts[first - 1] == "valid":
            first -= 1
        return float(self.sigmas[first]) if first > 0 and self.verdicts[best] == "valid" else None

    def rounding_floor(self, dtype: torch.dtype) -> float | None:
        """The sigma from which on the change is so large that losses rounded to ``dtype`` would show it.

        The roundoff of a loss of this size is then within the threshold of the change. None if that is nowhere.
        """
        seen = self.threshold * self.change >= torch.finfo(dtype).eps / 2 * abs(self.loss)
        hidden = int((~seen).nonzero().max()) + 1 if not bool(seen.all()) else 0
        return float(self.sigmas[hidden]) if hidden < len(self.sigmas) else None

    def error_at(self, sigma: float) -> float:
        """The error that the verdict goes by at the grid's sigma nearest to this one."""
        return float(self.error[(self.sigmas - sigma).abs().argmin()])

    def stderr_at(self, sigma: float) -> float:
        """Its standard error there."""
        return float(self.stderr[(self.sigmas - sigma).abs().argmin()])

    def reach_at(self, sigma: float) -> float:
        """Half of its 95 % interval there; the draws are pairs of mirror images."""
        draws = int(self.num_probes[(self.sigmas - sigma).abs().argmin()])
        return student_reach(self.stderr_at(sigma), max(1, draws // 2 - 1))

    def verdict(self, sigma: float) -> Verdict:
        """The verdict at the grid's nearest sigma that is not smaller; beyond the grid, "invalid"."""
        above = (self.sigmas >= sigma * (1 - 1e-9)).nonzero().flatten()
        return self.verdicts[int(above[0])] if len(above) else "invalid"


def verdict_of(error: float, threshold: float) -> Verdict:
    """The verdict on a relative error."""
    if error <= threshold:
        return "valid"
    return "marginal" if error <= MARGINAL * threshold else "invalid"


def is_clear(error: float, threshold: float) -> bool:
    """Whether an error from two mirrored pairs of draws settles the verdict: well within valid or beyond marginal.

    Example:
        >>> [is_clear(error, 0.05) for error in (0.01, 0.02, 0.1, 0.3, 0.5)]
        [True, False, False, False, True]
    """
    return error <= CLEARLY_VALID * threshold or error > CLEARLY_INVALID * MARGINAL * threshold
