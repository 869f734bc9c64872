"""A model and its loss at any values of the parameters that are probed; the model is left as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from curvprobe.errors import ArgumentError
from curvprobe.losses import Loss
from curvprobe.risk.calling import call, check_mode, undisturbed, unwrap
from curvprobe.risk.contract import split_loss
from curvprobe.risk.examples import Batch
from curvprobe.risk.fast_paths import FastPaths
from curvprobe.risk.parameters import Selection, State, copy_state, select_parameters
from curvprobe.risk.sample import Microbatch


@dataclass(frozen=True, eq=False)
class ProbedModel:
    """A model, its loss and copies of its weights: neither further training nor an in-place layer reaches these.

    Attributes:
        module: evaluated in the train/eval modes of ``modes``.
        loss: per-example loss.
        state: the probed parameters, the others, and the buffers.
        modes: the mode of every module.
        fast_paths: which fast ways hold for this model and loss.
        passed: checks of the whole model that have passed.
        doubts: what could not be decided, a sentence each by the name of the check; results carry them.
    """

    module: nn.Module
    loss: Loss
    state: State
    modes: tuple[tuple[nn.Module, bool], ...]
    fast_paths: FastPaths = field(default_factory=FastPaths)
    passed: set[str] = field(default_factory=set)
    doubts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, loss: Loss, params: Selection) -> ProbedModel:
        """The model as it is now; refuses one that is random or mixes examples."""
        module = unwrap(model)
        names = select_parameters(module, params)
        modes = tuple((part, part.training) for part in module.modules())
        check_mode(module)
        return cls(module, loss, copy_state(module, names), modes)

    # ---- what it is

    @cached_property
    def names(self) -> list[str]:
        """Of the probed parameters, in the flat order."""
        return list(self.state.probed)

    @cached_property
    def num_params(self) -> int:
        """N."""
        return sum(p.numel() for p in self.state.probed.values())

    @property
    def dtype(self) -> torch.dtype:
        """Of the probed parameters and of all N-vectors."""
        return self.state.dtype

    @property
    def device(self) -> torch.device:
        """Where they live."""
        return self.state.device

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

    def undisturbed(self) -> AbstractContextManager[None]:
        """A block in which it may be evaluated, and after which nothing about it or the RNGs has changed."""
        return undisturbed(self.module, self.modes, self.device)

    # ---- evaluation

    def leaves(self, displacement: Tensor | None = None) -> dict[str, Tensor]:
        """The probed parameters, displaced by a flat (N,) vector if one is given, ready to be differentiated."""
        moved = self.state.probed if displacement is None else self.displaced(displacement)
        return {name: p.detach().requires_grad_() for name, p in moved.items()}

    def displaced(self, displacement: Tensor) -> dict[str, Tensor]:
        """The probed parameters at ``w* + displacement`` (N,)."""
        if displacement.shape != (self.num_params,):
            raise ArgumentError(
                f"the displacement has shape {tuple(displacement.shape)}; expected one flat vector ({self.num_params},)"
            )
        parts = self.split(displacement.to(device=self.device, dtype=self.dtype))
        return {name: p + parts[name] for name, p in self.state.probed.items()}

    def outputs(self, params: Mapping[str, Tensor], batch: Batch) -> Any:
        """What the model returns for a batch at these parameters."""
        state = self.state
        return call(
            self.module, {**state.kept, **{name: b.clone() for name, b in state.buffers.items()}, **params}, batch
        )

    def batch_losses(self, params: Mapping[str, Tensor], microbatch: Microbatch) -> tuple[Tensor, Tensor]:
        """Summed loss and weight of each example, differentiable in ``params``."""
        batch = microbatch.batch
        return split_loss(self.loss(self.outputs(params, batch), batch), len(microbatch))

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

    def flatten(self, parts: Sequence[Tensor]) -> Tensor:
        """Tensors of the parameters' shapes as one flat (N,) vector."""
        return torch.cat([part.detach().reshape(-1) for part in parts])
