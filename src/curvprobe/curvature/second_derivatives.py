"""Whether autograd's second derivatives of a model and loss exist and are right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from curvprobe.curvature.double_backward import double_backward_errors
from curvprobe.curvature.linearisation import Kind, linearise, output_hessian_product, output_slopes
from curvprobe.errors import CannotProbeError, checking
from curvprobe.numerics.linalg import Total, all_finite, norm
from curvprobe.risk.budget import SMALL_EXAMPLE
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Microbatch

Parts = list[Tensor]
"""A vector by parameter tensors, or by output tensors."""

STEPS = {torch.float64: (1e-4, 3e-6, 1e-7, 3e-9, 1e-10), torch.float32: (1e-2, 1e-3)}
"""Of the differences, in units of every tensor's own size. The first suffices for a smooth model; at the last ones
hardly any of a million units crosses its kink, and rounding is about to take over."""

CHECK_TOLERANCE = {torch.float64: 1e-2, torch.float32: 1e-1}
"""Disagreement, relative to a tensor's own product, above which a second derivative is not taken for right."""

SUM_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
"""The same where a fault is diluted: in the sum of many examples' products, and in the outputs (for the Gauss-Newton
matrix), where all parameters' parts are one sum."""

SETTLED = 5e-3
"""Quotients of two steps, and of the two sides, that differ by less than this (and by less than a tenth of what they
are off the product) show what the derivative is. Chance agreement over many kinks is not that close."""

ROUNDING = 10
"""Units of rounding, of a first derivative of the largest tensor's size, that a difference may be off."""

SHRUNK = (0.9, 0.7, 0.5, 0.3)
"""Parts of the parameters at which a loss that is saturated at all of them is not: there one sees the size of the terms
that cancel in its first derivative, whose rounding stays."""

TRIED, HANDFUL = 32, 4
"""Examples tried at most; and one by one, where their sum does not settle."""

SHARE_TRIED = 16
"""One in so many is tried of examples that take long."""


@checking("second derivatives")
def check_second_derivatives(risk: EmpiricalRisk, kind: Kind) -> None:
    """Refuse a model or loss whose second derivatives autograd gets wrong without saying so; once per model and loss.

    A custom function whose backward is opaque to autograd counts as constant when differentiated twice, and a few of
    PyTorch's own operations are wrong there. The product with one random vector is compared with central differences
    of first derivatives (for the Gauss-Newton matrix: of the loss in the outputs), in float64, every parameter tensor
    by its own size and rounding, at steps that go down until they agree.

    What it can see: a fault of one percent of some tensor's product, on one of the examples that are tried (the first,
    the last, and up to 30 others; of large examples one in 16). As many as take the memory of a microbatch go through
    the model as one sum, which must agree to a millionth; where it does not, one by one. A fault is refused only if the
    quotients of two steps and of both sides agree with one another and not with the product. Where they do not settle,
    and could be off by a percent of the whole product, nothing is shown, and ``risk.probed.doubts`` says so.

    What it cannot see: operations that no tried example uses; a fault in an example whose product is a ten-thousandth
    of the others'; a fault that is a millionth of the outputs' change (Gauss-Newton); one that vanishes along the
    vector; a wrong first derivative, which differences inherit (unless it is no gradient of anything); anything on an
    example that sits on a kink, where autograd's convention is taken. A sample is tried again once it has outgrown the
    next power of two.
    """
    risk.check_dependence()
    passed, level = risk.probed.passed, len(risk).bit_length()
    if any(f"{kind} of 2^{size}" in passed for size in range(level, 64)):
        return
    try:
        double = risk.in_double()
        half = max(2, risk.microbatch_size * risk.dtype.itemsize // double.dtype.itemsize)  # as much memory
        size = min(double.microbatch_size, half)
        verdict = _examine(double, kind, double.dtype, size)
        if (verdict.refused or verdict.undecided) and _narrows(double):
            verdict = _examine(double, kind, torch.float32, size)
    except (torch.OutOfMemoryError, MemoryError):
        return  # the check is a courtesy; the job itself may still fit
    except RuntimeError:  # a constant of the model or loss is in the model's own precision: so is the check then
        verdict = _examine(risk, kind, risk.dtype, risk.microbatch_size)
    if verdict.refused is not None:
        row, finding = verdict.refused
        raise CannotProbeError(
            f"a {kind} product is {100 * finding.error:.2g} % off central differences in {_listed(finding.wrong)}, on "
            f"example {row}: an operation of the model or loss has a missing or wrong second derivative. Known ones "
            "are torch's weight_norm (fold it by remove_parametrizations), detach() and no_grad() on the way to a "
            "parameter, and custom autograd functions whose backward is once_differentiable or calls compiled code; "
            "replace it, or leave out the parameters behind it with params="
        )
    if verdict.undecided:
        _doubt(risk, kind, verdict)
    passed[f"{kind} of 2^{level}"] = f"{verdict.looked} of {len(risk)} examples"


@dataclass(frozen=True)
class _Finding:
    """What one microbatch has shown: tensors whose product is wrong, the worst error, tensors that do not settle."""

    wrong: list[str] = field(default_factory=list)
    error: float = 0.0
    undecided: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Verdict:
    """The example that is shown wrong, if any, and those that could not be decided, out of so many tried alone, of all
    that were looked at."""

    refused: tuple[int, _Finding] | None
    undecided: dict[int, _Finding]
    tried: int
    looked: int


def _doubt(risk: EmpiricalRisk, kind: Kind, verdict: _Verdict) -> None:
    """Say in the model's doubts what could not be decided, beside what is said of another kind of product."""
    count = len(verdict.undecided)
    tensors = dict.fromkeys(name for found in verdict.undecided.values() for name in found.undecided)
    said = risk.probed.doubts.get("second derivatives", "")
    others = [part for part in said.split("; ") if part and f"a {kind} product" not in part]
    sentence = (
        f"whether a {kind} product is right could not be decided for {count} of {verdict.tried} examples tried "
        f"({_listed(list(verdict.undecided))}): differences of first derivatives do not settle there in "
        f"{_listed(list(tensors))}, as on a kink or in rounding noise, and autograd's answer is taken"
    )
    risk.probed.doubts["second derivatives"] = "; ".join([*others, sentence])


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:4])) + (f", ... ({len(names)} in all)" if len(names) > 4 else "")


