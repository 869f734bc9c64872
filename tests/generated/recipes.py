"""Generated tasks: a recipe of plain values is drawn, and a model, a loss and a sample are made from it."""

import functools
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

import curvprobe as cp
from tests.generated.layers import WIDTH
from tests.generated.modules import IMAGE, POINTWISE, SEQUENCE, SIGNAL, WRAPPERS

VOCABULARY, LENGTH, OUTPUTS = 5, 4, {"classes": 3, "regression": 2, "binary": 2}
LOSSES = {
    "classes": ("cross_entropy", "smoothed", "soft targets", "model_loss"),
    "regression": ("mse", "huber", "log cosh", "quartic", "model_loss"),
    "binary": ("binary",),
    "tagging": ("masked_lm", "model_loss"),
    "causal": ("causal_lm",),
}
CONTAINERS = ("tuple", "dict", "tuples", "dicts", "dataset", "named tuples", "arrays", "nested", "ragged")
QUIRKS = (
    *("float data", "round", "zeros", "large", "grads", "train", "keywords", "extra", "tied", "forward", "padding row"),
    *("unused", "counting", "listed weights", "round weights", "dead"),
    *("alias", "near fit", "small labels", "inputs in place", "outputs in place", "popping", "spread"),
)

PARAMS = (None, "head.*", "blocks.*", "*weight*", "every second")


@dataclass(frozen=True)
class Recipe:
    """What a task is made of, in plain values."""

    seed: int
    family: str  # vector, image, signal or tokens
    task: str
    loss: str
    blocks: tuple[tuple[str, str], ...]  # wrapper and layer
    count: int
    container: str = "tuple"
    outputs: str = "tensor"
    scale: float = 1.0
    penalty: bool = False
    weighted: bool = False
    quirks: frozenset[str] = frozenset()
    params: str | None = None


def _blocks(layers: list[str], wrappers: list[str], most: int) -> st.SearchStrategy:
    return st.lists(st.tuples(st.sampled_from(wrappers), st.sampled_from(layers)), max_size=most)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    family = draw(st.sampled_from(["vector", "tokens", "image", "signal"]))
    tasks = list(LOSSES) if family == "tokens" else ["classes", "regression", "binary"]
    task = draw(st.sampled_from(tasks))
    first = {"vector": {}, "tokens": SEQUENCE, "image": IMAGE, "signal": SIGNAL}[family]
    special = draw(_blocks(list(first), ["plain"], 2)) if first else []
    blocks = tuple(special + draw(_blocks(list(POINTWISE), list(WRAPPERS), 3)))
    quirks = frozenset(draw(st.lists(st.sampled_from(QUIRKS), max_size=4)))
    if any(layer == "PReLU" for _, layer in blocks):  # at 0 its two derivatives take different sides
        quirks -= {"dead", "round", "round weights"}
    return Recipe(
        seed=draw(st.integers(0, 2**16)),
        family=family,
        task=task,
        loss=draw(st.sampled_from(LOSSES[task])),
        blocks=blocks,
        count=draw(st.sampled_from([2, 3, 4, 5, 6, 18])),
        container=draw(st.sampled_from(CONTAINERS)),
        outputs=draw(st.sampled_from(["tensor", "dict", "tuple", "object"])),
        scale=draw(st.sampled_from([1.0, 1e-12, 1e12, -1.0])),
        penalty=draw(st.integers(0, 4)) == 4,
        weighted=draw(st.booleans()),
        quirks=quirks,
        params=draw(st.sampled_from(PARAMS)),
    )


# ---- the model


