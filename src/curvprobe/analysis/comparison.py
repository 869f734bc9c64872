"""Several runs side by side, at one sigma, and which of their differences exceed their error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from curvprobe.analysis.answer import refusal, rms_interval, short, three
from curvprobe.analysis.record import load
from curvprobe.analysis.result import Absent, Analysis
from curvprobe.criteria.decay import decay_curve
from curvprobe.criteria.expectation import expected_criterion
from curvprobe.criteria.expected import ExpectedCriterion
from curvprobe.criteria.increment import spaced_sizes
from curvprobe.errors import ArgumentError
from curvprobe.numerics.intervals import FEWEST_FOR_UPPER, freedom, standard_error, student_reach
from curvprobe.runtime.markup import table
from curvprobe.runtime.store import write_atomically

POINTS = 25
"""Sample sizes of a curve, at most."""


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison, at its common sigma.

    Attributes:
        name: of the run.
        k, dim: examples in its sample, and directions.
        loss, held_out_loss: at its solution, on its sample and on its candidates.
        rms, rms_interval: what one more example does to the landscape, loss units, with a 95 % interval.
        shape_rms, shape_rms_interval: the same without the mean over the probe.
        refused: why its numbers are of no landscape that stays; None where they can be read.
        ratio: its rms over that of the first run.
        differs: whether the mean squares differ beyond their error; None where that cannot be told.
        overlap: share of its eigenspace that lies in the first run's; NaN where they are of other models.
        eigenvalues: (D,), of the Hessian.
        ks, curve: sample sizes, and the rms at each of them, the weights staying as they are; empty where there is no
            answer, or where the projections were not read.
    """

    name: str
    k: int
    dim: int
    loss: float
    held_out_loss: float
    rms: float
    rms_interval: tuple[float, float]
    shape_rms: float
    shape_rms_interval: tuple[float, float]
    refused: str | None
    ratio: float
    differs: bool | None
    overlap: float
    eigenvalues: tuple[float, ...]
    ks: tuple[int, ...]
    curve: tuple[float, ...]


HEAD = (*("run", "k", "loss", "candidates", "one more moves it by", "tilt and bend", "against the first", "overlap"),)


