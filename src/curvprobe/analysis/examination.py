"""What was checked of a model, its loss and its data: a finding each, with what to do about it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from curvprobe.curvature.matrix import hessian
from curvprobe.curvature.second_derivatives import check_second_derivatives
from curvprobe.errors import CurvprobeError
from curvprobe.numerics.linalg import lowered
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.risk.first_pass import described
from curvprobe.runtime.digest import overlap

Verdict = Literal["pass", "doubt", "fail"]

AT_CONSTRUCTION = (
    "data",
    "modes",
    "first pass",
    "entries",
    "parameters reached",
    "memory",
    "determinism",
    "independence",
)
"""The checks of :class:`curvprobe.EmpiricalRisk`, in their order: what refuses is one of them."""

LATER = ("second derivatives", "attention", "precision", "candidates", "overlap", "time")
"""The checks that take a risk."""

FEW = 4
"""Examples on which precisions and attention kernels are compared, at most."""

REACHED = 16
"""Examples whose gradient tells which parameters reach the loss, at most."""

COARSE = 1e-4
"""Rounding of a product, relative to it, from which it is in the way of residuals of 1e-3."""

KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
"""Of attention: what torch chooses from where it is left alone."""

KERNELS_APART = 1e-3
"""Difference between attention kernels, relative to a loss, that is more than their rounding."""

ON_A_KINK = "on a kink (ReLU) this is as it should be; in rounding noise, analyse the model in float64"

NOT_CHECKED = (
    "examples other than those named; the losses of all are compared again in the analysis",
    "noise that strikes fewer than one evaluation in twenty",
    "a dependence on the batch below 1e-5 of a loss, in float64 1e-8",
    "second derivatives of an operation that no tried example uses, and a first derivative that is itself wrong",
    "whether the weights are a minimiser, and whether the quadratic model holds: the analysis measures both",
)
"""What no check here sees."""


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Attributes:
        check: its name.
        verdict: ``pass``; ``doubt``, where it could not be decided or should be known; ``fail``, where it is refused.
        said: what was seen.
        remedy: what to do, where there is something.
    """

    check: str
    verdict: Verdict
    said: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.verdict:<6} {self.check:<19} {self.said}"
        return text if not self.remedy else f"{text}\n{'':<26} -> {self.remedy}"


@dataclass(frozen=True)
class Examination:
    """What was checked of a model, its loss and its data; print it for a line each.

    Attributes:
        findings: of every check that was made, in order.
        not_checked: what no check sees, or was not reached.
    """

    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...] = NOT_CHECKED

    @classmethod
    def refused(cls, error: CurvprobeError) -> Examination:
        """Of what was refused before there was a risk: the checks before that one passed."""
        reached = AT_CONSTRUCTION.index(error.check) if error.check in AT_CONSTRUCTION else 0
        passed = (Finding(name, "pass", "nothing found") for name in AT_CONSTRUCTION[:reached])
        left = (*AT_CONSTRUCTION[reached + 1 :], *LATER)
        return cls(
            (*passed, Finding(error.check or "arguments", "fail", str(error))),
            (f"what comes after: {', '.join(left)}",),
        )

    @classmethod
    def worst(cls, seen: list[list[Finding]]) -> Examination:
        """Of each check the worst finding of all processes that made it, the first of them where they agree."""
        order: list[Verdict] = ["pass", "doubt", "fail"]
        return cls(tuple(max(of_one, key=lambda one: order.index(one.verdict)) for of_one in zip(*seen, strict=True)))

    @property
    def verdict(self) -> Verdict:
        """The worst of its findings."""
        found = {finding.verdict for finding in self.findings}
        return "fail" if "fail" in found else "doubt" if "doubt" in found else "pass"

    def named(self, verdict: Verdict) -> list[Finding]:
        """The findings of that verdict."""
        return [finding for finding in self.findings if finding.verdict == verdict]

    def doubts(self) -> list[str]:
        """A sentence on each doubt, for a result's notes."""
        return [f"In doubt, {f.check}: {f.said} ({f.remedy})." for f in self.named("doubt")]

    def summary(self) -> str:
        """One line: how many passed, and the names of the others."""
        parts = [f"{len(self.named('pass'))} passed"]
        for verdict, words in (("doubt", "in doubt"), ("fail", "failed")):
            names = [finding.check for finding in self.named(verdict)]  # type: ignore[arg-type]
            parts += [f"{len(names)} {words} ({', '.join(names)})"] if names else []
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"findings": [vars(finding) for finding in self.findings], "not_checked": list(self.not_checked)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Examination:
        """What :meth:`to_json` has written."""
        return cls(tuple(Finding(**finding) for finding in record["findings"]), tuple(record["not_checked"]))

    def __str__(self) -> str:
        unseen = [f"  - {text}" for text in self.not_checked]
        return "\n".join([*map(str, self.findings), "", f"Checks: {self.summary()}.", "Not checked:", *unseen])


