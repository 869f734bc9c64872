"""The forecasts: how much twice and four times the examples would take off the held-out loss, by several rules.

They were written down, with their gates and intervals, before the study that tells how often they hit:
docs/forecast.md.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe.forecasting.refits import Mean, Refits

SURE = 2.0
"""Standard errors that an estimate must be from zero."""

APART = 2.0
"""Factor that the gap and the halves may be apart for their mean."""

CALIBRATED_APART = 3.0
"""The same for the calibrated mean."""

FACTOR = 1.35
"""Of the calibrated mean: what the mean is multiplied by. Fitted on other data sets and generators than the study's."""

FEWEST_SIZES = 4
"""Through which a power law with an offset is fitted."""

FURTHER = 1.5
"""Gain of four times the examples over that of twice, where what the loss has in excess falls as 1 / k."""

SPREAD: Mapping[str, tuple[float, float]] = {
    "gap": (1.0, 0.85),
    "halves": (0.75, 0.85),
    "mean": (0.6, 0.7),
    "calibrated": (0.5, 0.65),
    "power law": (1.0, 1.2),
}
"""Standard deviation of the logarithm of each forecast over the truth, for twice and four times the examples, beside
the noise of the held-out examples; from the same other data sets and generators."""

REACH = 1.645
"""Standard deviations in half of a 90 % interval."""


@dataclass(frozen=True)
class Reason:
    """Why a number is no answer.

    Attributes:
        kind: in a few words, always the same.
        said: with the numbers.
    """

    kind: str
    said: str


@dataclass(frozen=True)
class GainEstimate:
    """One rule's forecast of the gain: the held-out loss at k examples less that at more.

    Attributes:
        rule: its name.
        gain: of twice the examples, loss units.
        stderr: of that, as far as the held-out examples and the sample's own make it.
        further: gain of four times the examples.
        reasons: why it is no answer; empty where it is one.
    """

    rule: str
    gain: float
    stderr: float
    further: float
    reasons: tuple[Reason, ...] = ()

    @property
    def interval(self) -> tuple[float, float]:
        """90 % interval of the gain of twice the examples."""
        return self._around(self.gain, SPREAD[self.rule][0])

    @property
    def further_interval(self) -> tuple[float, float]:
        """90 % interval of the gain of four times the examples."""
        return self._around(self.further, SPREAD[self.rule][1])

    def _around(self, value: float, spread: float) -> tuple[float, float]:
        if not (value > 0 and self.gain > 0 and math.isfinite(self.stderr)):
            return (-math.inf, math.inf)
        factor = math.exp(min(700.0, REACH * math.hypot(spread, self.stderr / self.gain)))
        return (value / factor, value * factor)


def gap(full: Refits) -> GainEstimate:
    r"""A quarter of the held-out gap.

    .. math:: (R_{test}(k) - R_{train}(k)) / 4

    Where training finds the minimiser, the loss on held-out examples is as much above that of the best parameters as
    the loss on the sample is below: c / k each, and twice the examples take off c / (2 k).
    """
    own = Mean(full.own.mean(0), full.own_weights.mean(0))
    value = (full.test.value - own.value) / 4
    return _of_two_sizes("gap", value, math.hypot(full.test.stderr, own.stderr) / 4, "the held-out gap")


def halves(full: Refits, half: Refits) -> GainEstimate:
    r"""Half of what the halves of the sample lose more than the whole.

    .. math:: (\overline{R_{test}}(k / 2) - R_{test}(k)) / 2

    Where the loss in excess falls as c / k, from k / 2 to k it falls by c / k, and from k to 2 k by half of that.
    """
    found = (half.test - full.test) * 0.5
    return _of_two_sizes("halves", found.value, found.stderr, "the halving")


def _of_two_sizes(rule: str, value: float, stderr: float, what: str) -> GainEstimate:
    return GainEstimate(rule, value, stderr, FURTHER * value, _unsure(what, value, stderr))


def mean(first: GainEstimate, second: GainEstimate) -> GainEstimate:
    """The geometric mean of the gap's and the halves' forecasts, where they agree."""
    return _mean("mean", first, second, factor=1.0, apart=APART)


def calibrated(first: GainEstimate, second: GainEstimate) -> GainEstimate:
    """The mean times 1.35, also where they agree less well: both are too small more often than too large."""
    return _mean("calibrated", first, second, factor=FACTOR, apart=CALIBRATED_APART)


