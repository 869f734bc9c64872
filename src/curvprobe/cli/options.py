"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from curvprobe.analysis.analyze import LEAST
from curvprobe.analysis.conditions import NAMES, Condition
from curvprobe.cli.formats import ReportFormat
from curvprobe.errors import ArgumentError


def positive(value: float | None) -> float | None:
    """An option that is left out, or a positive number."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"it is {value:g}; expected a positive number")
    return value


def _auto_or_positive(sigma: str) -> str:
    """The value of --sigma."""
    if sigma != "auto":
        try:
            value = float(sigma)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise typer.BadParameter(f"it is {sigma!r}; expected 'auto' or a positive number")
    return sigma


def _a_device(name: str | None) -> str | None:
    """The value of --device."""
    if name is not None:
        import torch

        try:
            torch.empty(0, device=torch.device(name))
        except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
            raise typer.BadParameter(f"it is {name!r}: {str(error).splitlines()[0]}") from None
    return name


def _conditions(texts: list[str] | None) -> list[str] | None:
    """The values of --fail-if."""
    for text in texts or ():
        try:
            Condition.parse(text)
        except ArgumentError as error:
            raise typer.BadParameter(str(error)) from None
    return texts


TaskName = Annotated[
    str | None,
    typer.Argument(help="file.py:function or module:function that returns a curvprobe.Task. Or give --hf and --text."),
]
HuggingFace = Annotated[
    Path | None,
    typer.Option(
        "--hf",
        metavar="FOLDER",
        help="In the place of a task: a causal or masked language model or a classifier of sequences that transformers "
        "saved, or an adapter of peft; with its tokenizer. Nothing is downloaded, and nothing in it is run.",
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="With --hf, its training sample. .jsonl: in every line an example, a mapping with text, and label for a "
        "classifier. Any other file: a running text, cut into pieces of the whole context.",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(min=2, help="With --hf: tokens of an example, at most. Default: the model's positions, at most 512."),
]
Candidates = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|N", help="With --hf: a file of texts that it was not trained on, or how many of --text's last."
    ),
]
K = Annotated[
    int | None, typer.Option(min=1, help="Examples in the sample: the first K of the task's data. Default: all.")
]
MaxExamples = Annotated[
    int | None,
    typer.Option(
        min=LEAST,
        help="Differentiate at most so many of the sample's examples, drawn by the seed; what is told is still of all, "
        "with the error of the draw in the intervals. Default: all.",
    ),
]
Dim = Annotated[int, typer.Option(min=1, help="Dimension D of the top eigenspace of the Hessian.")]
Sigma = Annotated[
    str,
    typer.Option(
        callback=_auto_or_positive,
        help="Standard deviation of the probe in parameter units, or 'auto': the largest at which the quadratic "
        "model is validated.",
    ),
]
NumProbes = Annotated[int, typer.Option(min=2, help="Monte-Carlo draws.")]
Tol = Annotated[
    float,
    typer.Option(callback=positive, help="Bound on the eigenpairs' residuals, relative to the first eigenvalue."),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Memory = Annotated[
    float | None,
    typer.Option(
        help="GiB that the work may take beyond the model and the data. Default: half of what is free.",
        metavar="GIB",
        callback=positive,
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        callback=positive,
        help="RMS increment for which to tell the required sample size, in loss units. Default: not told.",
    ),
]


class On(StrEnum):
    """What a tolerance is on."""

    TOTAL = "total"
    SHAPE = "shape"
    RELATIVE = "relative"


ToleranceOn = Annotated[
    On,
    typer.Option(
        help="What --tolerance is on. total: the whole increment, in loss units. shape: without its constant part, "
        "which training does not notice. relative: the whole, over the loss at the solution."
    ),
]
P = Annotated[
    float,
    typer.Option(
        "--p",
        min=1.0,
        help="Order p of the criterion E|L_{k+1} - L_k|^p, at least 1: 2 is the mean square, 1 the mean magnitude; "
        "larger ones weigh the tail. For the first candidate and the expectation; all else is of order 2.",
    ),
]


def _points(surface: int) -> int:
    """The value of --surface."""
    if surface and not 3 <= surface <= 501:
        raise typer.BadParameter(f"it is {surface}; expected 0, or points along a side, 3 to 501")
    return surface


Surface = Annotated[
    int,
    typer.Option(
        callback=_points,
        metavar="POINTS",
        help="Points along each side of the picture of the loss itself in the plane of the first two eigenvectors; 0 "
        "leaves it out.",
    ),
]


class Work(StrEnum):
    """How much of an analysis to do."""

    AUTO = "auto"
    FULL = "full"
    QUICK = "quick"


Stages = Annotated[
    Work,
    typer.Option(
        help="quick leaves out what the answer does not rest on: the criterion with isotropic probes, and the picture "
        "of the loss. auto: quick beyond ten million parameters."
    ),
]
Full = Annotated[bool, typer.Option("--full", help="Also print all tables, not only the answer.")]
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CONDITION",
        callback=_conditions,
        help="Exit with code 3 where this holds or cannot be told, as --fail-if 'shape_rms > 0.01'; repeat it for "
        f"several. On: {', '.join(NAMES)}.",
    ),
]
As = Annotated[
    ReportFormat | None,
    typer.Option(
        "--report-format",
        help="For a pipeline. junit: junit.xml in the folder, with a test case for every --fail-if. github: "
        "annotations of the run on standard output.",
    ),
]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write no report.html.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output, and nothing else there.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors; the result is in the folder.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Tell what it will take, as curvprobe plan does, and do nothing.")
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        help="Name of the parameters to probe, with * for any part; repeat it for several. Or one of lora, last-block, "
        "no-embeddings, head. Default: the task's."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        callback=_a_device, help="Where to compute: cpu, cuda, cuda:1, ... Default: where the task's model is."
    ),
]
Laws = Annotated[
    bool,
    typer.Option("--laws", help="Also tell the criterion under other probing laws: two more eigenspaces."),
]
Concentration = Annotated[
    bool,
    typer.Option(
        "--concentration",
        help="Also tell how much of the full-space signal the top-D directions, and others, capture: four more "
        "eigenspaces.",
    ),
]
AllowOverlap = Annotated[
    bool,
    typer.Option(
        "--allow-overlap",
        help="Take candidates that equal an example of the sample, and say how many: for data in which equal rows are "
        "different examples.",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the Hessian product, which takes minutes; gains nothing where one microbatch holds the sample.",
    ),
]


def as_bytes(gib: float) -> int:
    """The value of --memory-budget, from GiB."""
    return int(gib * 2**30)
