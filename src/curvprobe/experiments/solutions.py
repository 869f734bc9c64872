"""Where an experiment looks: trained solutions, their samples, and next examples that they were not trained on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from curvprobe import losses
from curvprobe.errors import ArgumentError
from curvprobe.experiments.machine import code_of
from curvprobe.experiments.paper_procedure import Batch, MeanLoss, take
from curvprobe.losses import Loss
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.runtime import progress
from curvprobe.runtime.digest import digest
from curvprobe.runtime.store import Stage, Store
from curvprobe.tasks.digits import digits
from curvprobe.tasks.text import help_topics, nanochat, token_sequences

WARM_UP = 10
"""Optimiser steps over which the learning rate rises; it stays where it is from then on."""


@dataclass(frozen=True)
class Language:
    """Sizes of a NanoChat, and how it streams through its text.

    Attributes:
        vocabulary: tokens of the byte-pair encoding, at most; a short text has fewer.
        context: tokens of a sequence. An example is one sequence.
        hidden_size, num_layers, num_heads, num_kv_heads: of the model; the inner size is four times the hidden one.
        batch: sequences of an optimiser step.
        learning_rate: of AdamW.
    """

    vocabulary: int
    context: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    batch: int
    learning_rate: float

    def model(self, seed: int) -> nn.Module:
        """Untrained."""
        return nanochat(
            vocab_size=self.vocabulary,
            max_position_embeddings=self.context,
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            seed=seed,
        )

    def sequences(self, text: Path | None, store: Store) -> Tensor:
        """Token sequences (n, context) of a text file in UTF-8, or of the help topics of Python.

        The store keeps them: a long text takes minutes, and every experiment needs it.
        """
        if text is None:
            return help_topics(self.vocabulary, self.context)
        try:
            content = text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"the text {str(text)!r} cannot be read as UTF-8: {error}") from error
        parts = [part for part in content.split("\n\n") if part]
        sizes = (self.vocabulary, self.context)
        key = [code_of(Language), *sizes, digest(content.encode())]
        return _kept(store, f"tokens-{digest(key)[:8]}", key, lambda: token_sequences(parts, *sizes))


SMALL = Language(
    vocabulary=512,
    context=32,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    batch=4,
    learning_rate=3e-3,
)
"""155 thousand parameters: minutes on two cores."""

PAPER = Language(
    vocabulary=32768,
    context=512,
    hidden_size=384,
    num_layers=6,
    num_heads=3,
    num_kv_heads=3,
    batch=16,
    learning_rate=1e-3,
)
"""The paper's d6, without its value embeddings: 36 million parameters, for one GPU."""


def _kept(store: Store, name: str, key: object, compute: Callable[[], Tensor]) -> Tensor:
    """What several experiments need, from the first of them; its seconds are no stage's of their own."""
    return Store(store.directory).result(Stage(name, key, Tensor, compute))


@dataclass(frozen=True, eq=False)
class Solution:
    """A trained model with its sample and what comes next.

    Attributes:
        module: the model itself, which may go on training later; the risks have copies of the weights.
        loss: per-example loss.
        risk: on the k examples of the sample, in order.
        new: on examples that it was not trained on, in the order in which they would come.
        data, new_data: the sample and the next examples as batches.
    """

    module: nn.Module
    loss: Loss
    risk: EmpiricalRisk
    new: EmpiricalRisk
    data: Batch
    new_data: Batch

    def __getitem__(self, rows: slice) -> Solution:
        """The same solution with a part of the sample."""
        return Solution(self.module, self.loss, self.risk[rows], self.new, take(self.data, rows), self.new_data)

    @property
    def mean(self) -> MeanLoss:
        """The plain mean loss, as the paper's procedure takes it."""
        return MeanLoss(self.module, self.loss)


def check_length(sequences: Tensor, needed: int) -> None:
    """Refuse a text that is too short for a stream of so many sequences."""
    if len(sequences) < needed:
        raise ArgumentError(
            f"the text has {len(sequences)} sequences of {sequences.shape[1]} tokens and the experiment needs "
            f"{needed}; give a longer one with --text"
        )