def _mean(rule: str, first: GainEstimate, second: GainEstimate, *, factor: float, apart: float) -> GainEstimate:
    reasons = (*first.reasons, *second.reasons)
    if not (first.gain > 0 and second.gain > 0):
        return GainEstimate(rule, math.nan, math.nan, math.nan, reasons)
    found = max(first.gain / second.gain, second.gain / first.gain)
    if found > apart:
        said = (
            f"a quarter of the held-out gap ({first.gain:.2g}) and half of the halving ({second.gain:.2g}) are a "
            f"factor {found:.2g} apart (at most {apart:g}): the loss in excess does not fall as 1 / k"
        )
        reasons = (*reasons, Reason("gap and halving apart", said))
    value = factor * math.sqrt(first.gain * second.gain)
    stderr = value * math.hypot(first.stderr / first.gain, second.stderr / second.gain) / 2
    return GainEstimate(rule, value, stderr, FURTHER * value, reasons)


def _unsure(what: str, value: float, stderr: float) -> tuple[Reason, ...]:
    if value > SURE * stderr:  # nothing without noise is no gain either
        return ()
    said = (
        f"{what} makes the gain {value:.2g} with a standard error of {stderr:.2g}: fewer than {SURE:g} of them above "
        f"zero, and at most {value + SURE * stderr:.2g}"
    )
    return (Reason(f"{what} is noise", said),)


def exponent(full: Refits, half: Refits, quarter: Refits) -> tuple[float, float]:
    """The power by which the loss in excess fell from k / 4 over k / 2 to k, and its standard error."""
    first, second = quarter.test - half.test, half.test - full.test
    if not (first.value > 0 and second.value > 0):
        return math.nan, math.nan
    moved = first.influences / first.value - second.influences / second.value
    return math.log2(first.value / second.value), float(moved.norm()) / math.log(2)


def power_law(sizes: Sequence[Refits]) -> GainEstimate:
    r"""A power law with an offset through the losses at four or more sizes, by weighted least squares.

    .. math:: R_{test}(k) = R_\infty + c \, k^{-\gamma}, \qquad 0.1 \le \gamma \le 3

    Args:
        sizes: the largest first.
    """
    from scipy.optimize import OptimizeWarning, curve_fit

    x = torch.tensor([one.size / sizes[0].size for one in sizes], dtype=torch.float64, device="cpu")
    y = torch.tensor([one.test.value for one in sizes], dtype=torch.float64, device="cpu")
    rise = max(float(y.max() - y[0]), 1e-9)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # at a bound nothing is known of the errors
            (_, c, power), covariance = curve_fit(
                lambda x, offset, c, power: offset + c * x**-power,
                x.numpy(),
                y.numpy(),
                p0=(float(y[0]) - rise / 4, rise / 4, 1.0),
                sigma=_errors(sizes).numpy(),
                absolute_sigma=True,
                bounds=((-math.inf, 0.0, 0.1), (math.inf, math.inf, 3.0)),
                max_nfev=10_000,
            )
    except RuntimeError:
        said = f"no power law with an offset was found through the losses at {len(sizes)} sizes"
        return GainEstimate("power law", math.nan, math.nan, math.nan, (Reason("the power law is noise", said),))
    twice, four = (float(c * (1 - factor**-power)) for factor in (2.0, 4.0))
    slopes = torch.tensor([0.0, 1 - 2.0**-power, c * math.log(2) * 2.0**-power], dtype=torch.float64, device="cpu")
    known = torch.as_tensor(covariance, device="cpu")
    variance = float(slopes @ known @ slopes) if bool(known.isfinite().all()) else math.inf
    stderr = math.sqrt(max(0.0, variance))
    return GainEstimate("power law", twice, stderr, four, _unsure("the power law", twice, stderr))


def _errors(sizes: Sequence[Refits]) -> Tensor:
    """Standard errors of the losses at each size (S,), as far as they are not common to all sizes."""
    found = []
    for one in sizes[1:]:
        means = one.held_out @ (one.weights / one.weights.sum())
        among = float(means.std()) / math.sqrt(len(one)) if len(one) > 1 else 0.0
        found.append(math.hypot((one.test - sizes[0].test).stderr, among))
    return torch.tensor([min(found), *found], dtype=torch.float64, device="cpu").clamp_min(1e-12)