class _Narrowing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks for an operation that makes float32, or less, out of float64."""

    found: bool = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation itself; what went in and came out is looked at."""
        result = func(*args, **(kwargs or {}))
        given, made = (
            {leaf.dtype for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)} for tree in (args, result)
        )
        self.found |= torch.float64 in given and any(d.is_floating_point and d.itemsize < 8 for d in made)
        return result


def _narrows(double: EmpiricalRisk) -> bool:
    """Whether a model in float64 rounds to float32 on its way, by a ``.float()`` of its own: then so do differences."""
    with double.undisturbed():
        first = double.sample.read(0, 1)  # before one looks: the digests of a dataset's items round too
        with _Narrowing() as narrowing:  # type: ignore[no-untyped-call]
            double.probed.batch_losses(double.probed.leaves(), first)
    return bool(narrowing.found)


def _examine(risk: EmpiricalRisk, kind: Kind, precision: torch.dtype, size: int) -> _Verdict:
    """Judge examples spread over the sample: as sums of ``size`` of them, and one by one if need be."""
    sample = risk.sample
    slack, strict = CHECK_TOLERANCE[precision], SUM_TOLERANCE[precision]
    rows = _spread(risk)
    undecided: dict[int, _Finding] = {}
    with risk.undisturbed(), double_backward_errors():
        along = _direction(risk.probed)
        wrong: list[int] = []
        unsettled: list[int] = []
        for group in (rows[start : start + size] for start in range(0, len(rows), size)):
            found = _Finding(wrong=["one by one"])
            if len(group) > 1:
                together = sample.select(group).read(0, len(group))
                found = _judge(risk.probed, kind, together, along, precision, strict, strict)
            (wrong if found.wrong else unsettled if found.undecided else []).extend(group)
        for row in wrong + unsettled[:HANDFUL]:
            alone = sample.select([row]).read(0, 1)
            tolerance = slack if kind == "hessian" else strict
            found = _judge(risk.probed, kind, alone, along, precision, tolerance, slack)
            if found.wrong:
                return _Verdict((row, found), undecided, len(rows), len(rows))
            if found.undecided:
                undecided[row] = found
    return _Verdict(None, undecided, len(wrong + unsettled[:HANDFUL]), len(rows))


