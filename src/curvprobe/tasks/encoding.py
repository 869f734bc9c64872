"""Texts as tensors that a language model takes: packed or padded, masked or labelled, the same in every pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from curvprobe.errors import ArgumentError, CannotProbeError
from curvprobe.losses import IGNORE_INDEX

Kind = Literal["causal", "masked", "classifier"]

Texts = str | Sequence[Any]
"""A running text; or examples: strings, pairs ``(text, label)``, or mappings with ``text`` and perhaps ``label``."""

MASKED_SHARE = 0.15
"""Of the tokens that a masked language model is asked for, as in Devlin et al. (2019); of these 8 in 10 are masked, one
is another token and one is left."""

SHOWN = 60
"""Characters of an example by which a report calls it."""


@dataclass(frozen=True)
class Encoded:
    """Examples as a model takes them.

    Attributes:
        batch: (n, T) tensors by name, with ``labels`` where the loss needs them.
        names: beginnings of the texts.
        said: how they were made, for the description.
    """

    batch: dict[str, Tensor]
    names: list[str]
    said: str

    def __len__(self) -> int:
        return len(self.names)

    def split(self, held_out: int) -> tuple[Encoded, Encoded]:
        """The first examples, and so many of the last."""
        if not 1 <= held_out < len(self):
            raise ArgumentError(f"candidates is {held_out}; the texts make {len(self)} examples: expected fewer")
        first = len(self) - held_out
        sample, rest = (
            Encoded({name: tensor[part] for name, tensor in self.batch.items()}, self.names[part], self.said)
            for part in (slice(0, first), slice(first, None))
        )
        return sample, rest


@dataclass(frozen=True, eq=False)
class Encoder:
    """Makes tensors of texts."""

    kind: Kind
    config: Any
    tokenizer: Any
    context: int
    seed: int

    def __call__(self, texts: Texts) -> Encoded:
        """The examples of some texts: pieces of the whole context of a running one, or a row for each."""
        if isinstance(texts, str):
            if self.kind == "classifier":
                raise ArgumentError("a classifier was given one running text; expected texts with labels")
            rows, said = self._pieces(texts)
            labels: list[Any] | None = None
        else:
            strings, labels = _examples(texts, labelled=self.kind == "classifier")
            rows, said = self._padded_rows(strings)
        batch = _stacked(rows, self._padding(rows))
        if self.kind == "masked":
            self._mask(batch)
        elif self.kind == "classifier":
            batch["labels"] = _labels_of(labels or [], self.config)
        names = [" ".join(self._shown(row).split())[:SHOWN] for row in rows]
        return Encoded(batch, names, said)

    def _padding(self, rows: Sequence[Mapping[str, list[int]]]) -> int:
        """The token behind a text: the model's own, by which a classifier may find where the text ends."""
        known = (self.config.pad_token_id, self.tokenizer.pad_token_id)
        if self.kind == "classifier" and known[0] is None and len({len(row["input_ids"]) for row in rows}) > 1:
            raise ArgumentError(
                "the texts have several lengths and the model no padding token; set model.config.pad_token_id to the "
                "one that it was trained with"
            )
        return next((token for token in known if token is not None and token >= 0), 0)

    def _shown(self, row: Mapping[str, list[int]]) -> str:
        text: str = self.tokenizer.decode(row["input_ids"][: 2 * SHOWN], skip_special_tokens=True)
        return text

    def _pieces(self, text: str) -> tuple[list[dict[str, list[int]]], str]:
        """A running text, cut into sequences of the whole context."""
        before, after = self._around() if self.kind == "masked" else ([], [])
        tokens = self.tokenizer(text, add_special_tokens=self.kind == "causal", verbose=False)["input_ids"]
        width = self.context - len(before) - len(after)
        count = len(tokens) // width
        if not count:
            raise ArgumentError(f"the text has {len(tokens)} tokens and one example {width}; take a smaller context")
        rows = [{"input_ids": before + tokens[at * width : (at + 1) * width] + after} for at in range(count)]
        left = len(tokens) - count * width
        return rows, f"{count} pieces of {self.context} tokens" + (f", the last {left} left out" if left else "")

    def _around(self) -> tuple[list[int], list[int]]:
        """Tokens that the tokenizer puts before and after a text."""
        marked = self.tokenizer("a", return_special_tokens_mask=True)
        ids, ordinary = marked["input_ids"], [not special for special in marked["special_tokens_mask"]]
        return ids[: ordinary.index(True)], ids[len(ids) - ordinary[::-1].index(True) :]

    def _padded_rows(self, texts: list[str]) -> tuple[list[dict[str, list[int]]], str]:
        """A sequence for each text, cut to the context."""
        whole = self.tokenizer(texts, verbose=False)
        cut = self.tokenizer(texts, truncation=True, max_length=self.context)
        rows = [{name: list(cut[name][at]) for name in cut if name != "attention_mask"} for at in range(len(texts))]
        lengths = [len(row["input_ids"]) for row in rows]
        least = 2 if self.kind == "causal" else 1
        short = [at for at, length in enumerate(lengths) if length < least]
        if short:
            raise ArgumentError(f"text {short[0]} has {lengths[short[0]]} tokens; expected {least} or more")
        beyond = sum(len(ids) > self.context for ids in whole["input_ids"])
        return rows, f"{len(rows)} texts of {min(lengths)} to {max(lengths)} tokens" + (
            f", {beyond} of them cut" if beyond else ""
        )

    def _mask(self, batch: dict[str, Tensor]) -> None:
        """Hide some tokens, the same ones in every pass; what they were is the label."""
        mask_token = self.tokenizer.mask_token_id
        if mask_token is None:
            raise CannotProbeError("the tokenizer has no mask token; expected that of a masked language model")
        drawn = torch.Generator("cpu").manual_seed(self.seed)
        ids = batch["input_ids"]
        special = torch.tensor(self.tokenizer.all_special_ids, device="cpu")
        ordinary = (batch["attention_mask"] == 1) & ~torch.isin(ids, special)
        if not bool(ordinary.any(1).all()):
            raise ArgumentError(f"text {int((~ordinary.any(1)).nonzero()[0])} has only special tokens")
        order = torch.rand(ids.shape, generator=drawn, device="cpu").masked_fill(~ordinary, 2.0)
        count = (MASKED_SHARE * ordinary.sum(1)).round().clamp_min(1)
        asked = order.argsort(1).argsort(1) < count[:, None]
        batch["labels"] = ids.masked_fill(~asked, IGNORE_INDEX)
        fate = torch.rand(ids.shape, generator=drawn, device="cpu")
        words = min(len(self.tokenizer), self.config.vocab_size)
        other = torch.randint(words, ids.shape, generator=drawn, device="cpu")
        hidden = torch.where(asked & (fate < 0.8), mask_token, ids)
        batch["input_ids"] = torch.where(asked & (fate >= 0.9), other, hidden)


