r"""Cross-entropy of a language model before its head, in chunks of tokens: no tensor of all logits is kept, or made.

Double backward of cross-entropy holds about eleven tensors of the size of the logits. In closed form, with the
probabilities :math:`p` of a token, its target's unit vector :math:`e` and a tangent :math:`u` of its logits, the slope
is :math:`p - e` and the second derivative along u is :math:`p \odot u - p \langle p, u \rangle`: both need the logits
of one chunk at a time, which are made again from the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

CHUNK = {"cpu": 1 << 20, "cuda": 1 << 23}
"""Logits that are made at once."""


@dataclass(frozen=True, eq=False)
class Unprojected:
    """What a model's head is applied to, and the head; losses take it in the place of logits.

    Attributes:
        hidden: (n, T, d), or (n, d).
        weight: of the head, (vocabulary, d).
        bias: of the head, (vocabulary,), or None.
        softcap: c of logits ``c tanh(z / c)``; None for plain ones.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None

    def up_to(self, last: int) -> Unprojected:
        """Of the tokens before ``last``, as a slice counts."""
        return replace(self, hidden=self.hidden[:, :last])

    def losses(self, targets: Tensor) -> Tensor:
        """Cross-entropy (tokens,) at targets (tokens,), in nats."""
        hidden = self.hidden.reshape(-1, self._width)
        bias = self._bias()
        learned = self.weight.requires_grad or bias.requires_grad
        found: Tensor = _Losses.apply(hidden, self.weight, bias, targets, self.softcap, learned)  # type: ignore[no-untyped-call]
        return found

    @property
    def _width(self) -> int:
        return self.hidden.shape[-1]

    def _bias(self) -> Tensor:
        return self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Logits (t, vocabulary) of some tokens; with the slopes and bends of what caps them, 1 and 0 if nothing does."""

    logits: Tensor
    slopes: Any
    bends: Any

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, bias: Tensor, softcap: float | None) -> _Chunk:
        plain = torch.addmm(bias, hidden, weight.T)
        if softcap is None:
            return cls(plain, 1.0, 0.0)
        unit = torch.tanh(plain / softcap)
        slopes = 1 - unit * unit
        return cls(softcap * unit, slopes, (-2 / softcap) * unit * slopes)

    def excess(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities, and the same less one at the targets."""
        p = self.logits.softmax(1)
        return p, p.scatter_add(1, targets[:, None], -torch.ones_like(p[:, :1]))


def _chunks(weight: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of the tokens, some tokens at a time."""
    rows = max(1, CHUNK.get(weight.device.type, CHUNK["cpu"]) // len(weight))
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)


def _added(total: tuple[Tensor, ...] | None, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Sums of what the chunks give, in place: those of the head are as large as the head."""
    return parts if total is None else tuple(whole.add_(part) for whole, part in zip(total, parts, strict=True))


class _Losses(torch.autograd.Function):
    """Cross-entropy of every token; derivatives in the head where it is ``learned``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        softcap: float | None,
        learned: bool,  # noqa: ARG004 - for the derivatives
    ) -> Tensor:
        found = []
        for h, y in _chunks(weight, hidden, targets):
            logits = _Chunk.of(h, weight, bias, softcap).logits
            found.append(logits.logsumexp(1) - logits.gather(1, y[:, None])[:, 0])
        return torch.cat(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004 - torch's signature
        *tensors, ctx.softcap, ctx.learned = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        of_hidden, *of_head = _Slopes.apply(slope, *ctx.saved_tensors, ctx.softcap, ctx.learned)  # type: ignore[no-untyped-call]
        return of_hidden, *(of_head if ctx.learned else (None, None)), None, None, None


class _Slopes(torch.autograd.Function):
    """Derivatives of the losses, each with a slope of its own, in the hidden states and the head.

    Those of a head that is not learned are empty: they would be as large as the head.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        slope: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        softcap: float | None,
        learned: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_hidden, of_head = [], None
        for s, h, y in _chunks(weight, slope, hidden, targets):
            chunk = _Chunk.of(h, weight, bias, softcap)
            q = s[:, None] * chunk.excess(y)[1] * chunk.slopes
            of_hidden.append(q @ weight)
            if learned:
                of_head = _added(of_head, (q.T @ h, q.sum(0)))
        head = of_head or (weight.new_zeros(0), weight.new_zeros(0))
        return torch.cat(of_hidden), head[0], head[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        *tensors, ctx.softcap, ctx.learned = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, along_hidden: Tensor, along_weight: Tensor, along_bias: Tensor) -> Any:
        """Of the slopes' inner product with a vector: the second derivative along it, and the losses' own slopes."""
        slope, hidden, weight, bias, targets = ctx.saved_tensors
        of_tokens, of_head = [], None
        for s, h, y, v in _chunks(weight, slope, hidden, targets, along_hidden):
            chunk = _Chunk.of(h, weight, bias, ctx.softcap)
            p, excess = chunk.excess(y)
            tangent = v @ weight.T
            if ctx.learned:
                tangent = tangent + along_bias + h @ along_weight.T
            capped = tangent * chunk.slopes
            bent = p * (capped - (p * capped).sum(1, keepdim=True)) * chunk.slopes + excess * chunk.bends * tangent
            r, q = s[:, None] * bent, s[:, None] * excess * chunk.slopes
            of_hidden = r @ weight
            if ctx.learned:
                of_hidden = of_hidden + q @ along_weight
                of_head = _added(of_head, (torch.addmm(q.T @ v, r.T, h), r.sum(0)))
            of_tokens.append(((excess * capped).sum(1), of_hidden))
        of_slope, of_states = (torch.cat(parts) for parts in zip(*of_tokens, strict=True))
        return of_slope, of_states, *(of_head or (None, None)), None, None, None
