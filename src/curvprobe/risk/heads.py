"""Models called up to their head, for losses that need no logits as a whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from curvprobe.errors import CannotProbeError, CannotProbeTypeError
from curvprobe.risk.calling import call
from curvprobe.unprojected import Unprojected


def before_head(model: nn.Module, batch: Any) -> Unprojected:
    """A ``forward=`` for language models of Hugging Face: their head is left to the loss, which goes chunk by chunk.

    Curvature products of a model with a large vocabulary then take a fraction of the memory, and no more time:
    ``losses.causal_lm`` and ``losses.masked_lm`` make the logits of some tokens at a time and forget them. The numbers
    are the same.

    Args:
        model: one whose ``get_output_embeddings()`` is a plain ``nn.Linear``, and which does nothing to the logits
            behind it but ``final_logit_softcapping``. That is looked at in every call.
        batch: as without it.

    Returns:
        What the head is applied to, and the head.

    Raises:
        CannotProbeTypeError: if the model has no such head.
        CannotProbeError: if it applies it more than once, or does something else to the logits.

    Example:
        >>> import torch, curvprobe as cp
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=8, n_embd=8, n_layer=1, n_head=2)).eval()
        >>> tokens = torch.arange(12).view(2, 6)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.causal_lm, tokens, forward=cp.before_head)
        >>> abs(risk.value() - cp.EmpiricalRisk(model, cp.losses.causal_lm, tokens).value()) < 1e-6
        True
    """
    embeddings: Any = getattr(model, "get_output_embeddings", None)
    head = embeddings() if embeddings is not None else None
    plain = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and "forward" not in vars(head)
    if not isinstance(head, nn.Linear) or not plain:  # a quantised one is a kind of nn.Linear too
        raise CannotProbeTypeError(
            f"before_head was given a {type(model).__name__}, whose output embeddings are {type(head).__name__}; "
            "expected a language model of Hugging Face with a plain nn.Linear: leave out forward="
        )
    # As wide as the logits, so that a slice of the vocabulary or a bias of its own shows too.
    probe = torch.linspace(-40, 40, head.out_features, device=head.weight.device)[None, None]
    taken: list[Tensor] = []

    def take(hidden: Tensor) -> Tensor:
        taken.append(hidden)
        return probe

    head.forward = take  # type: ignore[method-assign, assignment]
    try:
        outputs = call(model, batch)
    finally:
        del head.forward
    softcap = getattr(getattr(model, "config", None), "final_logit_softcapping", None)
    expected = probe if softcap is None else softcap * torch.tanh(probe / softcap)
    found = getattr(outputs, "logits", None)
    if len(taken) != 1 or not isinstance(found, Tensor) or found.shape != probe.shape or not _same(found, expected):
        raise CannotProbeError(
            f"{type(model).__name__} applies its head {len(taken)} times, or does something to the logits behind it; "
            "expected one use, and nothing but final_logit_softcapping: leave out forward=before_head"
        )
    weight, bias = (None if p is None else p.to(taken[0].dtype) for p in (head.weight, head.bias))
    assert weight is not None
    return Unprojected(taken[0], weight, bias, softcap)


def _same(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found.detach().to(expected), expected, rtol=1e-5)