@dataclass(frozen=True)
class Comparison:
    """What :func:`curvprobe.compare` found; print it for a table.

    Attributes:
        runs: in the order given; the first is what the others are held against.
        sigma: of all of them.
        paired: whether all were asked about the same candidates, so that differences are taken candidate by candidate.
        doubts: what a reader should know before comparing.
        overlaps: for every two runs, the share of the smaller eigenspace that lies in the other.
    """

    runs: tuple[ComparedRun, ...]
    sigma: float
    paired: bool
    doubts: tuple[str, ...]
    overlaps: tuple[tuple[float, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "runs": [vars(run) for run in self.runs]}

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each run."""
        import pandas

        rows = []
        for run in self.runs:
            row = {name: value for name, value in vars(run).items() if name not in ("eigenvalues", "ks", "curve")}
            for name in ("rms", "shape_rms"):
                row[f"{name}_low"], row[f"{name}_high"] = row.pop(f"{name}_interval")
            rows.append(row)
        return pandas.DataFrame(rows).set_index("name")

    def rows(self) -> list[tuple[str, ...]]:
        """A row of words for each run, under :data:`HEAD`."""
        return [_row(run, first=i == 0) for i, run in enumerate(self.runs)]

    def notes(self) -> list[str]:
        """How the runs were compared, and the doubts."""
        how = "candidate by candidate" if self.paired else "by their intervals"
        told = f"sigma {self.sigma:.3g} for all; differences are judged {how}, at 95 %"
        return [told, *(f"doubt: {doubt}" for doubt in self.doubts)]

    def _repr_html_(self) -> str:
        """For a notebook."""
        return table(HEAD, self.rows(), self.notes())

    def to_html(self, path: str | Path, *, title: str = "") -> Path:
        """Write one self-contained page: the table, the curves over one another, and the overlaps.

        Args:
            path: of the file; an earlier one is replaced.
            title: of the page; the runs' names otherwise.

        Raises:
            ImportError: without ``pip install 'curvprobe[report]'``.
        """
        from curvprobe.report.side_by_side import page

        file = Path(path)
        write_atomically(file, page(self, HEAD, title=title).encode())
        return file

    def __str__(self) -> str:
        rows = [HEAD, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self.notes()])


def compare(runs: Sequence[Analysis | str | Path], *, names: Sequence[str] | None = None) -> Comparison:
    """Several runs side by side: checkpoints, seeds, recipes.

    The criterion depends on sigma, so all are taken at the smallest of theirs; D may differ, and is told where it does.

    Args:
        runs: analyses, or folders of finished runs; at least two. Their projections are needed where their sigmas or
            candidates are to be matched.
        names: of the runs; None takes the folders' names, or numbers.

    Raises:
        ValueError: for fewer than two runs, or runs whose sigmas differ and that were read without projections.

    Example:
        >>> import torch, curvprobe as cp
        >>> x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        >>> def run(seed):
        ...     _ = torch.manual_seed(seed)
        ...     model = torch.nn.Sequential(torch.nn.Linear(1, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
        ...     risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[::2], x[::2].sin()))
        ...     return cp.analyze(risk, (x[1::2], x[1::2].sin()), dim=3, tol=1e-6, sigma=0.01)
        >>> found = cp.compare([run(0), run(1)], names=["a", "b"])
        >>> found.paired, found.sigma, [(one.name, one.k) for one in found.runs]
        (True, 0.01, [('a', 20), ('b', 20)])
    """
    if len(runs) < 2:
        raise ArgumentError(f"{len(runs)} runs came; a comparison needs at least 2")
    found = [_loaded(run) for run in runs]
    called = [_name(run, i) for i, run in enumerate(runs)] if names is None else [str(name) for name in names]
    if len(called) != len(found):
        raise ArgumentError(f"{len(called)} names came for {len(found)} runs; expected as many")
    sigma = min(analysis.sigma for analysis in found)
    expected = [_expected(analysis, sigma) for analysis in found]
    marks = {_candidates(analysis) for analysis in found}
    paired = len(marks) == 1 and None not in marks and not any(one.pool for one in expected)
    paired = paired and all(analysis.drawn is None for analysis in found)  # or the draws of the samples differ too
    first = found[0], expected[0]
    compared = [
        _compared(name, analysis, one, *first, sigma=sigma, paired=paired)
        for name, analysis, one in zip(called, found, expected, strict=True)
    ]
    overlaps = tuple(tuple(_overlap(a, b) for b in found) for a in found)
    return Comparison(tuple(compared), sigma, paired, tuple(_doubts(compared, found, sigma)), overlaps)


def _compared(
    name: str,
    analysis: Analysis,
    expected: ExpectedCriterion,
    first: Analysis,
    first_expected: ExpectedCriterion,
    *,
    sigma: float,
    paired: bool,
) -> ComparedRun:
    """One run; without the numbers that it cannot give, or that the first one cannot."""
    refused = refusal(analysis)
    told, against = refused is None, refused is None and refusal(first) is None
    ks, curve = _curve(analysis, sigma) if told else ((), ())
    return ComparedRun(
        name=name,
        k=analysis.k,
        dim=analysis.spectrum.dim,
        loss=analysis.loss,
        held_out_loss=analysis.held_out_loss,
        rms=expected.rms if told else math.nan,
        rms_interval=rms_interval(expected) if told else (math.nan, math.nan),
        shape_rms=expected.shape_rms if told else math.nan,
        shape_rms_interval=rms_interval(expected, "shape") if told else (math.nan, math.nan),
        refused=refused,
        ratio=expected.rms / first_expected.rms if against and first_expected.rms > 0 else math.nan,
        differs=_differs(first_expected, expected, paired=paired) if against else None,
        overlap=_overlap(first, analysis),
        eigenvalues=tuple(analysis.spectrum.eigenvalues.tolist()),
        ks=ks,
        curve=curve,
    )


def _curve(analysis: Analysis, sigma: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The rms over the candidates at some sample sizes, from the projections."""
    if isinstance(analysis.sample, Absent) or isinstance(analysis.fresh, Absent) or analysis.num_candidates < 2:
        return (), ()
    ks = spaced_sizes(analysis.sample, POINTS)
    found = decay_curve(analysis.sample, ks, sigma, fresh=analysis.fresh)
    return tuple(ks), tuple(found.value[:, 0, 0].clamp_min(0.0).sqrt().tolist())


def _loaded(run: Analysis | str | Path) -> Analysis:
    found = run if isinstance(run, Analysis) else load(run)
    if not isinstance(found, Analysis):
        raise ArgumentError(f"{str(run)!r} is of a trajectory; a comparison is of single analyses")
    return found


def _name(run: Analysis | str | Path, position: int) -> str:
    return str(position + 1) if isinstance(run, Analysis) else Path(run).resolve().name


def _expected(analysis: Analysis, sigma: float) -> ExpectedCriterion:
    """What is expected at this sigma, of the second order."""
    known = analysis.expected
    if known is not None and known.p == 2 and math.isclose(analysis.sigma, sigma, rel_tol=1e-9):
        return known
    pool = None if analysis.num_candidates < 2 else analysis.fresh
    return expected_criterion(analysis.sample, pool, sigma, allow_overlap=True)  # what was allowed was said then


def _candidates(analysis: Analysis) -> tuple[str, ...] | None:
    """The candidates by their content; None where that is not known."""
    fresh = analysis.fresh
    return None if isinstance(fresh, Absent) or not fresh.digests else tuple(fresh.digests)


def _differs(first: ExpectedCriterion, other: ExpectedCriterion, *, paired: bool) -> bool | None:
    """Whether two mean squares differ beyond their error."""
    if first is other:
        return False
    if paired:
        difference: Tensor = other.contributions - first.contributions
        reach = student_reach(standard_error(difference), freedom(difference))
        return None if math.isnan(reach) else abs(float(difference.mean())) > reach
    (low, high), (least, most) = rms_interval(first), rms_interval(other)
    if high < least or most < low:
        return True
    return False if math.isfinite(high) and math.isfinite(most) else None


def _overlap(first: Analysis, other: Analysis) -> float:
    """``|U_1^T U_2|_F^2`` over the smaller D."""
    spaces = first.subspace, other.subspace
    if any(isinstance(space, Absent) for space in spaces) or first.num_params != other.num_params:
        return math.nan
    a, b = (space.basis.double().cpu() for space in spaces)
    return float((a.T @ b).square().sum()) / min(a.shape[1], b.shape[1])


def _doubts(runs: Sequence[ComparedRun], found: Sequence[Analysis], sigma: float) -> list[str]:
    """What a reader should know before comparing."""
    doubts = [f"{run.name}: {run.refused}" for run in runs if run.refused is not None]
    for run, analysis in zip(runs, found, strict=True):
        verdict = analysis.validity.verdict(sigma)
        if verdict != "valid" and run.refused is None:
            doubts.append(f"{run.name}: the quadratic model is {verdict} at sigma {sigma:.3g}")
    if len({run.dim for run in runs}) > 1:
        doubts.append(
            f"the runs are of {', '.join(str(run.dim) for run in runs)} directions, and the criterion grows with D"
        )
    fewest = min(analysis.num_candidates for analysis in found)
    if fewest < FEWEST_FOR_UPPER:
        doubts.append(
            f"{fewest} candidates: what is rarer than 1 in {max(1, fewest // 3)} among those to come was not compared"
        )
    if len({run.k for run in runs}) > 1:
        doubts.append("the samples are of different sizes: at fixed weights the rms falls as 1/k, which is arithmetic")
    return doubts


def _row(run: ComparedRun, *, first: bool) -> tuple[str, ...]:
    held_out = "" if math.isnan(run.held_out_loss) else three(run.held_out_loss)
    against = ""
    if not first and not math.isnan(run.ratio):
        words = {True: "differs", False: "not told apart", None: "cannot tell"}
        against = f"{run.ratio:.2g} times, {words[run.differs]}"
    overlap = "" if math.isnan(run.overlap) else f"{100 * run.overlap:.0f} %"
    numbers = (_with(run.rms, run.rms_interval), _with(run.shape_rms, run.shape_rms_interval))
    if run.refused is not None:
        numbers = ("no answer", "")
    return run.name, f"{run.k:,}", three(run.loss), held_out, *numbers, against, overlap


def _with(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{short(value)} [{short(low)}, {short(high) if math.isfinite(high) else '?'}]"
