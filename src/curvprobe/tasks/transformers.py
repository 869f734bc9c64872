"""A model of transformers with its tokenizer and texts as a task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from curvprobe import losses
from curvprobe.errors import (
    ArgumentError,
    ArgumentTypeError,
    CannotProbeError,
    CannotProbeTypeError,
    CurvprobeError,
    MissingExtraError,
)
from curvprobe.losses import Loss
from curvprobe.risk.calling import Forward, call
from curvprobe.risk.heads import before_head
from curvprobe.risk.parameters import Selection, select_parameters
from curvprobe.risk.undisturbed import undisturbed
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
    longest = _positions(model, tokenizer)
    most = context or min(longest, CONTEXT)
    if not 2 <= most <= longest:
        raise ArgumentError(f"context is {most}; expected 2 to {longest} tokens, the model's positions")
    names = select_parameters(model, params)
    encode = Encoder(kind, model.config, tokenizer, most, seed)
    sample, held_out = _divided(encode, texts, candidates)
    with _evaluated(model):
        loss, forward = _loss_of(kind, model, sample)
        _check_padding(kind, model, loss, sample)
        if held_out is not None:
            _check_padding(kind, model, loss, held_out)
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


def _divided(encode: Encoder, texts: Texts, candidates: Texts | int | None) -> tuple[Encoded, Encoded | None]:
    """The sample and the candidates: other texts, or the last of these."""
    sample = encode(texts)
    if isinstance(candidates, int):
        return sample.split(candidates)
    return sample, None if candidates is None else encode(candidates)


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
    if getattr(config, "vocab_size", 0) < LARGE_VOCABULARY:
        return loss, None
    try:
        before_head(model, _row(model, sample, 0))
    except CurvprobeError:  # a head that does more than multiply
        return loss, None
    return loss, before_head


# ---- what is looked at before


def _positions(model: Any, tokenizer: Any) -> int:
    """Tokens that an example may have: of the model, of its tokenizer, and of positions that are counted from a padding
    index on, as RoBERTa does it."""
    limits = [getattr(model.config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            limits.append(part.num_embeddings - part.padding_idx - 1)
    return min((limit for limit in limits if limit is not None), default=CONTEXT)


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """A block in which the model is evaluated, and after which it is what it was."""
    modes = [(part, False) for part in model.modules()]
    with undisturbed(model, modes, next(model.parameters()).device), torch.no_grad():
        yield


def _row(model: nn.Module, encoded: Encoded, at: int) -> dict[str, Tensor]:
    """One example, where the model is."""
    device = next(model.parameters()).device
    return {name: tensor[at : at + 1].to(device) for name, tensor in encoded.batch.items()}


def _check_padding(kind: Kind, model: nn.Module, loss: Loss, encoded: Encoded) -> None:
    """Refuse a model that takes the padding of the shortest text for text."""
    lengths = encoded.batch["attention_mask"].sum(1)
    shortest = int(lengths.argmin())
    padded, alone = (_row(model, encoded, shortest) for _ in range(2))
    for name in alone.keys() - ({"labels"} if kind == "classifier" else set()):
        alone[name] = alone[name][:, : int(lengths[shortest])]
    found = []
    for batch in (alone, padded):
        told = loss(call(model, batch), batch)
        found.append(float(told[0] if isinstance(told, tuple) else told))
    rounding = 0.1 if torch.finfo(next(model.parameters()).dtype).bits < 32 else 1e-3
    if abs(found[0] - found[1]) > rounding * max(abs(found[0]), 1e-3):
        raise CannotProbeError(
            f"the loss of text {shortest} is {found[0]:.4g} by itself and {found[1]:.4g} with padding behind it, which "
            "the model takes for text; set model.config.pad_token_id to the token that it was trained with, or give "
            "texts of one length"
        )


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