class Net(nn.Module):
    """A stem, blocks and a head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe, quirks = recipe, recipe.quirks
        per_token = recipe.task in ("tagging", "causal")
        special = {"vector": {}, "tokens": SEQUENCE, "image": IMAGE, "signal": SIGNAL}[recipe.family]
        self.special = nn.ModuleList([special[layer]() for _, layer in recipe.blocks if layer in special])
        self.blocks = nn.ModuleList(
            [WRAPPERS[wrapper](POINTWISE[layer]()) for wrapper, layer in recipe.blocks if layer not in special]
        )
        padding = 0 if "padding row" in quirks else None
        self.stem: nn.Module = {
            "vector": lambda: nn.Linear(3, WIDTH),
            "tokens": lambda: nn.Embedding(VOCABULARY, WIDTH, padding_idx=padding),
            "image": lambda: nn.Conv2d(1, 2, 2),
            "signal": lambda: nn.Conv1d(1, 2, 2),
        }[recipe.family]()
        self.joint = nn.Linear(2, WIDTH) if recipe.family in ("image", "signal") else nn.Identity()
        self.extra = nn.Linear(2, WIDTH, bias=False) if "extra" in quirks else None
        self.head = nn.Linear(WIDTH, VOCABULARY if per_token else OUTPUTS[recipe.task])
        if per_token and "tied" in quirks:
            self.head.weight = self.stem.weight
        if "unused" in quirks:
            self.register_parameter("aside", nn.Parameter(torch.randn(2)))
            self.register_parameter("nothing", nn.Parameter(torch.zeros(0, 3)))
        if "alias" in quirks:
            self.alias = self.stem
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, mask: Tensor | None = None, extra: Tensor | None = None) -> Any:
        if "counting" in self.recipe.quirks:
            self.calls += 1
        if "inputs in place" in self.recipe.quirks and x.is_floating_point():
            x.sub_(0.1).div_(2.0)
        h = self.stem(x)
        mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        for layer in self.special:
            h = layer(h, mask) if self.recipe.family == "tokens" else layer(h)
        if self.recipe.family in ("image", "signal"):
            h = h.flatten(2).square().mean(-1)
        h = self.joint(h)
        if extra is not None and self.extra is not None:
            added = self.extra(extra)
            h = h + (added[:, None] if h.dim() == 3 else added)
        for block in self.blocks:
            h = block(h)
        if h.dim() == 3 and self.recipe.task in OUTPUTS:
            h = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.present(self.head(h), h)

    def present(self, logits: Tensor, hidden: Tensor) -> Any:
        outputs = self.recipe.outputs
        if outputs == "tensor":
            return logits
        if outputs == "tuple":
            return logits, hidden
        named = {"logits": logits, "hidden": [hidden, None], "best": logits.argmax(-1)}
        return named if outputs == "dict" else SimpleNamespace(**named)


class Keywords(Net):
    """The same, taking any keyword."""

    def forward(self, x: Tensor, **more: Tensor) -> Any:
        return super().forward(x, **more)


class WithLoss(Net):
    """The same with a loss of its own, one for each example."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, extra: Tensor | None = None, labels: Tensor | None = None
    ) -> Any:
        outputs = super().forward(x, mask, extra)
        if labels is None:
            return outputs
        losses = [own_loss(self.recipe.task, row, label) for row, label in zip(pick(outputs), labels, strict=True)]
        made = {"loss": torch.stack(losses), "logits": pick(outputs)}
        return SimpleNamespace(**made) if self.recipe.outputs == "object" else made


def pick(outputs: Any) -> Tensor:
    """The prediction."""
    if isinstance(outputs, dict):
        return outputs["logits"]
    if isinstance(outputs, tuple):
        return outputs[0]
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def own_loss(task: str, prediction: Tensor, label: Tensor) -> Tensor:
    """Mean loss of one example, as a model of Hugging Face has it."""
    if task == "regression":
        return (prediction - label).square().mean()
    return functional.cross_entropy(prediction, label)


# ---- the loss


def smooth(prediction: Tensor, target: Tensor, kind: str) -> Tensor:
    """A loss of one's own for regression; (n,)."""
    if kind == "huber":
        return functional.huber_loss(prediction, target, reduction="none").sum(-1)
    error = prediction - target
    return (error.cosh().log() if kind == "log cosh" else error**4).mean(-1)


READY: dict[str, Callable] = {
    "cross_entropy": cp.losses.cross_entropy,
    "smoothed": functools.partial(cp.losses.cross_entropy, label_smoothing=0.2),
    "soft targets": cp.losses.cross_entropy,
    "mse": cp.losses.mse,
    "binary": cp.losses.binary_cross_entropy,
    "masked_lm": cp.losses.masked_lm,
    "causal_lm": cp.losses.causal_lm,
    "model_loss": cp.losses.model_loss,
}


@dataclass
class Loss:
    """The recipe's loss of a batch: one of the ready ones, or of one's own, scaled, weighted and penalised."""

    recipe: Recipe
    keys: list[str]
    model: nn.Module

    def entry(self, batch: Any, key: str) -> Tensor:
        if hasattr(batch, "_fields"):
            return getattr(batch, key)
        return batch[key] if isinstance(batch, dict) else batch[self.keys.index(key)]

    def __call__(self, outputs: Any, batch: Any) -> Any:
        recipe = self.recipe
        if "outputs in place" in recipe.quirks and recipe.loss != "model_loss":
            pick(outputs).mul_(0.5)
        if "popping" in recipe.quirks and isinstance(batch, dict):
            batch = {key: batch.pop(key) for key in ("labels", "weight") if key in batch}
        if "spread" in recipe.quirks and isinstance(batch, dict):
            batch = {**batch}
        ready = READY.get(recipe.loss)
        made = (
            smooth(pick(outputs), self.entry(batch, "labels"), recipe.loss) if ready is None else ready(outputs, batch)
        )
        plain = not isinstance(made, tuple)
        total, weight = (made, torch.ones_like(made)) if plain else (made[0], made[1].to(made[0].dtype))
        total = recipe.scale * total
        if recipe.penalty:
            total = total + recipe.scale * weight * penalty(self.model)
        if not recipe.weighted:
            return total if plain else (total, made[1])
        factor = self.entry(batch, "weight")
        listed = "listed weights" in recipe.quirks
        return total * factor, (weight * factor).tolist() if listed else weight * factor