def _spread(risk: EmpiricalRisk) -> list[int]:
    """Positions of the first, the last, and random examples: all of few, and a share of those that take long."""
    n = len(risk)
    count = min(n, TRIED)
    if risk.footprint.activation > SMALL_EXAMPLE:
        count = min(count, max(2, n // SHARE_TRIED))
    others = torch.randint(n, (2 * count,), generator=torch.Generator().manual_seed(0), device="cpu").tolist()
    return list(dict.fromkeys([0, n - 1, *(others if count < n else range(n))]))[:count]


def _direction(model: ProbedModel) -> tuple[Tensor, list[float]]:
    """A random vector that moves every tensor in proportion to its size, and these sizes.

    Only what a displacement moves of it: the model may hold some numbers where they are.
    """
    vector, probed = model.draw(torch.Generator().manual_seed(0)), model.state.probed
    sizes = [max(1e-3, size) for size in model.sizes()]
    for part, size in zip(model.split(vector).values(), sizes, strict=True):
        part *= size
    moved = model.displaced(vector)
    return model.flatten([moved[name].sub_(p) for name, p in probed.items()]), sizes


def _judge(
    model: ProbedModel,
    kind: Kind,
    microbatch: Microbatch,
    along: tuple[Tensor, list[float]],
    precision: torch.dtype,
    tolerance: float,
    slack: float,
) -> _Finding:
    """Hold a product against difference quotients, tensor by tensor, at steps that go down until all agree.

    In steps, and with rounding, of this ``precision``; to ``tolerance`` by each tensor's own size. What does not
    settle may be off by ``slack`` of the whole product.
    """
    found = _product(model, kind, microbatch, along[0])
    sum_over = model.vectors.sum_over if kind == "hessian" else None
    if found is None or not all(all_finite(part, sum_over) for part in found[0]):
        return _Finding()  # these examples pass the parameters by; or the job itself will say what is not finite
    count = len(found[0])
    names = model.names if kind == "hessian" else [f"output tensor {i}" for i in range(count)]
    sizes = along[1] if kind == "hessian" else [1.0] * count
    product, slope = (max(s * _length(t, sum_over) for s, t in zip(sizes, parts, strict=True)) for parts in found)
    eps, rounded, unseen = torch.finfo(precision).eps, [slope / s for s in sizes], [slack * product / s for s in sizes]
    pending = {
        i: _Pending(names[i], *parts, eps, rounded[i], unseen[i], tolerance, sum_over)
        for i, parts in enumerate(zip(*found, strict=True))
    }
    for step in STEPS[precision]:
        up, down = (_first_order(model, kind, microbatch, sign * step * along[0]) for sign in (1, -1))
        if not len(up) == len(down) == count:
            continue  # another set of outputs depends on the parameters there
        pending = {i: tensor for i, tensor in pending.items() if not tensor.agrees(up[i], down[i], step)}
        if not pending:
            break
    left = list(pending.values())
    if left:
        slope = max(slope, _unsaturated(model, kind, microbatch, along[1]))
        left = [tensor for i, tensor in pending.items() if not tensor.rounds_to_agreement(slope / sizes[i])]
    return _finding(left)


def _unsaturated(model: ProbedModel, kind: Kind, microbatch: Microbatch, sizes: list[float]) -> float:
    """The largest tensor of the first derivative at smaller parameters, in the units of their sizes."""
    center = model.flatten(list(model.state.probed.values()))
    slopes = [0.0]
    for part in SHRUNK:
        found = _first_order(model, kind, microbatch, (part - 1) * center)
        scales, over = (sizes, model.vectors.sum_over) if kind == "hessian" else ([1.0] * len(found), None)
        slopes += [scale * _length(tensor, over) for scale, tensor in zip(scales, found, strict=True)]
    return max(slope for slope in slopes if math.isfinite(slope))


def _finding(left: list[_Pending]) -> _Finding:
    """What is to be said of the tensors that have agreed at no step."""
    wrong = sorted((tensor for tensor in left if tensor.error), key=lambda tensor: -tensor.error)
    undecided = [tensor for tensor in left if not tensor.error and not tensor.negligible]
    if undecided:  # one kink makes all quotients of an example doubtful, even those that happen to settle
        return _Finding(undecided=[tensor.name for tensor in undecided + wrong])
    return _Finding([tensor.name for tensor in wrong], wrong[0].error if wrong else 0.0)


@dataclass(frozen=True)
class _Quotient:
    """How a difference quotient compared: its step, how far it is off the product, the size of the larger of both, and
    by how much it differs from the step before and between its sides."""

    step: float
    off: float
    size: float
    unsteady: float


@dataclass
class _Pending:
    """A tensor of the product, of which no difference quotient has been found to agree with it so far.

    Attributes:
        name: of the tensor.
        product, slope: the tensor's parts of the product and of the first derivative.
        eps: unit of rounding.
        rounded: size of the first derivative that rounding comes from: the largest tensor's, in this one's units.
        unseen: disagreement that is little of the whole product, in this tensor's units.
        tolerance: relative disagreement that is taken for right.
        sum_over: where this process holds a part of the tensor only.
        tried: one for each step.
        before: quotient of the step before.
    """

    name: str
    product: Tensor
    slope: Tensor
    eps: float
    rounded: float
    unseen: float
    tolerance: float
    sum_over: Total | None = None
    tried: list[_Quotient] = field(default_factory=list)
    before: Tensor | None = None

    def agrees(self, above: Tensor, below: Tensor, step: float) -> bool:
        """Whether the quotient at this step, or that of either side, agrees with the product."""
        quotient = (above - below).div_(2 * step)
        sides = [(above - self.slope).div_(step), (self.slope - below).div_(step)]
        unsteady = [math.inf] if self.before is None else [self._apart(quotient, self.before), self._apart(*sides)]
        size = max(_length(self.product, self.sum_over), _length(quotient, self.sum_over))
        self.tried.append(_Quotient(step, self._apart(quotient, self.product), size, max(unsteady)))
        self.before = quotient
        beside = (self._apart(side, self.product) for side in sides)
        off = min(self.tried[-1].off, *beside)  # at a kink, autograd takes one
        return off <= self.tolerance * size or self.rounds_to_agreement(self.rounded)

    def rounds_to_agreement(self, rounded: float) -> bool:
        """Whether rounding of a first derivative of that size accounts for what it is off, at some step at least."""
        self.rounded = rounded
        return not self.error and any(quotient.off <= self._rounding(quotient) for quotient in self.tried)

    @property
    def error(self) -> float:
        """Relative error of the product, where quotients of two steps agree with each other and not with it; or 0."""
        return max((quotient.off / quotient.size for quotient in self.tried if self._settled(quotient)), default=0.0)

    @property
    def negligible(self) -> bool:
        """Whether it is off by little of the whole product, however much that is of its own."""
        return min((quotient.off for quotient in self.tried), default=math.inf) <= self.unseen

    def _settled(self, quotient: _Quotient) -> bool:
        unsteady = max(quotient.unsteady, self._rounding(quotient))
        return quotient.size > 0 and unsteady <= min(SETTLED * quotient.size, quotient.off / 10)

    def _rounding(self, quotient: _Quotient) -> float:
        return ROUNDING * self.eps * self.rounded / quotient.step

    def _apart(self, one: Tensor, other: Tensor) -> float:
        return _length(one - other, self.sum_over)


def _length(tensor: Tensor, sum_over: Total | None) -> float:
    return norm(tensor.flatten(), sum_over)


def _product(model: ProbedModel, kind: Kind, microbatch: Microbatch, direction: Tensor) -> tuple[Parts, Parts] | None:
    """The product under test and the first derivative, by tensor; None where there is nothing to test.

    With the Hessian, by parameter; or with that of the loss in the outputs, by output.
    """
    if kind == "hessian":
        linear = linearise(model, kind, microbatch)
        product = next(linear.products(direction[:, None]))
        slopes = linear.first_order[2] if linear.first_order is not None else []
        return list(model.split(product).values()), [part.detach() for part in slopes]
    leaves = model.leaves()
    parts = output_slopes(model, leaves, microbatch)
    if not parts[0]:
        return None
    products = output_hessian_product(leaves, *parts)(list(model.split(direction).values()), False)
    return [part.detach() for part in products], [part.detach() for part in parts[2]]


def _first_order(model: ProbedModel, kind: Kind, microbatch: Microbatch, displacement: Tensor) -> Parts:
    """The first derivative whose differences the product is held against, by tensor."""
    moved = model.leaves(displacement)
    if kind == "ggn":
        return [part.detach() for part in output_slopes(model, moved, microbatch)[2]]
    return model.first_order(model.batch_losses(moved, microbatch)[0].sum(), moved)
