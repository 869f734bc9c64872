"""How many bytes the work may take, and how they are divided: the one place that decides."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from curvprobe.errors import ArgumentError
from curvprobe.numerics.space import Space
from curvprobe.risk.frozen import Raised
from curvprobe.runtime.memory import free_bytes

PEAK_OVER_SAVED = 2.5
"""Resident memory of a curvature product over the bytes that autograd saves for it: cotangents in flight bring the
live tensors to 1.6 times (on a transformer), and the fragmentation of the C library's heap brings that to 2.5."""

PRODUCT_OVER_FORWARD = 6
"""Multiplications of a curvature product, over those of a forward pass."""

VECTORS_IN_FLIGHT = 6
"""Vectors of the model's size that a product holds beside its microbatch: gradients, tangents, sums."""

VECTORS_IN_CHECK = 9
"""The same for the check of second derivatives, in float64 whatever the model's type."""

TANGENTS_AT_ONCE = 16
"""Tangents that an accelerator takes through the graph together, at most."""

WHOLE_AT_ONCE = 4
"""Tensors of a divided parameter's size that are held while its derivative is exchanged: the derivative, what is sent,
what comes, and that in another order."""

POINTS_TOGETHER = 32 * 2**20
"""Bytes that displaced points evaluated together may hold. Together saves the overhead of small models' many
operations; a model that fills the processor by itself gains nothing."""

VECTORS_PER_POINT = 4
"""Vectors of the model's size that a displaced point takes: its displacement twice, and its parameters twice."""

SMALL_EXAMPLE = 2**20
"""Examples whose saved activations are smaller than this are projected together, larger ones one by one."""

EXAMPLES_TOGETHER = 128 * 2**20
"""Bytes that the examples projected together may hold; more would only leave the processor's caches."""

PRODUCTS_HELD = 16
"""Products held at once, at most, when examples are projected one by one."""

PROBES_HELD = 8
"""Probes, at most, whose products with the sample's Hessian are held while the next examples take their turn."""

VECTORS_PER_PROBE = 8
"""Vectors of the model's size that a probe held takes: signs, products and differences, and sums in float64."""


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the floating-point operations of multiplications of matrices, convolutions and attention in a block."""

    total: float = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation itself."""
        found = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            with suppress(Exception):  # of unusual arguments; the count is a courtesy
                self.total += count(*args, **(kwargs or {}), out_val=found)
        return found


def compilers_held() -> AbstractContextManager[Any]:
    """A block in which nothing is compiled: code that torch meets while operations are watched it never compiles."""
    loaded = "torch._dynamo" in sys.modules  # it takes seconds to load, and without it nothing is compiled
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


class SavedBytes(saved_tensors_hooks):
    """Counts the bytes that autograd saves in a block, the model's own tensors left out, each storage once.

    What is ``raised`` in use is not saved either.
    """

    def __init__(self, own: Iterable[Tensor], raised: Raised) -> None:
        self.total = 0
        known = {tensor.untyped_storage().data_ptr() for tensor in own}

        def pack(tensor: Tensor) -> Any:
            kept = raised.pack(tensor)
            if kept is not tensor:
                return kept
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                self.total += storage.nbytes()
            return tensor

        super().__init__(pack, raised.unpack)


def check_budget(budget: Any) -> None:
    """Refuse a memory budget that is neither None nor a positive number of bytes."""
    number = isinstance(budget, Real) and not isinstance(budget, bool)
    if budget is not None and (not number or not 1 <= budget < math.inf):
        raise ArgumentError(f"memory_budget is {budget!r}; expected a positive number of bytes or None")