def examine_model(risk: EmpiricalRisk, patience: float = math.inf) -> list[Finding]:
    """What does not depend on the machine and on what is asked for: the findings that an analysis keeps.

    All losses are computed, or some if all would take longer than ``patience``, in seconds.
    """
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("data", lambda: _data(risk)),
        ("modes", lambda: _modes(risk)),
        ("first pass", lambda: _first_pass(risk, patience)),
        ("entries", lambda: Finding("entries", "pass", "the model or the loss takes every entry of a batch")),
        ("parameters reached", lambda: _reached(risk)),
        ("determinism", lambda: Finding("determinism", "pass", risk.probed.passed["determinism"])),
        ("independence", lambda: Finding("independence", "pass", risk.probed.passed["independence"])),
        ("second derivatives", lambda: _second_derivatives(risk)),
        ("attention", lambda: _attention(risk)),
        ("precision", lambda: _precision(risk)),
    ]
    return [finding_of(name, risk, check) for name, check in checks]


def finding_of(name: str, risk: EmpiricalRisk, check: Callable[[], Finding]) -> Finding:
    """The finding, or what refused; memory that does not suffice leaves the check open."""
    try:
        with risk.undisturbed():  # reading a dataset may run the user's code
            return check()
    except CurvprobeError as error:
        if error.check == "second derivatives" != name:  # said already
            return Finding(name, "doubt", "not reached, as it takes second derivatives", "see there")
        return Finding(name, "fail", str(error))
    except (torch.OutOfMemoryError, MemoryError):
        return Finding(name, "doubt", "the memory does not suffice to check it", "check a smaller model of its kind")
    except Exception as error:  # whatever the user's code raises on examples that were not met before
        said = f"the model, the loss or the data stopped with {type(error).__name__}: {error}"
        return Finding(name, "fail", said, "evaluate every example by hand to find the one")


# ---- one check each --------------------------------------------------------------------------------------------------


def _data(risk: EmpiricalRisk) -> Finding:
    sample = risk.sample
    return Finding("data", "pass", f"{len(sample)} examples; one is a {described(sample.read(0, 1).batch)}")


def _modes(risk: EmpiricalRisk) -> Finding:
    training = [type(module).__name__ for module, mode in risk.probed.modes if mode]
    count = len(risk.probed.modes)
    if not training:
        return Finding("modes", "pass", f"all {count} modules are in eval mode")
    said = f"{len(training)} of {count} modules are in train mode, none known to be random or to mix examples"
    return Finding("modes", "pass", said)


def _first_pass(risk: EmpiricalRisk, patience: float) -> Finding:
    looked = risk
    if patience < math.inf:
        few, start = _some(risk, REACHED), time.perf_counter()
        few.losses()
        looked = few if (time.perf_counter() - start) * len(risk) / len(few) > patience else risk
    losses = looked.losses()
    which = "all losses are" if looked is risk else f"the losses of {len(looked)} of {len(risk)} examples are"
    said = f"{which} finite: {float(losses.min()):.3g} to {float(losses.max()):.3g}, mean {looked.value():.5g}"
    return Finding("first pass", "pass", said)


