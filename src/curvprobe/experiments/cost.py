"""How long an experiment will take and how much memory: counted from its settings, at rates measured or assumed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from curvprobe.curvature.matrix import hessian
from curvprobe.errors import NotFiniteError
from curvprobe.experiments.machine import timed
from curvprobe.experiments.solutions import Language
from curvprobe.risk.empirical import EmpiricalRisk

ASSUMED_RATE = 2e13
"""Floating-point operations a second of one GPU in float32, for a dry run: below half of an H100's peak."""

PRODUCT, TRAINING = 6, 3
"""Forward passes' worth of arithmetic in a Hessian-vector product, and in a training step."""


@dataclass(frozen=True)
class Cost:
    """What an experiment goes through.

    Attributes:
        trained: examples in optimiser steps.
        forwards: examples in forward passes.
        products: examples in Hessian-vector products.
        vectors: vectors of the model's size that are held at once.

    Work in float64 counts twice.
    """

    trained: int
    forwards: int
    products: int
    vectors: int

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        return Cost(
            self.trained + other.trained,
            self.forwards + other.forwards,
            self.products + other.products,
            max(self.vectors, other.vectors),
        )

    def __mul__(self, times: int) -> Cost:
        """So many times, one after the other."""
        return Cost(self.trained * times, self.forwards * times, self.products * times, self.vectors)

    def seconds(self, risk: EmpiricalRisk) -> float:
        """Estimate at the pace of this risk's model, from one pass and one product over it."""
        vector = torch.ones(risk.num_params, dtype=risk.dtype, device=risk.device)
        H = hessian(risk)
        _ = H @ vector  # the checks of a first product are not its pace
        product = timed(risk.device, lambda: H @ vector)[1] / len(risk)
        forward = timed(risk.device, lambda: risk.losses(0 * vector))[1] / len(risk)
        return self.products * product + self.forwards * forward + self.trained * TRAINING * forward


def eigenspace_cost(examples: int, dim: int) -> Cost:
    """Of a certified eigenspace: about 30 products, and 4 more a dimension."""
    return Cost(0, 0, examples * (30 + 4 * dim), (3 * dim) // 2 + 10 + dim)


@dataclass(frozen=True)
class DryRun:
    """What the full run would take, from one sequence through the model at its full size.

    Attributes:
        num_params: N.
        logits: shape of the model's output for one example: (1, context, vocabulary).
        forward_flops: floating-point operations of one example's forward pass.
        total_flops: of the whole experiment, a product counted as 6 passes.
        hours: at ``ASSUMED_RATE``.
        bytes: vectors held, and one example of a product.
        needed, available: sequences that the experiment goes through, and those that the text has.
    """

    num_params: int
    logits: tuple[int, ...]
    forward_flops: int
    total_flops: float
    hours: float
    bytes: int
    needed: int
    available: int

    def __str__(self) -> str:
        short = "" if self.available >= self.needed else ": give a longer one with --text"
        return (
            f"{self.num_params / 1e6:.1f} M parameters; one example gives logits of shape {self.logits}\n"
            f"{self.forward_flops:.2e} floating-point operations a forward pass, {self.total_flops:.1e} "
            f"in all: {self.hours:.2g} hours at {ASSUMED_RATE:.0e} a second\n"
            f"{self.bytes / 2**30:.1f} GiB for the basis and one example of a Hessian product; more memory takes more "
            f"examples at once\n{self.needed} sequences are needed, and the text has {self.available}{short}"
        )


def dry_run(cost: Cost, language: Language, risk: EmpiricalRisk, needed: int, available: int) -> DryRun:
    """Pass one example through the model at its full size, and one Hessian-vector product."""
    one = risk[:1]
    with FlopCounterMode(display=False) as counter:
        one.losses(torch.zeros(one.num_params, dtype=one.dtype, device=one.device))
    flops = counter.get_total_flops()
    product = hessian(one) @ torch.ones(one.num_params, dtype=one.dtype, device=one.device)
    if not bool(product.isfinite().all()):
        raise NotFiniteError("a Hessian-vector product at full size is not finite")
    total = flops * float(cost.forwards + TRAINING * cost.trained + PRODUCT * cost.products)
    held = cost.vectors * one.num_params * one.dtype.itemsize + one.footprint.least
    logits = (1, language.context, language.vocabulary)
    return DryRun(one.num_params, logits, flops, total, total / ASSUMED_RATE / 3600, held, needed, available)
