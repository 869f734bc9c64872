"""A task made from a recipe, and what it comes to by plain double backward, example by example."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from hypothesis import reject
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

import curvprobe as cp
from tests.generated.layers import Attending, Cross, Normed
from tests.generated.recipes import (
    Keywords,
    Loss,
    Net,
    Recipe,
    WithLoss,
    contain,
    make_items,
    own_loss,
    pad,
    penalty,
    pick,
    smooth,
)

POSITIONAL = ("tuple", "tuples", "dataset", "named tuples", "arrays", "nested")


def build_model(recipe: Recipe) -> nn.Module:
    """The model; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        kind = WithLoss if recipe.loss == "model_loss" else Keywords if "keywords" in recipe.quirks else Net
        model = kind(recipe).double().eval()
        floating = [p for p in model.parameters() if p.is_floating_point()]
        with torch.no_grad():
            for p in floating:
                if "large" in recipe.quirks:
                    p.data = 3 * p.data
                if "round weights" in recipe.quirks:
                    p.data = (2 * p.data).round()
            if "zeros" in recipe.quirks:
                model.head.weight.zero_()
            if "near fit" in recipe.quirks and recipe.loss == "mse":
                model.head.weight.mul_(1e8)
            if "dead" in recipe.quirks:
                for p in model.stem.parameters():
                    p.zero_()
        if "grads" in recipe.quirks:
            for p in floating[::2]:
                p.grad = torch.randn_like(p)
    for module in model.modules():
        if getattr(module, "single", None) is not None:
            module.single.data = module.single.data.float()
    if "train" in recipe.quirks:
        _train(model)
    return model


def _train(model: nn.Module) -> None:
    """Train mode for all that is neither random nor mixes examples in it."""
    random = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase, nn.RReLU, Attending, Cross, Normed)
    model.train()
    for module in model.modules():
        if isinstance(module, random) or hasattr(module, "parametrizations") or hasattr(module, "weight_u"):
            module.eval()


