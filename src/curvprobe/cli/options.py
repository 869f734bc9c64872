"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from curvprobe.errors import ArgumentError

K = Annotated[int | None, typer.Option(help="Examples in the sample: the first K of the task's data. Default: all.")]
Dim = Annotated[int, typer.Option(help="Dimension D of the top eigenspace of the Hessian.")]
Sigma = Annotated[
    str,
    typer.Option(
        help="Standard deviation of the probe in parameter units, or 'auto': the largest at which the quadratic "
        "model is validated."
    ),
]
NumProbes = Annotated[int, typer.Option(help="Monte-Carlo draws.")]
Tol = Annotated[float, typer.Option(help="Bound on the eigenpairs' residuals, relative to the first eigenvalue.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Memory = Annotated[
    float | None,
    typer.Option(
        help="GiB that the work may take beyond the model and the data. Default: half of what is free.", metavar="GIB"
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(help="RMS increment in loss units for which to tell the required sample size. Default: not told."),
]
P = Annotated[
    float,
    typer.Option(
        "--p",
        help="Order p of the criterion E|L_{k+1} - L_k|^p, at least 1: 2 is the mean square, 1 the mean magnitude; "
        "larger ones weigh the tail. For the first candidate and the expectation; all else is of order 2.",
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
    bool, typer.Option("--compile", help="Compile the Hessian product: minutes at first, for jobs that take long.")
]


def number(sigma: str) -> float:
    """The value of --sigma where it is not "auto"."""
    try:
        return float(sigma)
    except ValueError:
        raise ArgumentError(f"--sigma is {sigma!r}; expected 'auto' or a positive number") from None


def as_bytes(gib: float) -> int:
    """The value of --memory-budget, from GiB."""
    if not 0 < gib < math.inf:
        raise ArgumentError(f"--memory-budget is {gib}; expected a positive number of GiB")
    return int(gib * 2**30)