def penalty(model: nn.Module) -> Tensor:
    return 0.02 * sum(p.double().square().sum() for p in model.parameters() if p.is_floating_point())


# ---- the sample


class Listed(Dataset):
    """A map-style dataset that is no list."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, at: int) -> Any:
        return self.items[at]


def make_items(recipe: Recipe, generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Examples by name: x, labels, and what else there is."""
    items = []
    for _ in range(recipe.count):
        item = {"x": _inputs(recipe, generator)}
        length = item["x"].shape[0]
        item["labels"] = _labels(recipe, item["x"], generator)
        if recipe.family == "tokens":
            valid = (
                length if recipe.container == "ragged" else int(torch.randint(2, length + 1, (), generator=generator))
            )
            item["mask"] = torch.arange(length) < valid
            if recipe.task in ("tagging", "causal"):
                item["labels"] = item["labels"].masked_fill(~item["mask"], -100)
        if "small labels" in recipe.quirks and recipe.loss in ("cross_entropy", "smoothed", "binary"):
            item["labels"] = item["labels"].to(torch.int16 if recipe.count % 2 else torch.int32)
        if "extra" in recipe.quirks:
            item["extra"] = torch.randn(2, generator=generator, dtype=torch.float64)
        if recipe.weighted:
            power = 12 * torch.rand((), generator=generator, dtype=torch.float64) - 6
            item["weight"] = 10**power
        items.append(item)
    return items


def _inputs(recipe: Recipe, generator: torch.Generator) -> Tensor:
    if recipe.family == "tokens":
        length = LENGTH
        if recipe.container == "ragged":
            length = int(torch.randint(2, LENGTH + 2, (), generator=generator))
        return torch.randint(VOCABULARY, (length,), generator=generator)
    shape = {"vector": (3,), "image": (1, 4, 4), "signal": (1, 6)}[recipe.family]
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = (2 * x).round() if "round" in recipe.quirks else x
    return x.float() if "float data" in recipe.quirks else x


def _labels(recipe: Recipe, x: Tensor, generator: torch.Generator) -> Tensor:
    if recipe.task in ("tagging", "causal"):
        labels = torch.randint(VOCABULARY, (len(x),), generator=generator) if recipe.task == "tagging" else x.clone()
        left_out = torch.rand(len(x), generator=generator) < 0.3
        left_out[:2] = False
        return labels.masked_fill(left_out, -100)
    if recipe.loss == "soft targets":
        return torch.rand(3, generator=generator, dtype=torch.float64).softmax(0)
    if recipe.task == "classes":
        return torch.randint(3, (), generator=generator)
    labels = torch.randn(2, generator=generator, dtype=torch.float64)
    return labels.sigmoid().round() if recipe.task == "binary" else labels


@functools.cache
def _named(keys: tuple[str, ...]) -> type:
    return namedtuple("Item", keys)


def pad(items: list[Any]) -> dict[str, Tensor]:
    """Items of unequal length as one batch."""
    ends = {"x": 0, "labels": -100, "mask": False}
    batch = {}
    for key in items[0]:
        parts = [item[key] for item in items]
        if parts[0].dim() and key in ends:
            batch[key] = nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=ends[key])
        else:
            batch[key] = torch.stack(parts)
    return batch


def contain(items: list[dict[str, Tensor]], container: str) -> Any:
    """The examples in the container that a user might have them in."""
    if container in ("tuple", "dict"):
        stacked = {key: torch.stack([item[key] for item in items]) for key in items[0]}
        return stacked if container == "dict" else tuple(stacked.values())
    if container in ("dicts", "ragged"):
        return items if container == "dicts" else Listed(items)
    if container == "named tuples":
        return [_named(tuple(item))(**item) for item in items]
    rows = [tuple(item.values()) for item in items]
    if container == "arrays":
        rows = [tuple(part.numpy() if part.dim() else part.item() for part in row) for row in rows]
    if container == "nested":
        inner = [tuple(part for key, part in item.items() if key not in ("labels", "weight")) for item in items]
        outer = [[item[key] for key in ("labels", "weight") if key in item] for item in items]
        rows = [(inputs, *others) for inputs, others in zip(inner, outer, strict=True)]
    return Listed(rows) if container == "dataset" else rows