def default_budget(device: torch.device) -> int:
    """Half of what is free, rounded down to a power of two so that a second run makes the same choices."""
    return 1 << max(28, (free_bytes(device) // 2).bit_length() - 1)


@dataclass(frozen=True)
class Footprint:
    """What curvature work on a model takes, from what autograd saves for one example.

    Attributes:
        activation: bytes saved for the loss.
        graph: bytes saved for the loss and its gradient as a graph.
        num_params: N, or the most that a process holds of a vector where the weights are divided.
        itemsize: bytes of a number.
        shapes: of the tensors of the example that it was measured on.
        operations: floating-point operations of a forward pass of one example.
    """

    activation: int
    graph: int
    num_params: int
    itemsize: int = 4
    shapes: tuple[tuple[int, ...], ...] = ()
    operations: float = 0.0

    def of_product(self, rows: int) -> float:
        """Floating-point operations of a curvature product over so many examples, whose graph is made anew."""
        return PRODUCT_OVER_FORWARD * rows * self.operations

    @property
    def vector(self) -> int:
        """Bytes of a vector of the parameters."""
        return self.num_params * self.itemsize

    @property
    def example(self) -> int:
        """Bytes that an example takes in a curvature product."""
        return int(PEAK_OVER_SAVED * max(1, self.graph))

    @property
    def least(self) -> int:
        """Bytes that a curvature product takes at the least: one example, and vectors of the parameters."""
        return self.example + VECTORS_IN_FLIGHT * self.vector

    def examples_in(self, room: int) -> int:
        """How many examples fit in so many bytes; one at the least."""
        return max(1, 1 + (room - self.least) // self.example)

    def in_double(self) -> Footprint:
        """The same work in float64."""
        times = 8 // self.itemsize
        return replace(self, activation=times * self.activation, graph=times * self.graph, itemsize=8)


@dataclass(frozen=True)
class BasisPlan:
    """How the basis of an eigenspace fits: its vectors, the bytes left for a microbatch, and where it lies.

    ``size`` is None where the solver's own choice is taken, ``room`` None where it is what it was.
    """

    size: int | None
    room: int | None = None
    on_host: bool = False


@dataclass(frozen=True)
class Budget:
    """Bytes for the work on one model: one half is for a microbatch, the other for vectors of the parameters.

    Attributes:
        total: bytes.
        stated: whether a person said so; what happens to be free is no limit that was asked for.
        footprint: of the model.
        device: where it lives.
    """

    total: int
    stated: bool
    footprint: Footprint
    device: torch.device

    @classmethod
    def of(cls, stated: float | None, footprint: Footprint, device: torch.device) -> Budget:
        """The stated budget, if anything can be done in it; else a share of what is free."""
        total = default_budget(device) if stated is None else int(stated)
        return cls(total, stated is not None, footprint, device).for_footprint(footprint)

    def for_footprint(self, footprint: Footprint) -> Budget:
        """The same for examples that take something else, if anything can be done in it."""
        check = 8 // footprint.itemsize * footprint.example + VECTORS_IN_CHECK * 8 * footprint.num_params
        least = max(2 * footprint.least, check)
        if self.stated and self.total < least:
            raise ArgumentError(
                f"memory_budget is {self.total} bytes; this model needs at least {least} for one example and vectors "
                "of its parameters: allow that much, or probe fewer parameters with params="
            )
        return replace(self, footprint=footprint)

    def in_double(self) -> Budget:
        """For the same model in float64, which takes twice as much."""
        return replace(self, footprint=self.footprint.in_double())

    @property
    def half(self) -> int:
        """Bytes for either use."""
        return self.total // 2

    def examples_at_once(self) -> int:
        """Examples of a microbatch."""
        return self.footprint.examples_in(self.half)

    def tangents_at_once(self, rows: int) -> int:
        """How many tangents to take through a graph of ``rows`` examples together: by rule, so that it repeats.

        One on a CPU, where a batch of tangents takes as long as one after the other; elsewhere as many as there is room
        for.
        """
        if self.device.type == "cpu":
            return 1
        return max(1, min(TANGENTS_AT_ONCE, self.half // (self.footprint.example * rows)))

    def directions_at_once(self, largest: int) -> int:
        """Directions along which an example is differentiated together where weights are divided, on a CPU too: they
        exchange once. The largest parameter, of so many numbers, is whole for each of them, as it goes and comes."""
        each = self.footprint.example + WHOLE_AT_ONCE * largest * self.footprint.itemsize
        return max(1, min(TANGENTS_AT_ONCE, self.half // each))

    def points_at_once(self, rows: int) -> int:
        """Displaced points that are evaluated together, on ``rows`` examples each."""
        activations = rows * self.footprint.activation
        fast = POINTS_TOGETHER // (self.footprint.vector + activations)
        return max(1, min(fast, self.half // (VECTORS_PER_POINT * self.footprint.vector + activations)))

    def directions_held(self) -> int:
        """Directions of the parameters' size that are held at once while points along them are looked at."""
        return max(1, self.half // (2 * self.footprint.vector))

    def examples_together(self) -> int:
        """Examples that are projected together; 1 where each fills the processor by itself."""
        if self.footprint.activation > SMALL_EXAMPLE:
            return 1
        return max(1, min(EXAMPLES_TOGETHER, self.half) // (4 * self.footprint.vector + self.footprint.example))

    def examples_swept(self, each: int) -> int:
        """Examples that are swept together where one takes so many bytes; none if one does not fit."""
        return 0 if each > self.half else max(1, min(EXAMPLES_TOGETHER, self.half) // each)

    def products_held(self) -> int:
        """Products that are held at once when an example is projected by itself."""
        return max(1, min(PRODUCTS_HELD, self.half // self.footprint.vector))

    def columns_held(self) -> int:
        """Directions of a subspace that lies elsewhere, at least two, along which examples are projected at once."""
        return max(2, self.half // self.footprint.vector)

    def probes_held(self) -> int:
        """Random probes of the full space whose products are held at once."""
        return max(1, min(PROBES_HELD, self.half // (VECTORS_PER_PROBE * self.footprint.vector)))

    def basis_for(self, dim: int, space: Space) -> BasisPlan:
        """Room for the basis of ``dim`` eigenvectors: by smaller microbatches, then fewer vectors, then on the host.

        Several processes hold a share of the basis each, in the space of its vectors.

        Raises:
            ArgumentError: where a stated budget, or what is free, has no room for the smallest basis.
        """
        vector, num_params = space.most * self.footprint.itemsize, space.size
        flying = 5 * self.footprint.vector
        for extra in (math.ceil(dim / 2) + 10, 10):
            size = min(num_params, dim + extra)
            needed = (size + dim) * vector + flying  # with the result, the risk's gradient, and vectors in flight
            if needed <= self.total - self.footprint.least:
                return BasisPlan(size, self.total - needed)
        if self.device.type != "cpu":
            return BasisPlan(None, on_host=True)
        room = self.total if self.stated else free_bytes(self.device)
        if needed <= room - self.footprint.least:
            return BasisPlan(size, 0)
        fits = max(0, ((room - self.footprint.least - flying) // vector - 10) // 2)
        limit = f"memory_budget is {room} bytes" if self.stated else f"{room} bytes of memory are free"
        raise ArgumentError(
            f"{limit}; {dim} eigenvectors of {num_params} parameters need at least {needed + self.footprint.least}: "
            + (f"dim={fits} fits, or " if fits else "no dim fits; ")
            + f"{'allow' if self.stated else 'free'} that much, or probe fewer parameters with params="
        )
