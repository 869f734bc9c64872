"""A model and its loss at any values of the parameters that are probed; the model is left as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from curvprobe.errors import ArgumentError, CannotProbeError
from curvprobe.losses import Loss
from curvprobe.numerics.noise import normal_vector
from curvprobe.numerics.space import Space
from curvprobe.risk.calling import Forward, Scope, call, check_gradients, check_mode, unwrap
from curvprobe.risk.contract import split_loss
from curvprobe.risk.divided import Divided, of_model
from curvprobe.risk.examples import Batch
from curvprobe.risk.fast_paths import FastPaths
from curvprobe.risk.frozen import LEAN, Raised, RaisedInUse
from curvprobe.risk.parameters import Selection, State, copy_state, select_parameters
from curvprobe.risk.sample import Microbatch
from curvprobe.risk.undisturbed import undisturbed
from curvprobe.runtime.digest import digest
from curvprobe.runtime.ranks import ALONE, Ranks


@dataclass(frozen=True, eq=False)
class ProbedModel:
    """A model, its loss and copies of its weights: neither further training nor an in-place layer reaches these.

    Frozen parameters are not copied; that they have changed is noticed, and refused.

    Attributes:
        module: evaluated in the train/eval modes of ``modes``.
        loss: per-example loss.
        state: the probed parameters, the others, and the buffers.
        modes: the mode of every module.
        own_forward: how the model is called, where the user says so.
        fast_paths: which fast ways hold for this model and loss.
        passed: checks of the whole model that have passed, and what they looked at.
        doubts: what could not be decided, a sentence each by the name of the check; results carry them.
        divided: how its weights are divided among processes, where they are; a vector of the parameters is then what
            this process holds of it.
    """

    module: nn.Module
    loss: Loss
    state: State
    modes: tuple[tuple[nn.Module, bool], ...]
    own_forward: Forward | None = None
    fast_paths: FastPaths = field(default_factory=FastPaths)
    passed: dict[str, str] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)
    divided: Divided | None = None

    @classmethod
    def of(
        cls, model: nn.Module, loss: Loss, params: Selection, forward: Forward | None = None, ranks: Ranks = ALONE
    ) -> ProbedModel:
        """The model as it is now; refuses one that is random or mixes examples."""
        module = unwrap(model)
        names = select_parameters(module, params)
        modes = tuple((part, part.training) for part in module.modules())
        check_mode(module)
        check_gradients(module, names)
        divided = of_model(module, names, ranks)
        state, fast_paths = copy_state(module, names, divided), FastPaths(none=divided is not None)
        return cls(module, loss, state, modes, forward, fast_paths, divided=divided)

    # ---- what it is

    @cached_property
    def names(self) -> list[str]:
        """Of the probed parameters, in the flat order."""
        return list(self.state.probed)

    @cached_property
    def num_params(self) -> int:
        """N."""
        shapes = {} if self.divided is None else self.divided.shapes
        return sum(shapes[name].numel() if name in shapes else p.numel() for name, p in self.state.probed.items())

    @cached_property
    def held(self) -> int:
        """Length of a vector of the parameters here: N, or what this process holds of it."""
        return sum(p.numel() for p in self.state.probed.values())

    def space(self, ranks: Ranks) -> Space:
        """The space of vectors of the parameters."""
        return ranks.space(self.num_params) if self.divided is None else self.vectors

    @cached_property
    def vectors(self) -> Space:
        """The space of vectors as they are given to this model and come of it: whole, or divided as its weights are."""
        return Space(self.num_params) if self.divided is None else self.divided.space(self.names)

    def sizes(self) -> list[float]:
        """Root mean square of each parameter."""
        squares = torch.stack([p.detach().double().square().sum() for p in self.state.probed.values()])
        squares = squares if self.divided is None else self.divided.ranks.total(squares)
        shapes = {} if self.divided is None else self.divided.shapes
        counts = [shapes[name].numel() if name in shapes else p.numel() for name, p in self.state.probed.items()]
        return [math.sqrt(square / max(1, count)) for square, count in zip(squares.tolist(), counts, strict=True)]

    def draw(self, generator: torch.Generator) -> Tensor:
        """Standard normal numbers, a vector of the parameters: what this process holds of it."""
        size, part = self.num_params, self.vectors.part
        return normal_vector(generator, size, dtype=self.dtype, device=self.device, part=part)

    def contents(self) -> list[Any]:
        """Parameters and buffers, or hashes of them: whole ones, whatever is held."""
        state, divided = self.state, self.divided
        if divided is None:
            return [state.probed, state.kept, state.buffers]
        parts = {**state.probed, **state.kept}
        hashes = {name: digest(divided.whole(part, name)) for name, part in parts.items() if name in divided.shapes}
        return [hashes, {name: part for name, part in state.kept.items() if name not in hashes}, state.buffers]

    def moved(self, z: Tensor, basis: Tensor) -> ProbedModel:
        """The same with divided weights at ``w* + U z``, by the rows (n, D) that this process holds of U.

        It is differentiable in z (D,), which must be zero, and no derivative is then a vector of the parameters.
        """
        assert self.divided is not None
        probed = self.state.probed
        pieces = torch.split(basis, [p.numel() for p in probed.values()])
        rows = {name: piece.view(*p.shape, len(z)) for (name, p), piece in zip(probed.items(), pieces, strict=True)}
        return replace(self, divided=self.divided.moving(z, rows))

    def expect_whole(self, what: str) -> None:
        """Refuse what is not there yet for weights that are divided among processes."""
        if self.divided is not None:
            raise CannotProbeError(
                f"the model's weights are divided among processes, and {what} is not there for these yet; give the "
                "whole model to each process, or leave it out"
            )

    def summing(self) -> ProbedModel:
        """The same for processes that differentiate other examples each, of whose derivatives all hold the sum."""
        return self if self.divided is None else replace(self, divided=self.divided.summing())

    @property
    def dtype(self) -> torch.dtype:
        """Of the probed parameters and of all N-vectors."""
        return self.state.dtype

    @property
    def device(self) -> torch.device:
        """Where they live."""
        return self.state.device

    def at(self, model: nn.Module) -> ProbedModel:
        """The same at the weights and buffers that the model has now."""
        if unwrap(model) is not self.module:
            raise ArgumentError(f"the model is another {type(model).__name__} than the one that was probed")
        return replace(self, state=copy_state(self.module, self.names, self.divided))

    def in_double(self) -> ProbedModel:
        """The same model in float64."""
        return replace(self, state=self.state.in_double())

    def is_same(self, other: ProbedModel) -> bool:
        """Whether both are one model at the same weights, with the same parameters probed."""
        if self.state is other.state:
            return True
        mine, theirs = self.state.tensors, other.state.tensors
        alike = self.names == other.names and mine.keys() == theirs.keys()
        return alike and all(torch.equal(mine[name], theirs[name]) for name in mine)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """A block in which it may be evaluated, and after which nothing about it or the RNGs has changed."""
        self.state.frozen.check()
        with undisturbed(self.module, self.modes, self.device, self._paddings[1]), self._lean_graphs():
            yield
        self.state.frozen.check()

    def _lean_graphs(self) -> AbstractContextManager[Any]:
        """A block in which autograd saves no copy of a parameter that is raised in use."""
        lean = self.divided is not None or (self.state.has_lower and self.fast_paths.open(LEAN))
        return saved_tensors_hooks(self.raised.pack, self.raised.unpack) if lean else nullcontext()

    @cached_property
    def raised(self) -> Raised:
        """Parameters that are not probed, in the type of those that are."""
        return Raised(self.dtype, self.divided)

    @cached_property
    def _scope(self) -> Scope:
        return Scope(self.module)

    @cached_property
    def _paddings(self) -> tuple[dict[str, list[int]], list[nn.Embedding]]:
        """Rows of probed embeddings that never train, by name, and the embeddings whose weight another layer has too.

        An embedding's padding row gets no gradient, by torch's design: it is a constant. Where the weight is tied the
        row trains through the other layer, and its derivative has both parts.
        """
        names = {id(parameter): name for name, parameter in self.module.named_parameters() if name in self.state.probed}
        fixed, tied = dict[str, list[int]](), list[nn.Embedding]()
        modules = list(self.module.modules())  # each once, whatever it is called
        for module in modules:
            if not isinstance(module, nn.Embedding) or module.padding_idx is None:
                continue
            users = [user for user in modules if any(p is module.weight for p in user.parameters(recurse=False))]
            if any(getattr(user, "padding_idx", None) != module.padding_idx for user in users):
                tied.append(module)
            elif id(module.weight) in names:
                fixed.setdefault(names[id(module.weight)], []).append(module.padding_idx)
        if self.divided is not None:
            held = {name: self.divided.rows(name) for name in fixed}
            fixed = {
                name: [row - held[name].start for row in rows if held[name].start <= row < held[name].stop]
                for name, rows in fixed.items()
            }
        return fixed, tied

    # ---- evaluation

    def leaves(self, displacement: Tensor | None = None) -> dict[str, Tensor]:
        """The probed parameters, displaced by a flat (N,) vector if one is given, ready to be differentiated."""
        moved = self.state.probed if displacement is None else self.displaced(displacement)
        return {name: p.detach().requires_grad_() for name, p in moved.items()}

    def displaced(self, displacement: Tensor) -> dict[str, Tensor]:
        """The probed parameters at ``w* + displacement`` (N,); padding rows, which never train, stay where they are."""
        if displacement.shape != (self.held,):
            raise ArgumentError(
                f"the displacement has shape {tuple(displacement.shape)}; expected one flat vector ({self.held},)"
            )
        parts = self.split(displacement.to(device=self.device, dtype=self.dtype))
        moved = {name: p + parts[name] for name, p in self.state.probed.items()}
        for name, rows in self.padding_rows.items():
            moved[name][rows] = self.state.probed[name][rows]
        return moved

    def within(self, params: Mapping[str, Tensor], function: Callable[[nn.Module], Any]) -> Any:
        """What ``function(module)`` returns while the module has these parameters."""
        state = self.state
        buffers = {name: b.clone() for name, b in state.buffers.items()}
        tensors = {**state.kept, **buffers, **params}
        made = state.has_lower or self.divided is not None
        with RaisedInUse(tensors, self.raised) if made else nullcontext():
            return self._scope.run(tensors, function)

    def call(self, module: nn.Module, batch: Batch) -> Any:
        """What the module returns for a batch, called by convention or as the user says."""
        return call(module, batch) if self.own_forward is None else self.own_forward(module, batch)

    def outputs(self, params: Mapping[str, Tensor], batch: Batch) -> Any:
        """What the model returns for a batch at these parameters."""
        return self.within(params, lambda module: self.call(module, batch))

    def batch_losses(self, params: Mapping[str, Tensor], microbatch: Microbatch) -> tuple[Tensor, Tensor]:
        """Summed loss and weight of each example, differentiable in ``params``.

        The loss too runs while the module has these parameters: a term over ``model.parameters()`` is differentiated.
        """
        batch = microbatch.batch
        result = self.within(params, lambda module: self.loss(self.call(module, batch), batch))
        loss_sum, weight = split_loss(result, len(microbatch))
        if microbatch.scale is None:
            return loss_sum, weight
        return loss_sum * microbatch.scale.to(loss_sum), weight * microbatch.scale

    def losses_of_outputs(self, params: Mapping[str, Tensor], outputs: Any, batch: Batch, rows: int) -> Tensor:
        """Summed loss of each of a batch's examples for outputs at hand."""
        return split_loss(self.within(params, lambda _: self.loss(outputs, batch)), rows)[0]

    def first_order(self, scalar: Tensor, leaves: dict[str, Tensor], *, create_graph: bool = False) -> list[Tensor]:
        """Gradient of a scalar in the probed parameters; zero where it does not depend on one."""
        if not scalar.requires_grad:  # an example may pass the probed parameters by, as in a mixture of experts
            return [torch.zeros_like(leaf) for leaf in leaves.values()]
        gradients = torch.autograd.grad(
            scalar, list(leaves.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
        return list(gradients)

    # ---- flat vectors

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat (N,) vector as tensors of the parameters' shapes (views)."""
        probed = self.state.probed
        pieces = torch.split(vector, [p.numel() for p in probed.values()])
        return {name: piece.view(p.shape) for (name, p), piece in zip(probed.items(), pieces, strict=True)}

    @property
    def padding_rows(self) -> dict[str, list[int]]:
        """Rows of probed embeddings that never train, by the name of the parameter."""
        return self._paddings[0]

    def trained(self, parts: Mapping[str, Tensor], *, lead: int = 0) -> dict[str, Tensor]:
        """A vector given by parameter, or several (``lead`` dimensions); zero in padding rows, which never train."""
        moving = dict(parts)
        for name, rows in self.padding_rows.items():
            moving[name] = parts[name].clone()
            moving[name].movedim(lead, 0)[rows] = 0
        return moving

    def flatten(self, parts: Sequence[Tensor]) -> Tensor:
        """Tensors of the parameters' shapes as one flat (N,) vector."""
        return torch.cat([part.detach().reshape(-1) for part in parts])
