"""The empirical risk of a trained model: per-example losses and weights, streamed, leaving the model as it was."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curvprobe.examples import Batch, Examples, digest, resolve_rows, to_model
from curvprobe.losses import (
    Loss,
    check_depends,
    check_finite,
    check_independent,
    check_loss,
    check_repeatable,
    check_weights,
    split_loss,
)
from curvprobe.memory import Footprint, SavedBytes, check_budget, default_budget
from curvprobe.model import call, check_mode, undisturbed, unwrap
from curvprobe.parameters import Selection, copy_state, select_parameters
from curvprobe.version import __version__


class EmpiricalRisk:
    r"""Empirical risk of a trained model on a sample.

    .. math:: L_k(w) = \sum_{i \le k} w_i \, l_i(w) / W_k, \qquad W_k = \sum_{i \le k} w_i

    The weights of the model are copied when the risk is made: :math:`w^*` stays what it was when training goes on.
    Every pass runs in the train/eval mode the model had then, under the math attention kernel (fused attention has
    no second derivative) and without autocast, and leaves the model's weights, buffers, gradients, flags and mode
    and all random number generators as it found them. Parameters below float32 are raised to float32.

    Args:
        model: a deterministic module, usually in eval mode. A wrapper of torch.compile, DataParallel or
            DistributedDataParallel is taken off.
        loss: ``loss(outputs, batch)`` giving one mean loss per example (n,), or ``(loss_sum (n,), weight (n,))``;
            see :mod:`curvprobe.losses`.
        data: a map-style dataset, a tensor, a tuple of tensors or a dict of tensors, in fixed order. A batch is
            given to the model as ``model(batch)`` (tensor), ``model(batch[0])`` (tuple), or as keyword arguments
            (mapping: the entries that ``forward`` accepts, never labels, targets or weights).
        params: None (all with ``requires_grad``), a predicate on the parameter name, or name patterns (``*``).
        microbatch_size: examples in one pass; None takes as many as half of the memory budget allows. Larger is
            faster, and a sample that fits in one microbatch is differentiated only once for all its products.
        collate_fn: turns a list of the dataset's items into a batch; None is PyTorch's default.
        memory_budget: bytes that the work may take beyond the model and the data; None is half of what is free on
            the model's device. One half is for a microbatch, the other for the basis of an eigenspace.

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
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        check_loss(loss)
        check_budget(memory_budget)
        if microbatch_size is not None and (not isinstance(microbatch_size, Integral) or microbatch_size < 1):
            raise ValueError(f"microbatch_size is {microbatch_size!r}; expected a positive number of examples or None")
        self.model = unwrap(model)
        self.loss = loss
        self.examples = Examples(data, collate_fn)
        self.param_names = select_parameters(self.model, params)
        self._modes = [(module, module.training) for module in self.model.modules()]
        check_mode(self.model)
        state = copy_state(self.model, self.param_names)  # neither further training nor an in-place layer reaches it
        self._params, self._kept, self._buffers = state.probed, state.kept, state.buffers
        self.dtype, self.device, self.upcast_from = state.dtype, state.device, state.upcast_from
        self.num_params = sum(p.numel() for p in self._params.values())
        self._known: dict[str, Tensor] = {}  # losses, weights and gradient at the solution, once they were computed
        self._key: str | None = None
        self._is_selection = False
        self.checked: set[str] = set()  # checks that have passed, shared with selections
        self._collate_fn = collate_fn
        self._given_microbatch_size, self.given_memory_budget = microbatch_size, memory_budget
        self.memory_budget = default_budget(self.device) if memory_budget is None else int(memory_budget)
        self._try_out()

    # ---- checks and sizes --------------------------------------------------------------------------------------

    def _try_out(self) -> None:
        """Evaluate a few examples: refuse what cannot be probed, and choose the microbatch size."""
        with self.undisturbed():
            first = self._try_data()
            rows, tolerance = len(first), 1e-5 if self.dtype == torch.float32 else 1e-10
            check_repeatable(first, self._evaluate(self._read(0, rows), rows), tolerance)
            alone = [self._evaluate(self._read(row, row + 1), 1) for row in range(rows)]
            check_independent(first, torch.cat(alone), 100 * tolerance)
            self._measure()

    def _try_data(self) -> Tensor:
        """Losses of the first examples; refuses data that the model or the loss cannot take."""
        rows = min(len(self), 4, self._given_microbatch_size or 4)
        batch = self._read(0, rows)
        self._read(0, rows)  # a dataset that brings something else the second time is refused here
        return self._evaluate(batch, rows)

    def _measure(self) -> None:
        """Find what an example takes, and choose the microbatch size."""
        self._example_shapes = _shapes(self._read(0, 1))
        kept = SavedBytes([*self._params.values(), *self._kept.values()])
        with kept, contextlib.suppress(RuntimeError):  # an operation without a second derivative is refused later
            leaves = self.leaves()
            loss_sum, _ = self.batch_losses(leaves, self._read(0, 1), 1)
            activation = kept.total
            self.first_order(loss_sum.sum(), leaves, create_graph=True)
        self.footprint = Footprint(activation, kept.total, self.num_params)
        if self.given_memory_budget is not None:
            self.footprint.check(self.memory_budget)
        self.microbatch_size = self._given_microbatch_size or self.footprint.examples_in(self.memory_budget // 2)

    def with_room(self, room: int) -> EmpiricalRisk:
        """The same risk in microbatches that are small enough to work in ``room`` bytes, if they are left to us."""
        slim = copy.copy(self)
        if self._given_microbatch_size is None:
            slim.microbatch_size = min(self.microbatch_size, self.footprint.examples_in(room))
        return slim

    def _evaluate(self, batch: Batch, rows: int) -> Tensor:
        everything = {name: p.detach().requires_grad_(p.is_floating_point()) for name, p in self._kept.items()}
        loss_sum, weight = self.batch_losses({**everything, **self.leaves()}, batch, rows)
        check_depends(loss_sum)
        check_weights(weight, 0)
        losses = (loss_sum.detach() / weight).double()
        check_finite(losses, 0, len(self))
        return losses

    def undisturbed(self) -> AbstractContextManager[None]:
        """A block in which the model may be evaluated, and after which nothing about it or the RNGs has changed."""
        return undisturbed(self.model, self._modes, self.device)

    # ---- size and selection ------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        return f"EmpiricalRisk({len(self)} examples, {self.num_params} parameters, {str(self.dtype).split('.')[-1]})"

    def __getitem__(self, selection: int | slice | Sequence[int] | Tensor) -> EmpiricalRisk:
        """The risk on some of the examples: one, a slice, a list of positions or a boolean mask."""
        rows = resolve_rows(selection, len(self))
        chosen = copy.copy(self)
        chosen.examples = self.examples.select(rows)
        chosen._is_selection, chosen._key = True, None
        chosen._known = {name: self._known[name][rows] for name in ("losses", "weights") if name in self._known}
        return chosen

    def on(self, data: Any, collate_fn: Callable[[list[Any]], Batch] | None = None) -> EmpiricalRisk:
        """The same model, loss and parameters on other examples."""
        other = copy.copy(self)
        inherited = None if isinstance(data, Tensor | tuple | Mapping) else self._collate_fn
        other.examples = Examples(data, collate_fn or inherited)
        other._known = {}
        other._is_selection, other._key = False, None
        with other.undisturbed():
            other._try_data()
            if _shapes(other._read(0, 1)) != self._example_shapes:  # longer sequences take more memory
                other._measure()
        return other

    def in_double(self) -> EmpiricalRisk:
        """The same risk in float64: for checks, not for speed."""
        double = copy.copy(self)
        with torch.inference_mode(False):
            for name in ("_params", "_kept", "_buffers"):
                tensors = getattr(self, name)
                setattr(double, name, {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()})
        double.dtype = torch.float64
        double._known, double._key = {}, None
        return double

    # ---- evaluation --------------------------------------------------------------------------------------------

    def _read(self, start: int, stop: int) -> Batch:
        return to_model(self.examples.batch(start, stop), self.dtype, self.device)

    def batches(self) -> Iterator[tuple[slice, Batch]]:
        """Microbatches in order, with the rows they hold."""
        for start in range(0, len(self), self.microbatch_size):
            stop = min(start + self.microbatch_size, len(self))
            yield slice(start, stop), self._read(start, stop)

    def leaves(self, displacement: Tensor | None = None) -> dict[str, Tensor]:
        """The probed parameters, displaced by a flat (N,) vector if one is given, ready to be differentiated."""
        moved = self._params if displacement is None else self.displaced(displacement)
        return {name: p.detach().requires_grad_() for name, p in moved.items()}

    def displaced(self, displacement: Tensor) -> dict[str, Tensor]:
        """The probed parameters at ``w* + displacement`` (N,)."""
        if displacement.shape != (self.num_params,):
            raise ValueError(
                f"the displacement has shape {tuple(displacement.shape)}; expected one flat vector ({self.num_params},)"
            )
        parts = self.split(displacement.to(device=self.device, dtype=self.dtype))
        return {name: p + parts[name] for name, p in self._params.items()}

    def outputs(self, params: Mapping[str, Tensor], batch: Batch) -> Any:
        """What the model returns for a batch at these parameters."""
        state = {**self._kept, **{name: b.clone() for name, b in self._buffers.items()}, **params}
        return call(self.model, state, batch)

    def batch_losses(self, params: Mapping[str, Tensor], batch: Batch, rows: int) -> tuple[Tensor, Tensor]:
        """Summed loss and weight of each of the batch's ``rows`` examples, differentiable in ``params``."""
        return split_loss(self.loss(self.outputs(params, batch), batch), rows)

    def losses(self, displacement: Tensor | None = None, *, finite: bool = True) -> Tensor:
        """Mean loss of every example at ``w* + displacement``; float64 (n,), on the CPU.

        Args:
            displacement: flat (N,), or None for the solution itself (evaluated once and remembered).
            finite: raise on a loss that is not finite; False lets it through.
        """
        if displacement is None and "losses" in self._known:
            return self._known["losses"].clone()
        with self.undisturbed(), torch.no_grad():
            losses = torch.empty(len(self), dtype=torch.float64)
            weights = torch.empty(len(self), dtype=torch.float64)
            params = self._params if displacement is None else self.displaced(displacement)
            for rows, batch in self.batches():
                loss_sum, weight = self.batch_losses(params, batch, rows.stop - rows.start)
                losses[rows] = loss_sum.double().cpu() / weight.double().cpu()
                weights[rows] = weight.double().cpu()
                check_weights(weights[rows], rows.start)
                if finite:
                    check_finite(losses[rows], rows.start, len(self), displaced=displacement is not None)
        if displacement is None:
            self._known["losses"] = losses.clone()
        self._known.setdefault("weights", weights)
        return losses

    @property
    def weights(self) -> Tensor:
        """Number of loss terms in every example; float64 (n,)."""
        if "weights" not in self._known:
            self.losses()
        return self._known["weights"].clone()

    @property
    def total_weight(self) -> float:
        """Sum of the weights, W_k."""
        return float(self.weights.sum())

    def value(self, displacement: Tensor | None = None) -> float:
        """The risk at ``w* + displacement``, accumulated in float64."""
        losses = self.losses(displacement)
        return float((self.weights * losses).sum() / self.weights.sum())

    def gradient(self, displacement: Tensor | None = None) -> Tensor:
        """Gradient of the risk at ``w* + displacement``; flat (N,) in the model's dtype, accumulated in float64."""
        if displacement is None and "gradient" in self._known:
            return self._known["gradient"].clone()
        self.check_dependence()
        losses, weights, gradient = self._first_order_pass(displacement)
        if displacement is None:
            self._remember(losses, weights, gradient.clone())
        return gradient

    def _first_order_pass(self, displacement: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Losses and weights, float64 (n,), and the gradient of the risk (N,) at ``w* + displacement``."""
        with self.undisturbed():
            total = torch.zeros(self.num_params, dtype=torch.float64, device=self.device)
            losses, weights = torch.empty(2, len(self), dtype=torch.float64)
            for rows, batch in self.batches():
                leaves = self.leaves(displacement)
                loss_sum, weight = self.batch_losses(leaves, batch, rows.stop - rows.start)
                total += self.flatten(self.first_order(loss_sum.sum(), leaves))
                weights[rows] = weight.detach().double().cpu()
                losses[rows] = loss_sum.detach().double().cpu() / weights[rows]
                check_weights(weights[rows], rows.start)
                check_finite(losses[rows], rows.start, len(self), displaced=displacement is not None)
            gradient: Tensor = (total / weights.sum()).to(self.dtype)
        if not bool(gradient.isfinite().all()):
            raise ValueError("the gradient of the risk is not finite although the losses are; check the loss there")
        self._known.setdefault("weights", weights)
        return losses, weights, gradient

    def remember_pass(self, loss_sum: Tensor, weight: Tensor, gradients: Sequence[Tensor]) -> None:
        """Keep what one pass over the whole sample at the solution has shown, so that it is not computed again."""
        weights = weight.detach().double().cpu()
        losses = loss_sum.detach().double().cpu() / weights
        gradient = (self.flatten(gradients).double() / weights.sum()).to(self.dtype)
        if bool((weights > 0).all() and losses.isfinite().all() and gradient.isfinite().all()):
            self._remember(losses, weights, gradient)

    def _remember(self, losses: Tensor, weights: Tensor, gradient: Tensor) -> None:
        for name, value in (("losses", losses), ("weights", weights), ("gradient", gradient)):
            self._known.setdefault(name, value)

    def first_order(self, scalar: Tensor, leaves: dict[str, Tensor], *, create_graph: bool = False) -> list[Tensor]:
        """Gradient of a scalar in the probed parameters; zero where it does not depend on one."""
        if not scalar.requires_grad:  # an example may pass the probed parameters by, as in a mixture of experts
            return [torch.zeros_like(leaf) for leaf in leaves.values()]
        gradients = torch.autograd.grad(
            scalar, list(leaves.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
        return list(gradients)

    def check_dependence(self) -> None:
        """Refuse a sample on which no loss depends on a probed parameter."""
        if self._is_selection or "dependence" in self.checked:
            return
        with self.undisturbed():
            for rows, batch in self.batches():
                if self.batch_losses(self.leaves(), batch, rows.stop - rows.start)[0].requires_grad:
                    self.checked.add("dependence")
                    return
        raise ValueError(
            f"no loss depends on any probed parameter ({', '.join(self.param_names[:4])}, ...); "
            "choose others with params="
        )

    # ---- flat vectors ------------------------------------------------------------------------------------------

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat (N,) vector as tensors of the parameters' shapes (views)."""
        pieces = torch.split(vector, [p.numel() for p in self._params.values()])
        return {name: piece.view(p.shape) for (name, p), piece in zip(self._params.items(), pieces, strict=True)}

    def flatten(self, parts: Sequence[Tensor]) -> Tensor:
        """Tensors of the parameters' shapes as one flat (N,) vector."""
        return torch.cat([part.detach().reshape(-1) for part in parts])

    def key(self) -> str:
        """Hash of what the risk is: parameters, buffers, examples, and a fingerprint of the model's and loss's code.

        Code cannot be hashed. The fingerprint is two moments of the losses and the norm of the gradient at one point
        beside the solution (a loss may vanish at the solution itself), to four digits: neither the microbatch size
        nor the machine's rounding should change it.
        """
        if self._key is None:
            step = torch.randn(self.num_params, generator=torch.Generator().manual_seed(0), dtype=self.dtype)
            sizes = [p.detach().double().square().mean().sqrt().to(p.dtype).expand_as(p) for p in self._params.values()]
            beside = 0.01 * step.to(self.device) * self.flatten(sizes)
            self.check_dependence()
            losses, weights, gradient = self._first_order_pass(beside)
            behaviour = [f"{float(x):.3e}" for x in (losses.mean(), losses.square().mean(), gradient.double().norm())]
            state = [self._params, self._kept, self._buffers]
            content = [__version__, torch.__version__, state, "".join(self.digests()), behaviour, weights]
            self._key = digest(content)
        return self._key

    def check_same_model(self, other: EmpiricalRisk) -> None:
        """Refuse a risk of another model, other parameters or other weights."""
        if self._params is other._params:
            return
        mine, theirs = ({**r._kept, **r._buffers, **r._params} for r in (self, other))
        same_names = self.param_names == other.param_names and mine.keys() == theirs.keys()
        if not (same_names and all(torch.equal(mine[name], theirs[name]) for name in mine)):
            raise ValueError(
                f"the new examples' risk has {other.num_params} parameters of another model or other weights, and the "
                f"sample's has {self.num_params}; make it with risk.on(data)"
            )

    def digests(self) -> tuple[str, ...]:
        """Content hash of every example."""
        with self.undisturbed():  # reading a dataset may run the user's code
            return self.examples.digests()


def _shapes(batch: Batch) -> list[tuple[int, ...]]:
    """Shapes of a batch's tensors."""
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
