"""The empirical risk of a trained model: per-example losses and weights, streamed, leaving the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from curvprobe.errors import ArgumentError, ArgumentTypeError, CannotProbeError, checking
from curvprobe.losses import Loss
from curvprobe.numerics.rows import resolve_rows
from curvprobe.numerics.space import Space
from curvprobe.risk.budget import Budget, Footprint, check_budget
from curvprobe.risk.calling import Forward
from curvprobe.risk.contract import check_loss
from curvprobe.risk.examples import Batch, Examples
from curvprobe.risk.first_pass import explained, first_look
from curvprobe.risk.parameters import Selection
from curvprobe.risk.passes import behaviour_beside, depends, first_order_pass, forward_pass
from curvprobe.risk.probed import ProbedModel
from curvprobe.risk.sample import Microbatch, Sample
from curvprobe.risk.trial import check_same_losses, check_sample, measure
from curvprobe.runtime.digest import digest
from curvprobe.runtime.ranks import ALONE, Ranks
from curvprobe.runtime.threads import threads_for
from curvprobe.version import __version__


class EmpiricalRisk:
    r"""Empirical risk of a trained model on a sample.

    .. math:: L_k(w) = \sum_{i \le k} w_i \, l_i(w) / W_k, \qquad W_k = \sum_{i \le k} w_i

    The weights of the model are copied when the risk is made: :math:`w^*` stays what it was when training goes on.
    Every pass runs in the train/eval mode the model had then, under the math attention kernel (fused attention has
    no second derivative) and without autocast, and leaves the model's weights, buffers, gradients, flags and mode
    and all random number generators as it found them. Parameters below float32 are raised to float32. Frozen ones
    (``requires_grad=False``) are not copied, and raised only in use: a risk refuses to go on where they change.

    Args:
        model: a deterministic module, usually in eval mode. A wrapper of torch.compile, DataParallel or
            DistributedDataParallel is taken off. Weights that ``fully_shard`` has divided stay divided; a vector of the
            parameters, a displacement or a gradient say, is then what this process holds of it.
        loss: ``loss(outputs, batch)`` giving one mean loss per example (n,), or ``(loss_sum (n,), weight (n,))``;
            see :mod:`curvprobe.losses`.
        data: a map-style dataset, a tensor, a tuple of tensors or a dict of tensors, in fixed order. A batch is
            given to the model as ``model(batch)`` (tensor), ``model(batch[0])`` (tuple), or as keyword arguments
            (mapping: the entries that ``forward`` accepts, never labels, targets or weights). A mapping of any kind is
            given as a plain dict.
        params: None (all with ``requires_grad``), a predicate on the parameter name, name patterns (``*``), or one of
            "lora", "last-block", "no-embeddings" and "head".
        microbatch_size: examples in one pass; None takes as many as half of the memory budget allows. Larger is
            faster, and a sample that fits in one microbatch is differentiated only once for all its products.
        collate_fn: turns a list of the dataset's items into a batch; None is PyTorch's default.
        memory_budget: bytes that the work may take beyond the model and the data; None is half of what is free on
            the model's device. One half is for a microbatch, the other for the basis of an eigenspace.
        forward: ``forward(model, batch)`` for a model that is called another way; what it returns goes to the loss.
        group: processes of ``torch.distributed`` that share the work, each with the whole model and data: examples are
            divided among them, and so are the vectors of an eigenspace while it is sought. All of them make the same
            calls and get the same results. None is this process by itself.

    Attributes:
        num_params: number of probed parameters N.
        param_names: their names, in the flat order.
        dtype: of the probed parameters and of all N-vectors.
        device: of the model.
        upcast_from: names of the lower-precision types that were raised to float32, usually empty.
        microbatch_size, memory_budget: as given or chosen.

    Raises:
        ValueError, TypeError: for a model, loss or data that cannot be probed, with the remedy.

    Source: Kiselev & Grabovoy (2026), arXiv:2604.14870, with weights.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, y))
        >>> len(risk), risk.num_params, risk.value(), risk[:1].gradient()
        (2, 2, 1.0, tensor([2., 0.]))
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Any,
        params: Selection = None,
        microbatch_size: int | None = None,
        collate_fn: Callable[[list[Any]], Batch] | None = None,
        memory_budget: float | None = None,
        forward: Forward | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        ranks = Ranks(group)
        with ranks.told():
            if not isinstance(model, nn.Module):
                raise ArgumentTypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
            check_loss(loss)
            check_budget(memory_budget)
            if microbatch_size is not None and (not isinstance(microbatch_size, Integral) or microbatch_size < 1):
                raise ArgumentError(
                    f"microbatch_size is {microbatch_size!r}; expected a positive number of examples or None"
                )
            with checking("data"):
                examples = Examples(data, collate_fn)
            if forward is not None and not callable(forward):
                raise ArgumentTypeError(
                    f"forward is a {type(forward).__name__}; expected a function forward(model, batch)"
                )
            with checking("modes"):
                probed = ProbedModel.of(model, loss, params, forward, ranks)
            sample = Sample(examples, probed.dtype, probed.device)
            with ranks.told() if probed.divided is not None else ranks.together():
                tried, budget = first_look(probed, sample, microbatch_size, memory_budget)
            ranks.expect_same("models or samples", len(sample), probed.num_params, tried)
            budget = replace(budget, total=ranks.least(budget.total))
            self._assemble(probed, sample, budget, microbatch_size, ranks=ranks)

    @classmethod
    def of(
        cls,
        probed: ProbedModel,
        sample: Sample,
        budget: Budget,
        given_microbatch_size: int | None = None,
        most: int | None = None,
        ranks: Ranks = ALONE,
    ) -> EmpiricalRisk:
        """A risk from parts that have passed the checks, in microbatches as given, or of at most so many examples."""
        risk = cls.__new__(cls)
        risk._assemble(probed, sample, budget, given_microbatch_size, most, ranks)
        return risk

    def _assemble(
        self,
        probed: ProbedModel,
        sample: Sample,
        budget: Budget,
        given: int | None,
        most: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.probed, self.sample, self.budget, self.ranks = probed, sample, budget, ranks
        self.given_microbatch_size = given
        chosen = budget.examples_at_once() if most is None else most
        self.microbatch_size: int = chosen if given is None else int(given)

    # ---- what it is ----------------------------------------------------------------------------------------------

    @property
    def num_params(self) -> int:
        """Number of probed parameters N."""
        return self.probed.num_params

    @property
    def space(self) -> Space:
        """The space of vectors of the parameters, of which each of several processes holds a part."""
        return self.probed.space(self.ranks)

    @property
    def param_names(self) -> list[str]:
        """Names of the probed parameters, in the flat order."""
        return self.probed.names

    @property
    def dtype(self) -> torch.dtype:
        """Of the probed parameters and of all N-vectors."""
        return self.probed.dtype

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return self.probed.device

    @property
    def upcast_from(self) -> tuple[str, ...]:
        """Names of the lower-precision types that were raised to float32."""
        return self.probed.state.upcast_from

    @property
    def memory_budget(self) -> int:
        """Bytes that the work may take beyond the model and the data."""
        return self.budget.total

    @property
    def footprint(self) -> Footprint:
        """What curvature work takes for an example."""
        return self.budget.footprint

    def __len__(self) -> int:
        return len(self.sample)

    def __repr__(self) -> str:
        return f"EmpiricalRisk({len(self)} examples, {self.num_params} parameters, {str(self.dtype).split('.')[-1]})"

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """A block in which the model may be evaluated, and after which nothing about it or the RNGs has changed."""
        with self.few_threads(), self.probed.undisturbed():
            yield

    def few_threads(self, beside: float = 0.0) -> AbstractContextManager[None]:
        """A block in which little work, with so many operations ``beside`` each product, is done by one thread."""
        return threads_for(self.footprint.of_product(min(len(self), self.microbatch_size)) + beside, self.device)

    def check_same_model(self, other: EmpiricalRisk) -> None:
        """Refuse a risk of another model, other parameters or other weights."""
        if not self.probed.is_same(other.probed):
            raise ArgumentError(
                f"the new examples' risk has {other.num_params} parameters of another model or other weights, and the "
                f"sample's has {self.num_params}; make it with risk.on(data)"
            )

    def by_itself(self) -> EmpiricalRisk:
        """The same risk for work that this process does whole, at its own pace."""
        return self._but(ranks=ALONE) if self.ranks.several else self

    @cached_property
    def own(self) -> EmpiricalRisk | None:
        """The risk on this process's share of the examples, by itself; None where it has none."""
        share = self.ranks.share(len(self))
        rows = range(share.start, share.stop)
        if self.probed.divided is not None:  # each makes as many passes as the others, to gather weights together
            sample = self.sample.padded(rows, -(-len(self) // self.ranks.world))
            return self._but(probed=self.probed.summing(), sample=sample, ranks=ALONE)
        return self._but(sample=self.sample.select(rows), ranks=ALONE) if rows else None

    # ---- others like it ------------------------------------------------------------------------------------------

    def __getitem__(self, selection: int | slice | Sequence[int] | Tensor) -> EmpiricalRisk:
        """The risk on some of the examples: one, a slice, a list of positions or a boolean mask."""
        rows = resolve_rows(selection, len(self))
        return self._but(sample=self.sample.select(rows))

    def on(self, data: Any, collate_fn: Callable[[list[Any]], Batch] | None = None) -> EmpiricalRisk:
        """The same model, loss and parameters on other examples."""
        inherited = None if isinstance(data, Tensor | tuple | Mapping) else self.sample.examples.given_collate_fn
        sample, budget = Sample(Examples(data, collate_fn or inherited), self.dtype, self.device), self.budget
        with self.ranks.together(), self.undisturbed(), explained(sample):
            check_sample(self.probed, sample, self.given_microbatch_size)
            if sample.read(0, 1).shapes == budget.footprint.shapes:
                return self._but(sample=sample)
            budget = budget.for_footprint(
                measure(self.probed, sample, self.probed.leaves())[0]
            )  # longer sequences take more memory
        return self._but(sample=sample, budget=budget, most=None)

    def on_those_of(self, other: EmpiricalRisk) -> EmpiricalRisk:
        """The same model, loss and parameters on another risk's examples."""
        return self._but(sample=other.sample.anew())

    def _but(self, **others: Any) -> EmpiricalRisk:
        """The same risk but for some of its parts, by the names of :meth:`of`."""
        parts = {"probed": self.probed, "sample": self.sample, "budget": self.budget, "ranks": self.ranks}
        sizes = {"given_microbatch_size": self.given_microbatch_size, "most": self.microbatch_size}
        return EmpiricalRisk.of(**{**parts, **sizes, **others})

    def with_room(self, room: int) -> EmpiricalRisk:
        """The same risk in microbatches that are small enough to work in ``room`` bytes, if they are left to us."""
        return self._but(most=min(self.microbatch_size, self.footprint.examples_in(room)))

    def in_double(self) -> EmpiricalRisk:
        """The same risk in float64: for checks, not for speed."""
        budget = self.budget.in_double()
        most = min(self.microbatch_size, budget.examples_at_once())
        return self._but(probed=self.probed.in_double(), sample=self.sample.in_double(), budget=budget, most=most)

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def microbatches(self) -> Iterator[Microbatch]:
        """All examples in order, as many at a time as the budget has room for."""
        return self.sample.microbatches(self.microbatch_size)

    def losses(self, displacement: Tensor | None = None, *, finite: bool = True) -> Tensor:
        """Mean loss of every example at ``w* + displacement``; float64 (n,), on the CPU.

        Args:
            displacement: flat (N,), or None for the solution itself (evaluated once and remembered).
            finite: raise on a loss that is not finite; False lets it through.
        """
        known = self.sample.known
        if displacement is None and known.losses is not None:
            return known.losses.clone()
        return self._pass(displacement, finite=finite)[0]

    def _pass(self, displacement: Tensor | None, *, finite: bool = True) -> tuple[Tensor, Tensor]:
        """Losses and weights of all examples, float64 (n,), without derivatives."""
        losses, weights = forward_pass(self, displacement, finite=finite)
        remembered = displacement is None and bool(losses.isfinite().all())  # else it is to be said again
        self.sample.known.keep(losses=losses.clone() if remembered else None, weights=weights)
        return losses, weights

    @property
    def weights(self) -> Tensor:
        """Number of loss terms in every example; float64 (n,)."""
        known = self.sample.known.weights
        return (self._pass(None)[1] if known is None else known).clone()

    @property
    def total_weight(self) -> float:
        """Sum of the weights, W_k."""
        return float(self.weights.sum())

    @property
    def shares(self) -> Tensor:
        """Part of every example in the risk, float64 (n,); they sum to 1."""
        return self.weights / self.total_weight

    def value(self, displacement: Tensor | None = None) -> float:
        """The risk at ``w* + displacement``, accumulated in float64."""
        losses = self.losses(displacement)
        return float((self.weights * losses).sum() / self.weights.sum()) + self.sample.offset

    def gradient(self, displacement: Tensor | None = None) -> Tensor:
        """Gradient of the risk at ``w* + displacement``; flat (N,) in the model's dtype, accumulated in float64."""
        known = self.sample.known
        if displacement is None and known.gradient is not None:
            return known.gradient.clone()
        self.check_dependence()
        losses, weights, gradient = first_order_pass(self, displacement)
        if displacement is None:
            self._check_same(losses)
            known.keep(losses=losses, weights=weights, gradient=gradient.clone())
        return gradient

    def remember_pass(self, loss_sum: Tensor, weight: Tensor, gradients: Sequence[Tensor]) -> None:
        """Keep what one pass over the whole sample at the solution has shown, so that it is not computed again."""
        weights = weight.detach().double().cpu()
        losses = loss_sum.detach().double().cpu() / weights
        gradient = (self.probed.flatten(gradients).double() / weights.sum()).to(self.dtype)
        if bool((weights > 0).all() and losses.isfinite().all() and gradient.isfinite().all()):
            self._check_same(losses)
            self.sample.known.keep(losses=losses, weights=weights, gradient=gradient)

    def _check_same(self, losses: Tensor) -> None:
        """Refuse losses at the solution that are not those of an earlier pass."""
        known = self.sample.known.losses
        if known is None:
            return
        with self.undisturbed():
            check_same_losses(self.probed, self.sample, known, losses, min(self.microbatch_size, len(self)))

    def check_dependence(self) -> None:
        """Refuse a sample on which no loss depends on a probed parameter."""
        model = self.probed
        if self.sample.is_selection or "dependence" in model.passed:
            return
        if depends(self):
            model.passed["dependence"] = "a loss"
            return
        raise CannotProbeError(
            f"no loss depends on any probed parameter ({', '.join(self.param_names[:4])}, ...); "
            "choose others with params="
        )

    # ---- by what it is recognised --------------------------------------------------------------------------------

    def key(self) -> str:
        """Hash of what the risk is: parameters, buffers, examples, and a fingerprint of the model's and loss's code.

        Code cannot be hashed. The fingerprint is two moments of the losses and the norm of the gradient at one point
        beside the solution (a loss may vanish at the solution itself), to four digits: neither the microbatch size
        nor the machine's rounding should change it.
        """
        known = self.sample.known
        if known.key is None:
            self.check_dependence()
            behaviour, weights = behaviour_beside(self)
            tensors = self.probed.contents()
            content = [__version__, torch.__version__, tensors, "".join(self.digests()), behaviour, weights]
            known.key = digest(content)
        return known.key

    def digests(self) -> tuple[str, ...]:
        """Content hash of every example."""
        with self.undisturbed():  # reading a dataset may run the user's code
            return self.sample.examples.digests()


def expect_risk(risk: object) -> None:
    """Refuse what is given in the place of a risk, a model above all."""
    if not isinstance(risk, EmpiricalRisk):
        raise ArgumentTypeError(
            f"risk is a {type(risk).__name__}; expected a model with its loss and its sample: "
            "curvprobe.EmpiricalRisk(model, loss, data)"
        )
