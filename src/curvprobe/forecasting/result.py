"""A forecast: what the rules say, what speaks against them, how often such a forecast was right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvprobe.forecasting import rules
from curvprobe.forecasting.gates import gates
from curvprobe.forecasting.rates import RATES, Rate
from curvprobe.forecasting.refits import Mean, Refits
from curvprobe.forecasting.rules import GainEstimate, Reason
from curvprobe.runtime.markup import table
from curvprobe.runtime.plain import brief, number, numbers
from curvprobe.runtime.store import write_atomically

FORECAST_VERSION = 1
"""Of a forecast's ``result.json``."""

SHIPPED = "calibrated"
"""The rule that answers."""

STUDIED = 8
"""Halves on which models were trained in the study, at the most."""

AHEAD = (2, 4)
"""How many times the examples."""

HEAD = ("examples", "models", "held-out loss", "above that at k")

REFUSED = "NO FORECAST of what more examples would take off the held-out loss"

NO_CRITERION = "This is a forecast of the held-out loss, and no criterion: how stable the landscape is, `run` tells."


@dataclass(frozen=True, eq=False)
class Forecast:
    """What more examples would take off the held-out loss, by several rules.

    Nothing of it tells how stable the landscape is, and no criterion tells this.

    Attributes:
        sizes: int (S,), examples that models were trained on, the largest first: k, and parts of it.
        models: int (S,), how many were trained on so many.
        losses: float64 (S,), their held-out losses, averaged over the models.
        stderr: float64 (S,), of the difference to that at k, over the held-out examples; the first of the loss at k.
        sample_loss: of the model trained on all k, on these.
        num_held_out: held-out examples.
        estimates: of every rule.
        exponent, exponent_stderr: gamma of ``k^-gamma`` by which the loss in excess fell up to k; NaN where it did not.
        refusals: why there is no forecast by any rule.
    """

    sizes: Tensor
    models: Tensor
    losses: Tensor
    stderr: Tensor
    sample_loss: float
    num_held_out: int
    estimates: tuple[GainEstimate, ...]
    exponent: float
    exponent_stderr: float
    refusals: tuple[Reason, ...]

    __repr__ = brief

    @property
    def k(self) -> int:
        """Examples in the sample."""
        return int(self.sizes[0])

    @property
    def held_out_loss(self) -> float:
        """Of the model trained on all k, on the held-out examples."""
        return float(self.losses[0])

    @property
    def answer(self) -> GainEstimate:
        """The estimate by the rule that was right most often, whether it is an answer or not."""
        return next(estimate for estimate in self.estimates if estimate.rule == SHIPPED)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why there is no forecast; empty where there is one."""
        return tuple(reason.said for reason in (*self.refusals, *self.answer.reasons))

    @property
    def gain(self) -> float:
        """What twice the examples take off the held-out loss, loss units; NaN where that is refused."""
        return math.nan if self.reasons else self.answer.gain

    @property
    def interval(self) -> tuple[float, float]:
        """90 % interval of the gain; (-inf, inf) where it is refused."""
        return (-math.inf, math.inf) if self.reasons else self.answer.interval

    @property
    def rates(self) -> tuple[Rate, ...]:
        """How often forecasts from as many halves were right in the study, for twice and four times the examples."""
        halves = int(self.models[1])
        return RATES["first k only" if halves == 1 else "one split" if halves < STUDIED else "splits"]

    def ahead(self) -> list[tuple[int, float, tuple[float, float]]]:
        """Examples, forecast loss and its 90 % interval, for twice and four times the examples; none where refused."""
        if self.reasons:
            return []
        gains = (self.answer.gain, self.answer.further)
        intervals = (self.answer.interval, self.answer.further_interval)
        loss = self.held_out_loss
        return [
            (times * self.k, loss - gain, (loss - high, loss - low))
            for times, gain, (low, high) in zip(AHEAD, gains, intervals, strict=True)
        ]

    def __str__(self) -> str:
        refused = [f"{REFUSED}:", *(f"  {reason}" for reason in self.reasons)]
        return "\n".join([*(refused if self.reasons else self.findings()), *self.grounds(), NO_CRITERION])

    def findings(self) -> list[str]:
        """What is forecast, and how often such forecasts were right; none where it is refused."""
        loss, lines = self.held_out_loss, list[str]()
        for i, (size, ahead, (low, high)) in enumerate(self.ahead()):
            often = "twice" if i == 0 else "four times"
            lines.append(
                f"{often} the examples ({self.k:,} to {size:,}) would take {loss - ahead:.2g} "
                f"[{loss - high:.2g}, {loss - low:.2g}] off the held-out loss, which is {loss:.3g}"
            )
            lines += [f"  {rate}" for rate in self.rates[i : i + 1]]
        return lines

    def grounds(self) -> list[str]:
        """What it rests on: the rules, what they assume, and the losses."""
        found = [
            f"{estimate.rule} {estimate.gain:.2g}{' (refused)' if estimate.reasons else ''}"
            for estimate in self.estimates
            if math.isfinite(estimate.gain)
        ]
        fell = "it did not fall from k / 4 over k / 2 to k so that this could be seen"
        if math.isfinite(self.exponent):
            fell = f"from k / 4 over k / 2 to k it fell as k^-{self.exponent:.2g} +- {2 * self.exponent_stderr:.1g}"
        losses = zip(self.sizes.tolist(), self.losses.tolist(), strict=True)
        unseen = "whether the held-out examples are of the sample's kind was not looked at: that takes both halves"
        return [
            f"gain of twice the examples by each rule: {', '.join(found)}",
            f"assumed: the loss in excess of the best falls as 1 / k; {fell}",
            f"loss {self.sample_loss:.3g} on the sample; on {self.num_held_out:,} held-out examples, when trained on "
            + ", ".join(f"{size:,} {loss:.3g}" for size, loss in losses),
            *([unseen] if int(self.models[1]) == 1 else []),
        ]

    def _repr_html_(self) -> str:
        """For a notebook."""
        return table(HEAD, self.rows(), str(self).split("\n"))

    def to_html(self, path: str | Path, *, title: str = "") -> Path:
        """Write one self-contained page: what is forecast, what it rests on, and the held-out loss over the examples.

        Args:
            path: of the file; an earlier one is replaced.
            title: of the page.

        Raises:
            ImportError: without ``pip install 'curvprobe[report]'``.
        """
        from curvprobe.report.ahead import page

        file = Path(path)
        write_atomically(file, page(self, title=title).encode())
        return file

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the columns of :meth:`rows`."""
        return HEAD

    def rows(self) -> list[tuple[str, ...]]:
        """Of a table of what was trained, under :data:`HEAD`."""
        found: list[tuple[str, ...]] = []
        for i, (size, models) in enumerate(zip(self.sizes.tolist(), self.models.tolist(), strict=True)):
            less = f"{float(self.losses[i] - self.losses[0]):.2g} +- {2 * float(self.stderr[i]):.1g}" if i else ""
            found.append((f"{size:,}", f"{models}", f"{float(self.losses[i]):.4g}", less))
        return found

    def to_json(self) -> dict[str, Any]:
        """Every number, as ``result.json`` holds it."""
        return {
            **{name: getattr(self, name) for name in (*_TENSORS, *_NUMBERS)},
            "num_held_out": self.num_held_out,
            "estimates": [
                asdict(one) | {"interval": one.interval, "further_interval": one.further_interval}
                for one in self.estimates
            ],
            "refusals": [asdict(reason) for reason in self.refusals],
            "answered": not self.reasons,
            "rates": [asdict(rate) for rate in self.rates],
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Forecast:
        """What :meth:`to_json` has written."""
        return cls(
            sizes=torch.tensor(record["sizes"], device="cpu"),
            models=torch.tensor(record["models"], device="cpu"),
            losses=numbers(record["losses"]),
            stderr=numbers(record["stderr"]),
            num_held_out=int(record["num_held_out"]),
            estimates=tuple(_estimate(one) for one in record["estimates"]),
            refusals=tuple(Reason(**reason) for reason in record["refusals"]),
            **{name: number(record[name]) for name in _NUMBERS},
        )


_TENSORS = ("sizes", "models", "losses", "stderr")
_NUMBERS = ("sample_loss", "exponent", "exponent_stderr")


def _estimate(record: dict[str, Any]) -> GainEstimate:
    gains = {name: number(record[name]) for name in ("gain", "stderr", "further")}
    return GainEstimate(str(record["rule"]), **gains, reasons=tuple(Reason(**reason) for reason in record["reasons"]))


def told(sizes: Sequence[Refits]) -> Forecast:
    """What the rules say of models trained on all k examples, on halves, on quarters, and perhaps on fewer."""
    full, half = sizes[0], sizes[1]
    gap, halves = rules.gap(full), rules.halves(full, half)
    estimates = [gap, halves, rules.mean(gap, halves), rules.calibrated(gap, halves)]
    if len(sizes) >= rules.FEWEST_SIZES:
        estimates.append(rules.power_law(sizes))
    quarter = next((one for one in sizes[2:] if one.size == full.size // 4), None)
    fell = (math.nan, math.nan) if quarter is None else rules.exponent(full, half, quarter)
    stderr = [full.test.stderr, *((one.test - full.test).stderr for one in sizes[1:])]
    return Forecast(
        sizes=torch.tensor([one.size for one in sizes], device="cpu"),
        models=torch.tensor([len(one) for one in sizes], device="cpu"),
        losses=torch.tensor([one.test.value for one in sizes], dtype=torch.float64, device="cpu"),
        stderr=torch.tensor(stderr, dtype=torch.float64, device="cpu"),
        sample_loss=Mean(full.own[0], full.own_weights[0]).value,
        num_held_out=full.held_out.shape[1],
        estimates=tuple(estimates),
        exponent=fell[0],
        exponent_stderr=fell[1],
        refusals=gates(sizes),
    )