@dataclass
class Task:
    """A model, a loss and a sample, as they are given to the package and as they are evaluated naively."""

    recipe: Recipe
    model: nn.Module
    items: list[dict[str, Tensor]]

    @classmethod
    def make(cls, recipe: Recipe) -> "Task":
        items = make_items(recipe, torch.Generator().manual_seed(recipe.seed + 1))
        task = cls(recipe, build_model(recipe), items)
        if task.near_fit:
            task.fit()
        return task

    @property
    def near_fit(self) -> bool:
        """Whether predictions and targets are large and almost the same."""
        return "near fit" in self.recipe.quirks and self.recipe.loss == "mse"

    def fit(self) -> None:
        """Bring the targets to the predictions."""
        naive = self.at()
        for item in self.items:
            prediction = pick(naive.outputs(item))[0].detach()
            prediction = 0.5 * prediction if "outputs in place" in self.recipe.quirks else prediction
            item["labels"] = prediction + 1e-2 * item["labels"]

    @property
    def unit(self) -> float:
        """Size of an ordinary loss and its derivatives."""
        return abs(self.recipe.scale)

    def unit_of(self, answer: str) -> float:
        """Size of the terms that an answer is rounded from."""
        if answer == "weights":
            return 1.0
        large = 1e4 if answer in ("losses", "projected loss", "value") else 1e14
        return self.unit * (large if self.near_fit else 1.0)

    # ---- as given

    @cached_property
    def keys(self) -> list[str]:
        if self.recipe.container == "nested":
            return ["inputs", *(key for key in ("labels", "weight") if key in self.items[0])]
        return list(self.items[0])

    @cached_property
    def loss(self) -> Loss:
        return Loss(self.recipe, self.keys, self.model)

    def data(self, rows: Sequence[int] | None = None) -> Any:
        chosen = self.items if rows is None else [self.items[row] for row in rows]
        return contain(chosen, self.recipe.container)

    @property
    def collate(self) -> Callable | None:
        return pad if self.recipe.container == "ragged" else None

    @property
    def inputs(self) -> list[str]:
        """What the model is given, by the names of its arguments."""
        known = ["x", "mask", "extra", *(["labels"] if self.recipe.loss == "model_loss" else [])]
        return [key for key in known if key in self.items[0]]

    @property
    def forward(self) -> Callable | None:
        positional = self.recipe.container in POSITIONAL
        more = len(self.inputs) > 1 or self.recipe.container == "nested"
        if "forward" not in self.recipe.quirks and not (positional and more):
            return None

        def call(model: nn.Module, batch: Any) -> Any:
            if self.recipe.container == "nested":
                given = dict(zip([key for key in self.inputs if key != "labels"], batch[0], strict=True))
                return model(**given, **({"labels": batch[1]} if "labels" in self.inputs else {}))
            if "spread" in self.recipe.quirks and isinstance(batch, dict):
                batch = dict(batch)
            return model(**{key: self.loss.entry(batch, key) for key in self.inputs})

        return call

    @property
    def params(self) -> Any:
        pattern = self.recipe.params
        if pattern is None or not any(self._matches(names) for names in self._trainable()):
            return None
        return self._accepts if pattern == "every second" else [pattern]

    def risk(self, rows: Sequence[int] | None = None, **options: Any) -> cp.EmpiricalRisk:
        given = {"params": self.params, "collate_fn": self.collate, "forward": self.forward, **options}
        return cp.EmpiricalRisk(self.model, self.loss, self.data(rows), **given)

    # ---- naively

    def _accepts(self, name: str) -> bool:
        return sum(map(ord, name)) % 2 == 0

    def _matches(self, names: list[str]) -> bool:
        pattern = self.recipe.params
        accepts = self._accepts if pattern == "every second" else lambda name: fnmatchcase(name, pattern)
        return any(accepts(name) for name in names)

    def _trainable(self) -> list[list[str]]:
        names: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if parameter.requires_grad:
                names.setdefault(id(parameter), []).append(name)
        return list(names.values())

    @cached_property
    def names(self) -> list[str]:
        """Of the probed parameters, each once."""
        everything = self.params is None
        return [names[0] for names in self._trainable() if everything or self._matches(names)]

    def at(self, displacement: Tensor | None = None) -> "Naive":
        """The naive model, made anew, with other parameters."""
        model = build_model(self.recipe)
        tied = self.recipe.family == "tokens" and getattr(model.head, "weight", None) is model.stem.weight
        if tied:
            model.stem.padding_idx = None
        params = [dict(model.named_parameters())[name] for name in self.names]
        for p in model.parameters():
            p.grad = None
        if displacement is not None:
            with torch.no_grad():
                for p, part in zip(params, displacement.split([p.numel() for p in params]), strict=True):
                    step = part.view(p.shape).clone()
                    if isinstance(model.stem, nn.Embedding) and p is model.stem.weight and model.stem.padding_idx == 0:
                        step[0] = 0
                    p.data = p.data + step
        return Naive(self.recipe, model, params)