def _examples(texts: Sequence[Any], *, labelled: bool) -> tuple[list[str], list[Any] | None]:
    """Texts, and labels where they are to have some."""
    strings, labels = [], []
    for at, each in enumerate(texts):
        text = each.get("text") if isinstance(each, Mapping) else each if isinstance(each, str) else each[0]
        label = each.get("label") if isinstance(each, Mapping) else None if isinstance(each, str) else each[1]
        if not isinstance(text, str) or (labelled and label is None):
            wanted = "text and label" if labelled else "text"
            raise ArgumentError(f"example {at} is {str(each)[:80]!r}; expected {wanted}, as a pair or in a mapping")
        strings.append(text)
        labels.append(label)
    if not strings:
        raise ArgumentError("there are no texts; expected one or more")
    return strings, labels if labelled else None


def _stacked(rows: Sequence[Mapping[str, list[int]]], padding: int) -> dict[str, Tensor]:
    """Rows of their own lengths as tensors, padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {
        name: torch.tensor(
            [row[name] + [padding if name == "input_ids" else 0] * (longest - len(row[name])) for row in rows],
            device="cpu",
        )
        for name in rows[0]
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in rows], device="cpu")
    batch["attention_mask"] = (torch.arange(longest, device="cpu") < lengths[:, None]).long()
    return batch


def _labels_of(labels: list[Any], config: Any) -> Tensor:
    """A classifier's labels: numbers, names of its classes, or a list for several at once."""
    known = {str(name): at for name, at in (getattr(config, "label2id", None) or {}).items()}
    numbers = [known.get(label, label) if isinstance(label, str) else label for label in labels]
    strange = next((label for label in numbers if isinstance(label, str)), None)
    if strange is not None:
        raise ArgumentError(f"the label {strange!r} is none of the model's: {', '.join(known)}")
    found = torch.tensor(numbers, device="cpu")
    if answers_of(config) != "classes":
        return found.float()
    beyond = [label for label in numbers if isinstance(label, int) and not 0 <= label < config.num_labels]
    if beyond:
        raise ArgumentError(f"the label {beyond[0]} is none of the model's, 0 to {config.num_labels - 1}")
    return found


def answers_of(config: Any) -> Literal["classes", "numbers", "several"]:
    """What a classifier of transformers answers, as it decides it itself."""
    if config.problem_type == "multi_label_classification":
        return "several"
    return "numbers" if config.problem_type == "regression" or config.num_labels == 1 else "classes"