def stream(
    language: Language, sequences: Tensor, ks: Sequence[int], candidates: int, *, seed: int, device: str = "cpu"
) -> Iterator[Solution]:
    """Train from scratch through shuffled sequences, in one pass, and stop at every k.

    A solution's sample is what the model was trained on so far, in order; its next examples are those that come next,
    less those that the sample holds too: a text may repeat itself.

    Args:
        language: the model and its training.
        sequences: (n, context).
        ks: multiples of the batch, ascending.
        candidates: next examples at every stop.
        seed: of the order and the initial weights.
        device: where the model lives.

    Raises:
        ValueError: for sizes that the batch does not make, or a text with too few sequences.
    """
    if any(k % language.batch for k in ks) or list(ks) != sorted(set(ks)):
        raise ArgumentError(f"ks is {list(ks)}; expected ascending multiples of the batch, which is {language.batch}")
    check_length(sequences, ks[-1] + candidates)
    tokens = _shuffled(sequences, seed)
    model = language.model(seed).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=language.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    seen = 0
    for k in ks:
        model.train()
        with progress.bar(f"training, seed {seed} (steps)", (k - seen) // language.batch) as advance:
            while seen < k:
                _step(model, optimizer, tokens[seen : seen + language.batch].to(device))
                schedule.step()
                seen += language.batch
                advance(1)
        optimizer.zero_grad()
        yield _solution(model.eval(), tokens, k, candidates, device)


def _shuffled(sequences: Tensor, seed: int) -> Tensor:
    return sequences[torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed))]


def _solution(model: nn.Module, tokens: Tensor, k: int, candidates: int, device: str) -> Solution:
    sample, after = tokens[:k].to(device), unseen(tokens, k, candidates).to(device)
    risk = EmpiricalRisk(model, losses.causal_lm, sample)
    return Solution(model, losses.causal_lm, risk, risk.on(after), sample, after)


def unseen(tokens: Tensor, k: int, count: int) -> Tensor:
    """The first ``count`` sequences after the k-th that are not among the first k.

    Raises:
        ValueError: if there are not so many.
    """
    seen = {tuple(row) for row in tokens[:k].tolist()}
    fresh = (i for i in range(k, len(tokens)) if tuple(tokens[i].tolist()) not in seen)
    rows = list(itertools.islice(fresh, count))
    if len(rows) < count:
        raise ArgumentError(
            f"of the {len(tokens) - k} sequences after the first {k} only {len(rows)} are not among these, and the "
            f"experiment needs {count} to come next; give a longer or less repetitive text with --text"
        )
    return tokens[rows]


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
    loss_sum, weight = losses.causal_lm(model(input_ids=tokens), tokens)
    loss = loss_sum.sum() / weight.sum()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def streamed(
    language: Language,
    sequences: Tensor,
    trained: int,
    k: int,
    candidates: int,
    *,
    seed: int,
    store: Store,
    device: str = "cpu",
) -> Solution:
    """After a stream of ``trained`` sequences, with the first ``k`` of them as the sample.

    The store keeps the weights: several experiments look at the same models.
    """

    def train() -> Tensor:
        solution = next(stream(language, sequences, [trained], candidates, seed=seed, device=device))
        return parameters_to_vector(solution.module.parameters()).detach()

    key = [code_of(Language), str(language), digest(sequences), trained, seed, device]
    weights = _kept(store, f"weights-{digest(key)[:8]}", key, train)
    model = language.model(seed).to(device)
    vector_to_parameters(weights.to(device), model.parameters())
    return _solution(model.eval(), _shuffled(sequences, seed), trained, candidates, device)[:k]


def converged(ks: Sequence[int], candidates: int, *, seed: int, cache: Path | None = None) -> Iterator[Solution]:
    """A tanh MLP on scikit-learn's digits, trained anew to a minimiser on the first k images for every k."""
    for k in ks:
        task = digits(k, seed=seed, cache=None if cache is None else cache / f"digits-seed{seed}-k{k}.safetensors")
        risk, after = task.risk(), take(task.candidates, slice(0, candidates))
        yield Solution(task.model, task.loss, risk, risk.on(after), task.data, after)
