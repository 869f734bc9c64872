"""A small NanoChat language model trained for about a minute on the text of Python's own help topics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvprobe import losses
from curvprobe.errors import ArgumentError, MissingExtraError
from curvprobe.runtime import progress
from curvprobe.tasks import Task
from curvprobe.tasks.trained import load_or_train

VOCABULARY, CONTEXT = 2048, 128

SHOWN = 60
"""Characters of a candidate by which the report calls it."""


def text(
    k: int = 16,
    *,
    candidates: int = 8,
    steps: int = 120,
    batch: int = 8,
    hidden_size: int = 192,
    intermediate_size: int = 768,
    num_layers: int = 4,
    seed: int = 0,
    cache: Path | None = None,
) -> Task:
    """Text: a small NanoChat (2.4 million parameters) streams through the help topics of Python, cut into sequences.

    An example is one sequence of 128 tokens of a byte-pair encoding trained on the same text. The model sees the
    first ``steps * batch`` sequences, in passes over the training part; the sample is the first ``k`` of them, and
    the candidates come from the last tenth of the sequences, which is never trained on.

    Args:
        k: sequences in the sample.
        candidates: held-out sequences.
        steps: optimiser steps.
        batch: sequences a step.
        hidden_size, intermediate_size, num_layers: of the model, which has four attention heads.
        seed: of the order of the sequences and the initial weights.
        cache: file that keeps the trained weights.
    """
    tokenizer, sequences = _encoded(_topics(), VOCABULARY, CONTEXT)
    sequences = sequences[torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed), device="cpu")]
    held_out = len(sequences) // 10
    training, rest = sequences[:-held_out], sequences[-held_out:]
    if not 1 <= k <= len(training):
        raise ArgumentError(f"k is {k}; the text task has {len(training)} training sequences")
    if not 1 <= candidates <= len(rest):
        raise ArgumentError(f"candidates is {candidates}; the text task has {len(rest)} held-out sequences")
    model = nanochat(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        seed=seed,
    )
    key = f"text {hidden_size}-{intermediate_size}-{num_layers} steps={steps} batch={batch} seed={seed}"
    load_or_train(model, lambda: _train(model, training, steps, batch), cache, key)
    return Task(
        model=model.eval(),
        loss=losses.causal_lm,
        data=training[:k],
        candidates=rest[:candidates],
        names=[" ".join(passage.split())[:SHOWN] for passage in tokenizer.decode_batch(rest[:candidates].tolist())],
        description=f"text: a NanoChat of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters after "
        f"{steps} steps on Python's help topics; {k} training sequences of {CONTEXT} tokens, {candidates} held out",
    )


def help_topics(vocabulary: int = VOCABULARY, context: int = CONTEXT) -> Tensor:
    """The help topics of Python as token sequences (n, context)."""
    return token_sequences(_topics(), vocabulary, context)


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def token_sequences(documents: Sequence[str], vocabulary: int, context: int) -> Tensor:
    """Documents as token sequences (n, context), of a byte-pair encoding trained on them."""
    return _encoded(documents, vocabulary, context)[1]


def _encoded(documents: Sequence[str], vocabulary: int, context: int) -> tuple[Any, Tensor]:
    """The encoding, and the sequences."""
    try:
        from tokenizers import ByteLevelBPETokenizer
    except ImportError as error:
        raise MissingExtraError("text needs transformers and tokenizers: pip install 'curvprobe[text]'") from error
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(documents, vocab_size=vocabulary, show_progress=False)
    tokens = torch.tensor(tokenizer.encode("\n\n".join(documents)).ids, device="cpu")
    count = len(tokens) // context
    return tokenizer, tokens[: count * context].view(count, context)


def nanochat(
    *, vocab_size: int = VOCABULARY, max_position_embeddings: int = CONTEXT, seed: int = 0, **sizes: int
) -> nn.Module:
    """An untrained NanoChat; the other sizes are those of transformers' NanoChatConfig."""
    try:
        from transformers import NanoChatConfig, NanoChatForCausalLM
    except ImportError as error:
        raise MissingExtraError(
            "the text task needs transformers and tokenizers: pip install 'curvprobe[text]'"
        ) from error
    make_config: Any = NanoChatConfig
    config = make_config(
        vocab_size=vocab_size,
        max_position_embeddings=max_position_embeddings,
        attn_implementation="eager",
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        **sizes,
    )
    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(seed)
        model: nn.Module = NanoChatForCausalLM(config)
    return model


def _train(model: nn.Module, training: Tensor, steps: int, batch: int) -> None:
    """Adam with a linear warm-up and decay; one pass after another over the training sequences, in order."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)
    warm_up = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, max(0.02, (steps - step) / max(1, steps - warm_up)))
    )
    with progress.bar("training the language model (steps)", steps) as advance:
        for step in range(steps):
            rows = torch.arange(step * batch, (step + 1) * batch, device="cpu") % len(training)
            tokens = training[rows]
            logits = model(input_ids=tokens).logits
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            advance(1)
    optimizer.zero_grad()
