"""What an analysis of a large transformer takes on many accelerators: bytes, operations and time, from sizes alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from curvprobe.analysis.plan import rough_time
from curvprobe.errors import ArgumentError
from curvprobe.risk.budget import PEAK_OVER_SAVED, PRODUCT_OVER_FORWARD, TANGENTS_AT_ONCE, VECTORS_IN_FLIGHT
from curvprobe.runtime.plain import in_bytes

SPEED = 2e13
"""Floating-point operations a second that products reached in float32 on an H200, rounded down: benchmarks/gpu.py."""

LINK = 1e11
"""Bytes a second that an accelerator exchanges with the others of its machine, in round numbers."""

ROOM = 80e9
"""Bytes of an accelerator's memory."""

PER_TOKEN, PER_PAIR = 50.5, 3.0
"""Numbers that autograd saves for a graph that is differentiated again, in every layer: for each token and unit of the
width, and for each pair of tokens and head; of a Llama whose layers widen fourfold (benchmarks/scale.py)."""

HEAD = 64
"""Width of an attention head."""

WIDTH_OVER_DEPTH = 100
"""Of the usual shapes: a model of N parameters in its layers, 12 of them for every layer and squared unit of the width,
has a hundred times as many units as layers."""

POINTS, DESCENT = 150, 48
"""Passes forward of an analysis at displaced weights, and what its search for a descent takes in such passes."""


GATHERED, EXCHANGED = 4, 7
"""Of divided weights, in one microbatch of a product: how often they are gathered, and exchanges of as many numbers in
all (these, those of the vector, and the first and second derivative)."""