@dataclass
class Naive:
    """One example at a time, by plain autograd."""

    recipe: Recipe
    model: nn.Module
    params: list[Tensor]

    def outputs(self, item: dict[str, Tensor]) -> Any:
        batch = {key: part[None] for key, part in item.items() if key not in ("labels", "weight")}
        batch = {key: part.double() if part.is_floating_point() else part for key, part in batch.items()}
        if self.recipe.loss == "model_loss":
            batch["labels"] = item["labels"][None]
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                return self.model(**{key: part.clone() for key, part in batch.items()})
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    def loss(self, outputs: Any, item: dict[str, Tensor]) -> tuple[Tensor, float]:
        """Mean loss and weight of the example."""
        logits, recipe, labels, count = pick(outputs)[0], self.recipe, item["labels"], 1
        logits = 0.5 * logits if "outputs in place" in recipe.quirks else logits
        labels = labels if labels.is_floating_point() else labels.long()
        if recipe.loss == "model_loss":
            mean = (outputs["loss"] if isinstance(outputs, dict) else outputs.loss)[0]
            count = int((labels != -100).sum()) if not labels.is_floating_point() else 1
        elif recipe.task in ("tagging", "causal"):
            logits, labels = (logits, labels) if recipe.task == "tagging" else (logits[:-1], labels[1:])
            kept = labels != -100
            count = int(kept.sum())
            mean = -sum(logits.log_softmax(-1)[t, labels[t]] for t in range(len(labels)) if kept[t]) / count
        elif recipe.task == "classes":
            smoothing = 0.2 if recipe.loss == "smoothed" else 0.0
            mean = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        elif recipe.task == "binary":
            mean = -(labels * functional.logsigmoid(logits) + (1 - labels) * functional.logsigmoid(-logits)).mean()
        else:
            mean = (
                own_loss("regression", logits, labels) if recipe.loss == "mse" else smooth(logits, labels, recipe.loss)
            )
        mean = recipe.scale * mean
        if recipe.penalty:
            mean = mean + recipe.scale * penalty(self.model)
        return mean, count * float(item.get("weight", 1.0))

    def losses(self, items: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Mean losses and weights, (n,)."""
        pairs = [self.loss(self.outputs(item), item) for item in items]
        return torch.stack([mean.detach() for mean, _ in pairs]), torch.tensor(
            [w for _, w in pairs], dtype=torch.float64
        )

    def derivatives(self, item: dict[str, Tensor], vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (N,) of the example's mean loss, and products (N, b) of its Hessian with vectors."""
        mean, _ = self.loss(self.outputs(item), item)
        if not mean.requires_grad:
            return torch.zeros_like(vectors[:, 0]), torch.zeros_like(vectors)
        gradient = flat_gradient(mean, self.params, create_graph=True)
        if not gradient.requires_grad:
            return gradient, torch.zeros_like(vectors)
        products = [flat_gradient(gradient @ column, self.params) for column in vectors.T]
        return gradient.detach(), torch.stack(products, dim=1)

    def ggn(self, item: dict[str, Tensor], vectors: Tensor) -> Tensor:
        """Products (N, b) of the example's Gauss-Newton matrix with vectors: J' (d2l / dz2) J, all dense."""
        outputs = self.outputs(item)
        found, structure = pytree.tree_flatten(outputs)
        floating = [isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in found]
        replaced = [z.detach().requires_grad_() if kept else z for z, kept in zip(found, floating, strict=True)]
        leaves, free = ([z for z, kept in zip(part, floating, strict=True) if kept] for part in (found, replaced))
        mean, _ = self.loss(pytree.tree_unflatten(replaced, structure), item)
        slope = flat_gradient(mean, free, create_graph=True)
        curved = torch.stack([flat_gradient(s, free) for s in slope])
        rows = [flat_gradient(z, self.params) for leaf in leaves for z in leaf.reshape(-1)]
        jacobian = torch.stack(rows)
        return jacobian.T @ (curved @ (jacobian @ vectors))


def flat_gradient(scalar: Tensor, inputs: list[Tensor], create_graph: bool = False) -> Tensor:
    """Flat, and zero where nothing depends."""
    if not scalar.requires_grad:
        return torch.cat([torch.zeros_like(x).reshape(-1) for x in inputs])
    parts = torch.autograd.grad(
        scalar, inputs, create_graph=create_graph, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.reshape(-1) for part in parts])


def depends(task: Task) -> bool:
    """Whether some example's loss depends on a probed parameter, and all are finite."""
    naive = task.at()
    means = [naive.loss(naive.outputs(item), item)[0] for item in task.items]
    if not all(bool(mean.isfinite()) for mean in means):
        reject()
    return any(
        mean.requires_grad
        and any(g is not None for g in torch.autograd.grad(mean, naive.params, allow_unused=True, retain_graph=True))
        for mean in means
    )