def _some(risk: EmpiricalRisk, most: int) -> EmpiricalRisk:
    """The risk on a few examples from all over the sample, no more than a microbatch holds."""
    count = min(len(risk), most, risk.microbatch_size)
    return risk[[i * (len(risk) - 1) // max(1, count - 1) for i in range(count)]]


def _reached(risk: EmpiricalRisk) -> Finding:
    some, model = _some(risk, REACHED), risk.probed
    with risk.undisturbed():
        leaves = model.leaves()
        loss_sum, _ = model.batch_losses(leaves, some.sample.read(0, len(some)))
        gradients: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if loss_sum.requires_grad:
            gradients = torch.autograd.grad(loss_sum.sum(), list(leaves.values()), allow_unused=True)
    missed = [name for name, gradient in zip(leaves, gradients, strict=True) if gradient is None]
    kept = len(model.state.kept)
    said = f"{len(leaves)} tensors of {risk.num_params} parameters are probed, {kept} are not; "
    if not missed:
        return Finding("parameters reached", "pass", said + "all probed ones reach the loss, through the model only")
    shown = ", ".join(missed[:4]) + (", ..." if len(missed) > 4 else "")
    return Finding(
        "parameters reached",
        "doubt",
        f"{said}{len(missed)} reach no loss of the {len(some)} examples tried: {shown}",
        "if no example uses them they only add zero eigenvalues: leave them out with params=",
    )


def _second_derivatives(risk: EmpiricalRisk) -> Finding:
    check_second_derivatives(risk, "hessian")
    doubt = risk.probed.doubts.get("second derivatives")
    if doubt is not None:
        return Finding("second derivatives", "doubt", doubt, ON_A_KINK)
    looked = [said for name, said in risk.probed.passed.items() if name.startswith("hessian of")]
    if not looked:
        raise MemoryError
    return Finding("second derivatives", "pass", f"agree with differences of first derivatives on {looked[-1]}")


class _FusedAttention(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks for torch's fused attention."""

    found: bool = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation itself."""
        self.found |= "scaled_dot_product" in str(func)
        return func(*args, **(kwargs or {}))


def _attention(risk: EmpiricalRisk) -> Finding:
    few, model = _some(risk, FEW), risk.probed

    def losses() -> Tensor:
        return model.batch_losses(model.state.probed, few.sample.read(0, len(few)))[0].double()

    with risk.undisturbed():
        with sdpa_kernel(KERNELS), _FusedAttention() as fused:  # type: ignore[no-untyped-call]
            usual = losses()
        if not fused.found:
            return Finding("attention", "pass", "no fused attention is used")
        ours = losses()
    apart = float(((usual - ours).abs() / usual.abs().clamp_min(torch.finfo(model.dtype).eps)).max())
    said = f"every pass takes the math kernel; its losses are within {apart:.1g} of the usual kernel's"
    if apart <= KERNELS_APART:
        return Finding("attention", "pass", said)
    remedy = "look for a mask that leaves a row of attention empty: kernels differ there"
    return Finding("attention", "doubt", said, remedy)


def _precision(risk: EmpiricalRisk) -> Finding:
    name = str(risk.dtype).removeprefix("torch.")
    raised = f" (raised from {', '.join(risk.upcast_from)})" if risk.upcast_from else ""
    if risk.dtype == torch.float64:
        return Finding("precision", "pass", name + raised)
    few, matmul = _some(risk, FEW), lowered(risk.device)
    vector, norm = risk.probed.draw(torch.Generator().manual_seed(0)), risk.probed.vectors.norm
    try:
        exact = (hessian(few.in_double()) @ vector.double()).double()
    except CurvprobeError:
        raise
    except (RuntimeError, TypeError):  # a constant of the model or loss is in the model's own precision
        said = f"{name}{raised}; the model cannot be evaluated in float64 to compare"
        return Finding("precision", "doubt", said, "a model that follows .double() can be compared")
    error = norm(hessian(few) @ vector - exact) / max(norm(exact), 1e-300)
    said = f"{name}{raised}; a Hessian product is within {error:.1g} of the one in float64"
    said += f"; float32 matrix products are made in {matmul}" if matmul else ""
    if error <= COARSE:
        return Finding("precision", "pass", said)
    remedy = "torch.set_float32_matmul_precision('highest')" if matmul else "analyse model.double()"
    return Finding("precision", "doubt", said, f"residuals below that cannot be had: {remedy}, or take a larger tol")


def examine_candidates(risk: EmpiricalRisk, new: EmpiricalRisk, *, allow_overlap: bool = False) -> list[Finding]:
    """The findings on the candidates; whether those that equal examples of the sample are said to be others."""
    return [
        finding_of("candidates", new, lambda: _candidates(risk, new)),
        finding_of("overlap", new, lambda: _overlap(risk, new, allow_overlap)),
    ]


def _candidates(risk: EmpiricalRisk, new: EmpiricalRisk) -> Finding:
    risk.check_same_model(new)
    losses, known = new.losses(), risk.probed.doubts.get("second derivatives")
    check_second_derivatives(new, "hessian")
    doubt = new.probed.doubts.get("second derivatives", known)
    said = f"{len(new)}, all their losses are finite, mean {float(losses.mean()):.5g}"
    if doubt != known:
        return Finding("candidates", "doubt", f"{said}; {doubt}", ON_A_KINK)
    return Finding("candidates", "pass", said)


def _overlap(risk: EmpiricalRisk, new: EmpiricalRisk, allowed: bool) -> Finding:
    shared = overlap(risk.digests(), new.digests())
    if not shared:
        return Finding("overlap", "pass", "no candidate is in the sample, by their content")
    said = f"{len(shared)} of {len(new)} candidates are in the sample too, by their content; the first is {shared[0]}"
    remedy = "leave them out, unless equal ones are different examples: then allow_overlap=True (--allow-overlap)"
    if allowed:
        return Finding("overlap", "doubt", said, "taken for different examples, as was asked for")
    return Finding("overlap", "fail", said, remedy)
