"""The risk on some of many examples, drawn at random, which stand for all of them."""

from __future__ import annotations

import operator

from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.numerics.strata import FEWEST, draw
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk


def draw_examples(risk: EmpiricalRisk, count: int, seed: int = 0) -> EmpiricalRisk:
    r"""The risk on ``count`` of its examples, drawn at random, which stand for all of them.

    .. math:: \hat L(w) = \frac{1}{W_k} \sum_{i \in S} \omega_i l_i(w) + c, \qquad \sum_{i \in S} \omega_i = W_k,
        \quad \hat L(w^*) = L_k(w^*)

    Without replacement, stratified by the examples' weights, by the seed alone. Where the weights are equal every
    example is as likely as another and :math:`\omega_i = k / m`; of unequal ones the heavy are more likely. The total
    weight and the loss at the solution are those of all examples, from one pass over them without derivatives; all
    else is estimated: what :func:`project` makes of the drawn risk knows how it was drawn, and criteria from it have
    the error of the draw in their intervals.

    Args:
        risk: on the k examples.
        count: number m of examples to draw; the risk itself comes back where it has no more.
        seed: of the draw.

    Raises:
        ValueError: for fewer than 2.

    Source: the separate ratio estimator, Cochran (1977), "Sampling Techniques", 6.10, with a known constant.

    Example:
        >>> import torch, curvprobe as cp
        >>> x = torch.linspace(-2, 2, 1000, dtype=torch.float64)[:, None]
        >>> risk = cp.EmpiricalRisk(torch.nn.Linear(1, 1).double(), cp.losses.mse, (x, x.sin()))
        >>> part = cp.draw_examples(risk, 100)
        >>> len(part), part.total_weight, abs(part.value() - risk.value()) < 1e-12
        (100, 1000.0, True)
    """
    expect_risk(risk)
    if risk.sample.design is not None:
        raise ArgumentError("the risk is on drawn examples itself; expected the risk on all of them")
    try:
        m = operator.index(count)
    except TypeError:
        raise ArgumentTypeError(f"count is {count!r}; expected a number of examples") from None
    if m < FEWEST:
        raise ArgumentError(f"count is {m}; expected at least {FEWEST} examples: one tells nothing of the others")
    if m >= len(risk):
        return risk
    losses = risk.losses()  # the weights come with them
    found = draw(risk.weights, m, seed)
    offset = risk.value() - float(found.weight @ losses[found.rows] / found.weight.sum())
    sample = risk.sample.standing(found, offset)
    return EmpiricalRisk.of(
        risk.probed, sample, risk.budget, risk.given_microbatch_size, risk.microbatch_size, risk.ranks
    )
