"""Colours and words of all that is drawn: a page's charts and the figures have the same for the same thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curvprobe.criteria.verdicts import QuadraticValidity, Verdict

WHOLE, SHAPE = "#0072b2", "#cc79a7"
"""The criterion, and what of it is not level."""

PARTS = {"level": "#56b4e9", "slope": "#d55e00", "curvature": "#009e73"}
"""All five are of the palette of Okabe and Ito (2008), which the colour-blind tell apart."""

ACCENT = "#b3402a"
"""What was chosen: the sigma, the solution, the tolerance; and what failed."""

MUTED = "#8a8a8a"
"""What is there for comparison."""

MANY = (WHOLE, "#d55e00", "#009e73", SHAPE, "#56b4e9", "#e69f00", "#8a8a8a", "#000000")
"""Curves of one kind, in their order."""

SHADES: dict[Verdict, float] = {"marginal": 0.15, "invalid": 0.38}
"""How much of :data:`MUTED` lies over sigmas at which the quadratic model is not valid."""

K = "examples k"
STEP = "training step"
SIGMA = "sigma (parameter units)"
RMS = "one more moves the loss by"
ERROR = "error of the quadratic model"
SHARE = "share of the mean square"
INDEX = "direction"
EIGENVALUE = "eigenvalue of the Hessian"
CERTIFIED, NOT_CERTIFIED, NEXT = "certified", "not certified", "next (estimate)"
DIRECTIONS = "directions D"
CONCENTRATION = "share of the shape signal"
RISE = "loss above the solution"
INCREMENT, LOSS = "increment", "loss"
HELD_OUT = "held-out loss"


def spans(validity: QuadraticValidity, low: float, high: float) -> list[tuple[Verdict, float, float]]:
    """Verdict, first and last sigma of every stretch from ``low`` to ``high`` with a single verdict.

    They are those of :meth:`QuadraticValidity.verdict`: a sigma between two of the grid has the larger one's, and one
    beyond the grid is invalid.

    Example:
        >>> import torch
        >>> from curvprobe.criteria.verdicts import QuadraticValidity
        >>> error = torch.tensor([0.01, 0.02, 0.4])
        >>> verdicts = ("valid", "valid", "invalid")
        >>> found = QuadraticValidity(torch.tensor([1.0, 2.0, 4.0]), error, None, 0.05, verdicts, 8, error, error, 1.0)
        >>> spans(found, 0.5, 8.0)
        [('valid', 0.5, 2.0), ('invalid', 2.0, 8.0)]
    """
    ends = [*validity.sigmas.tolist(), high]
    found: list[tuple[Verdict, float, float]] = []
    for verdict, end in zip((*validity.verdicts, "invalid"), ends, strict=True):
        start = found[-1][2] if found else low
        if end <= start:
            continue
        if found and found[-1][0] == verdict:
            found[-1] = (verdict, found[-1][1], min(end, high))
        else:
            found.append((verdict, start, min(end, high)))
    return found
