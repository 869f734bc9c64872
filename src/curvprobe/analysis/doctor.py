"""The doctor: a model, its loss and its data examined before an analysis, with the memory and the time it will take."""

from __future__ import annotations

from typing import Any

from curvprobe.analysis.examination import Examination, Finding, examine_candidates, examine_model, finding_of
from curvprobe.analysis.plan import plan
from curvprobe.errors import ArgumentError, CurvprobeError
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.runtime import progress
from curvprobe.runtime.plain import in_bytes
from curvprobe.subspace.eigenspace import plan_memory

PATIENCE = 20.0
"""Seconds that all losses may take; else some are looked at."""


def examine(risk: EmpiricalRisk, candidates: Any = None, *, dim: int = 10, allow_overlap: bool = False) -> Examination:
    """Check a model, its loss and its data before an analysis: each check passes, fails, or leaves a doubt.

    Takes seconds, for a large model up to about a minute, as only some examples are looked at; what making the risk
    has checked already is told with the rest. Nothing is refused: what an analysis would refuse is a finding.

    Args:
        risk: on the sample.
        candidates: examples that the model was not trained on, in any form that :class:`EmpiricalRisk` takes, or a
            risk on them; None leaves their checks out.
        dim: dimension D for which memory and time are estimated.
        allow_overlap: whether candidates that equal examples of the sample are others, as for :func:`analyze`.

    Returns:
        The findings, to be printed.

    Example:
        >>> import torch, curvprobe as cp
        >>> x = torch.linspace(-2, 2, 20, dtype=torch.float64)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
        >>> found = cp.examine(cp.EmpiricalRisk(model, cp.losses.mse, (x, x.sin())), dim=2)
        >>> found.verdict, [finding.check for finding in found.findings][-3:]
        ('pass', ['precision', 'memory', 'time'])
    """
    expect_risk(risk)
    risk.probed.expect_whole("the doctor")
    risk = risk.by_itself()  # how much is looked at is a matter of time
    with progress.bar("examining (checks)", 3) as advance:
        findings = examine_model(risk, PATIENCE)
        advance(1)
        if candidates is not None:
            findings += _of_candidates(risk, candidates, allow_overlap)
        advance(1)
        findings.append(finding_of("memory", risk, lambda: _memory(risk, dim)))
        if not any(finding.verdict == "fail" for finding in findings):
            findings.append(finding_of("time", risk, lambda: _time(risk, candidates, dim)))
        advance(1)
    return Examination(tuple(findings))


def _of_candidates(risk: EmpiricalRisk, candidates: Any, allow_overlap: bool) -> list[Finding]:
    """What is found of the candidates."""
    try:
        new = candidates.by_itself() if isinstance(candidates, EmpiricalRisk) else risk.on(candidates)
    except CurvprobeError as error:
        return [Finding("candidates", "fail", str(error))]
    return examine_candidates(risk, new, allow_overlap=allow_overlap)


def _memory(risk: EmpiricalRisk, dim: int) -> Finding:
    if not 1 <= dim <= risk.num_params:
        raise ArgumentError(f"dim is {dim}; expected 1 to the number of parameters, {risk.num_params}")
    solving, basis, device = plan_memory(risk, dim)
    vector = in_bytes(risk.footprint.vector)
    vectors = "" if basis is None else f"; {basis} vectors of {vector} on {device} for D = {dim}"
    said = f"{in_bytes(risk.memory_budget)} to work in, {in_bytes(risk.footprint.example)} an example"
    said += f", {min(len(risk), solving.microbatch_size)} examples at a time{vectors}"
    return Finding("memory", "pass", said)


def _time(risk: EmpiricalRisk, candidates: Any, dim: int) -> Finding:
    total = plan(risk, candidates, dim=min(dim, risk.num_params), allow_overlap=True).total
    said = f"an analysis takes about {total.time} on this machine, with {total.counted('products')} Hessian products"
    return Finding("time", "pass", f"{said}; curvprobe plan tells it stage by stage")