@dataclass(frozen=True)
class Scale:
    """Sizes of an analysis by processes that share it; print it for a table.

    Each has the whole model, unless that does not fit: then its weights are divided.

    Attributes:
        num_params: of the model.
        examples: in the sample.
        tokens: in an example.
        dim: dimension D of the eigenspace.
        gpus: accelerators, a process each.
        probed: parameters that are probed; the others are held in bfloat16. None probes all.
        room: bytes of an accelerator's memory.
        speed: floating-point operations a second that it reaches.
        link: bytes a second that it exchanges.

    Example:
        >>> small = Scale(num_params=1e8, examples=1e4, gpus=8)
        >>> small.fits, small.advice()[0]
        (True, 'fits: 7.43 GiB of 74.5 GiB on each accelerator')
    """

    num_params: float
    examples: float
    tokens: int = 512
    dim: int = 10
    gpus: int = 1
    probed: float | None = None
    room: float = ROOM
    speed: float = SPEED
    link: float = LINK

    def __post_init__(self) -> None:
        for name in ("num_params", "examples", "tokens", "dim", "gpus", "room", "speed", "link"):
            value = getattr(self, name)
            if not 1 <= value < math.inf:
                raise ArgumentError(f"{name} is {value:g}; expected at least 1")
        if self.probed is not None and not self.dim <= self.probed <= self.num_params:
            raise ArgumentError(f"probed is {self.probed:g}; expected {self.dim} to {self.num_params:g} parameters")

    @cached_property
    def vector(self) -> float:
        """Bytes of a vector of the probed parameters."""
        return 4 * (self.num_params if self.probed is None else self.probed)

    @cached_property
    def width(self) -> float:
        """Of the model's layers, if it has the usual shape."""
        return float((WIDTH_OVER_DEPTH * self.num_params / 12) ** (1 / 3))

    @property
    def products(self) -> int:
        """Hessian products of an eigenspace, about."""
        return 4 * self.dim + 10

    # ---- bytes on an accelerator

    def example_bytes(self, vocabulary: int = 0, layers: float | None = None, width: float | None = None) -> float:
        """Of a single example in a product, with its logits where the head is not left to the loss."""
        width = self.width if width is None else width
        layers = width / WIDTH_OVER_DEPTH if layers is None else layers
        saved = layers * (PER_TOKEN * width * self.tokens + PER_PAIR * width / HEAD * self.tokens**2)
        return PEAK_OVER_SAVED * 4 * (saved + 5 * vocabulary * self.tokens)

    @cached_property
    def divided(self) -> bool:
        """Whether the weights are divided among the accelerators: the whole model does not fit into each."""
        return self.gpus > 1 and sum(self._parts(1).values()) > self.room

    def parts(self) -> dict[str, float]:
        """What lies in an accelerator's memory while the eigenspace is sought, bytes."""
        return self._parts(self.gpus if self.divided else 1)

    def _parts(self, shares: int) -> dict[str, float]:
        """The same, of weights in so many shares; a product sums the derivative of divided ones in a whole vector."""
        frozen = 0.0 if self.probed is None else 2 * (self.num_params - self.probed)
        return {
            "the model": (frozen + self.vector) / shares,
            "vectors of a product": VECTORS_IN_FLIGHT * self.vector / shares + (self.vector if shares > 1 else 0),
            "its share of the basis": (math.ceil(1.5 * self.dim) + 11) * self.vector / self.gpus,
            "its share of the eigenspace": self.dim * self.vector / self.gpus,
            "one example": self.example_bytes(),
        }

    @property
    def bytes(self) -> float:
        """All of it."""
        return sum(self.parts().values())

    @property
    def fits(self) -> bool:
        """Whether that is within the accelerator's memory."""
        return self.bytes <= self.room

    # ---- operations, exchanges and time

    @property
    def forward(self) -> float:
        """Floating-point operations of a pass forward over the sample."""
        return 2 * self.num_params * self.tokens * self.examples

    def operations(self) -> dict[str, float]:
        """Floating-point operations of each stage, all accelerators together."""
        alone = PRODUCT_OVER_FORWARD * self.dim
        return {
            "eigenspace": self.products * PRODUCT_OVER_FORWARD * self.forward,
            "projection": (alone if self.divided else 3 * self.dim + 9) * self.forward,
            "draws": POINTS * self.forward,
            "stationarity": DESCENT * self.forward,
        }

    def exchanged(self) -> dict[str, float]:
        """Bytes that each accelerator sends: of a product two exchanges of a vector, of a gradient two in float64; the
        eigenvectors are gathered for the projection, and each draw."""
        away = (self.gpus - 1) / self.gpus
        product = 2 * away * self.vector
        if self.divided:
            return self._exchanged_weights(away)
        return {
            "eigenspace": self.products * product,
            "projection": self.dim * away * self.vector,
            "draws": POINTS * away * self.vector,
            "stationarity": 5 * 2 * product,
        }

    def _exchanged_weights(self, away: float) -> dict[str, float]:
        """The same of divided weights, which are gathered for every microbatch; and for every projected example, beside
        combinations of eigenvectors and derivatives."""
        spare = self.room - (self.bytes - self.example_bytes())
        passes = math.ceil(self.examples / self.gpus / max(1, spare // self.example_bytes()))
        weights = away * (self.vector if self.probed is None else 2 * self.num_params)
        product = GATHERED * weights + (EXCHANGED - GATHERED) * away * self.vector
        together = math.ceil(self.dim / TANGENTS_AT_ONCE)
        example = (2 * self.dim + 1) * away * self.vector + 2 * (1 + together) * weights
        return {
            "eigenspace": self.products * passes * product,
            "projection": self.examples / self.gpus * example,
            "draws": POINTS * passes * weights,
            "stationarity": DESCENT / PRODUCT_OVER_FORWARD * passes * product,
        }

    def seconds(self) -> dict[str, float]:
        """Of each stage."""
        sent = self.exchanged()
        return {
            name: count / (self.gpus * self.speed) + sent[name] / self.link for name, count in self.operations().items()
        }

    # ---- what to do

    def advice(self) -> list[str]:
        """Whether it fits and what to do where it does not, or takes long."""
        of_room = f"{in_bytes(int(self.bytes))} of {in_bytes(int(self.room))} on each accelerator"
        said = [f"fits: {of_room}" if self.fits else f"does not fit: {of_room}"]
        parts = self.parts()
        basis = parts["its share of the basis"] + parts["its share of the eigenspace"]
        if self.divided:
            said.append(
                "the whole model does not fit into each: these are sizes with its weights divided (fully_shard)"
            )
        if not self.fits and self.bytes - basis <= self.room:
            said.append(
                f"the basis goes to the host's memory by itself, where each process needs {in_bytes(int(basis))}"
            )
        elif not self.fits and self.probed is None:
            said.append("probe a part: adapters or the last block leave the others in bfloat16 (--probed 2e7 tells)")
        elif not self.fits:
            said.append("probe fewer parameters, take shorter examples, or more accelerators, which divide the weights")
        total = sum(self.seconds().values())
        if total > 86400:
            enough = max(100, int(self.examples * 86400 / total))
            said.append(f"takes {total / 86400:.3g} days: {enough:,} examples take one (--max-examples)")
        return said

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "sizes": asdict(self),
            "bytes": self.parts(),
            "operations": self.operations(),
            "exchanged": self.exchanged(),
            "seconds": self.seconds(),
            "advice": self.advice(),
        }

    def __str__(self) -> str:
        seconds, sent = self.seconds(), self.exchanged()
        lines = [f"{'stage':<14} {'operations':>11} {'sent by each':>13} {'time':>9}", "-" * 50]
        for name, count in self.operations().items():
            moved = in_bytes(int(sent[name])) if sent[name] else ""
            lines.append(f"{name:<14} {count:>11.2g} {moved:>13} {rough_time(seconds[name]):>9}")
        lines += ["", *(f"{name:<24} {in_bytes(int(size)):>10}" for name, size in self.parts().items()), ""]
        return "\n".join([*lines, *self.advice()])
