"""A model of transformers with its tokenizer and texts as a task."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from curvprobe import losses
from curvprobe.errors import ArgumentError, ArgumentTypeError, CannotProbeTypeError, CurvprobeError, MissingExtraError
from curvprobe.losses import Loss
from curvprobe.risk.calling import Forward
from curvprobe.risk.heads import before_head
from curvprobe.risk.parameters import Selection, select_parameters
from curvprobe.tasks import Task
from curvprobe.tasks.encoding import Encoded, Encoder, Kind, Texts, answers_of

CONTEXT = 512
"""Tokens of an example, at most, where nothing else is said."""

LARGE_VOCABULARY = 4096
"""Words from which the head is left to the loss."""


def task_of_texts(
    model: nn.Module,
    tokenizer: Any,
    texts: Texts,
    *,
    candidates: Texts | int | None = None,
    context: int | None = None,
    params: Selection = None,
    seed: int = 0,
) -> Task:
    """See :meth:`curvprobe.Task.from_transformers`."""
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(
            f"model is a {type(model).__name__}; expected one of transformers, and then its tokenizer"
        )
    kind = kind_of(model)
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    most = context or min(longest or CONTEXT, CONTEXT)
    if most < 2 or (longest is not None and most > longest):
        raise ArgumentError(f"context is {most}; expected 2 to {longest or 'any'} tokens, the model's positions")
    encode = Encoder(kind, model.config, tokenizer, most, seed)
    sample = encode(texts)
    held_out: Encoded | None = None
    if isinstance(candidates, int):
        sample, held_out = sample.split(candidates)
    elif candidates is not None:
        held_out = encode(candidates)
    loss, forward = _loss_of(kind, model, sample)
    names = select_parameters(model, params)
    return Task(
        model=model.eval(),
        loss=loss,
        data=sample.batch,
        candidates=None if held_out is None else held_out.batch,
        params=params,
        forward=forward,
        names=None if held_out is None else held_out.names,
        description=_described(model, names, params, sample, held_out),
    )


def kind_of(model: nn.Module) -> Kind:
    """What a model predicts, by its class."""
    try:
        from transformers.models.auto import modeling_auto as known
    except ImportError as error:
        raise MissingExtraError("a model of transformers needs transformers: pip install 'curvprobe[text]'") from error
    base = _base_of(model)
    classes: dict[Kind, Any] = {
        "causal": known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked": known.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "classifier": known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
    own = [cls.__name__ for cls in type(base).__mro__]
    for kind, names in classes.items():
        if not getattr(base.config, "is_encoder_decoder", False) and any(n in own for n in _flat(names.values())):
            return kind
    raise CannotProbeTypeError(
        f"the model is a {type(base).__name__}; expected a causal or masked language model or a classifier of "
        "sequences, of transformers: for another, make a curvprobe.Task of its inputs and a loss"
    )


def _base_of(model: Any) -> Any:
    """The model itself, or the one under adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _flat(names: Any) -> list[str]:
    return [each for name in names for each in ([name] if isinstance(name, str) else name)]


def _loss_of(kind: Kind, model: nn.Module, sample: Encoded) -> tuple[Loss, Forward | None]:
    """The loss that the model was trained for, with its head left to it where the vocabulary is large."""
    config: Any = model.config
    if kind == "classifier":
        by_answer: dict[str, Loss] = {
            "classes": losses.cross_entropy,
            "numbers": losses.mse,
            "several": losses.binary_cross_entropy,
        }
        return by_answer[answers_of(config)], None
    loss = losses.causal_lm if kind == "causal" else losses.masked_lm
    if config.vocab_size < LARGE_VOCABULARY:
        return loss, None
    first = {name: tensor[:1].to(next(model.parameters()).device) for name, tensor in sample.batch.items()}
    try:
        with torch.no_grad():
            before_head(model.eval(), first)
    except CurvprobeError:  # a head that does more than multiply
        return loss, None
    return loss, before_head


def _described(model: nn.Module, names: list[str], params: Selection, sample: Encoded, held_out: Encoded | None) -> str:
    config: Any = model.config
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    part = f", {sum(sizes[name] for name in names):,} probed" if len(names) < len(sizes) else ""
    which = f" ({params})" if isinstance(params, str) else ""
    attention = getattr(config, "_attn_implementation", None)
    beside = "no candidates" if held_out is None else f"{len(held_out)} candidates"
    return (
        f"{type(_base_of(model)).__name__} of {sum(sizes.values()):,} parameters{part}{which}, {attention} attention; "
        f"{sample.said}: {len(sample)} in the sample, {beside}"
    )
