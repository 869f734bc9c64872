"""Data sets and generators on which forecasts are tried, and networks trained on them, several side by side.

Real tables come with scikit-learn and statsmodels, images with scikit-learn, texts with Python.
"""

from __future__ import annotations

import csv
import importlib.metadata
import inspect
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy
import torch
from torch import Tensor

from curvprobe.criteria.stationarity import over_scatter
from curvprobe.forecasting.refits import Refits

WIDTH, STEPS, RATE = 32, 600, 0.01
DECAY = {"strong decay": 1e-2, "weak decay": 1e-4, "early stopping": 0.0}
"""Times half the squared norm of the weights, added to the loss that is minimised (not to that which is told)."""
MOST_TESTED = 4000
Table = tuple[numpy.ndarray, numpy.ndarray]


@dataclass(frozen=True)
class Set:
    """A population: inputs, and classes or numbers.

    Attributes:
        kind: table, image or text.
        k: examples in a sample; as many are held out, and four times as many are trained on at most.
        classes: 0 for a regression.
        read: all examples, by a seed for those that are generated.
    """

    name: str
    kind: str
    k: int
    classes: int
    read: Callable[[int], Table]


def _generated(name: str, **options: object) -> Callable[[int], Table]:
    def read(seed: int) -> Table:
        from sklearn import datasets

        found: Table = getattr(datasets, name)(n_samples=4000 + 5 * 200, random_state=seed, **options)
        return found

    return read


def _loaded(name: str) -> Callable[[int], Table]:
    def read(_: int) -> Table:
        from sklearn import datasets

        found: Table = getattr(datasets, name)(return_X_y=True)
        return found

    return read


@cache
def _table(name: str, separator: str = ",") -> tuple[list[str], numpy.ndarray]:
    """A table of statsmodels: names of the columns, and numbers."""
    file = next(
        f for f in importlib.metadata.files("statsmodels") or () if f.name == f"{name}.csv" and "src" not in f.parts
    )
    with open(str(file.locate()), encoding="utf-8") as lines:
        head, *rows = csv.reader(lines, delimiter=separator, quotechar="'" if separator == "\t" else '"')
    return head, numpy.array(rows, dtype=float)


def _column(name: str, target: str, to: Callable[[numpy.ndarray], numpy.ndarray], separator: str = ",") -> Callable:
    def read(_: int) -> Table:
        head, rows = _table(name, separator)
        place = head.index(target)
        return numpy.delete(rows, place, axis=1), to(rows[:, place])

    return read


@cache
def _patches(size: int, count: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Grey squares of the two photographs of scikit-learn (count, size, size), and which of the two each is from."""
    from sklearn.datasets import load_sample_images

    draw, squares = numpy.random.default_rng(0), []
    for image in load_sample_images().images:
        grey = image.mean(2) / 255
        for y, x in zip(
            draw.integers(0, grey.shape[0] - size, count // 2),
            draw.integers(0, grey.shape[1] - size, count // 2),
            strict=True,
        ):
            squares.append(grey[y : y + size, x : x + size])
    return numpy.stack(squares), numpy.repeat([0, 1], count // 2)


def _photographs(_: int) -> Table:
    """Which photograph a square of 8 x 8 is from, its brightness taken out."""
    squares, which = _patches(8, 6000)
    flat = squares.reshape(len(squares), -1)
    return flat - flat.mean(1, keepdims=True), which


def _middle(_: int) -> Table:
    """The middle of a square of 5 x 5 from the 16 at its border."""
    squares, _ = _patches(5, 6000)
    border = numpy.ones((5, 5), dtype=bool)
    border[1:4, 1:4] = False
    return squares[:, border], squares[:, 2, 2]


@cache
def _characters() -> Table:
    """The next of 28 characters from the six before it, in the help topics of Python."""
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics[name] for name in sorted(topics)).lower().split())
    codes = numpy.array([ord(c) - 96 if "a" <= c <= "z" else 0 if c == " " else 27 for c in text])
    places = numpy.random.default_rng(0).choice(len(codes) - 6, 7000, replace=False)
    windows = codes[places[:, None] + numpy.arange(6)]
    return numpy.eye(28)[windows].reshape(len(windows), -1), codes[places + 6]


@cache
def _modules() -> Table:
    """Which of three modules of Python a line of source is from, by its hashed triples of characters."""
    import argparse
    import inspect as inspecting
    import typing

    x, y = [], []
    for which, module in enumerate((argparse, inspecting, typing)):
        for line in _lines(module):
            row = numpy.zeros(64)
            for place in range(len(line) - 2):
                row[zlib.crc32(line[place : place + 3].encode()) % 64] += 1
            x.append(row / math.sqrt(len(line)))
            y.append(which)
    return numpy.stack(x), numpy.array(y)


def _lines(module: ModuleType) -> list[str]:
    return sorted({line.strip() for line in inspect.getsource(module).splitlines() if len(line.strip()) > 12})


SETS = (
    Set("breast cancer", "table", 64, 2, _loaded("load_breast_cancer")),
    Set("affairs", "table", 200, 2, _column("fair", "affairs", lambda y: (y > 0).astype(int))),
    Set("votes", "table", 100, 2, _column("anes96", "vote", lambda y: y.astype(int), "\t")),
    Set(
        "hastie",
        "table",
        200,
        2,
        lambda seed: (lambda x, y: (x, (y > 0).astype(int)))(*_generated("make_hastie_10_2")(seed)),
    ),
    Set("quantiles", "table", 200, 3, _generated("make_gaussian_quantiles", n_features=6, n_classes=3)),
    Set("circles", "table", 100, 2, _generated("make_circles", noise=0.2, factor=0.5)),
    Set("diabetes", "table", 50, 0, _loaded("load_diabetes")),
    Set("friedman 1", "table", 200, 0, _generated("make_friedman1", n_features=10, noise=1.0)),
    Set("friedman 3", "table", 200, 0, _generated("make_friedman3", noise=0.1)),
    Set("doctor's visits", "table", 400, 0, _column("randhie", "mdvis", numpy.log1p)),
    Set("photographs", "image", 200, 2, _photographs),
    Set("middle pixel", "image", 200, 0, _middle),
    Set("next character", "text", 400, 28, lambda _: _characters()),
    Set("which module", "text", 200, 3, lambda _: _modules()),
)


def _drawn(seed: int, variables: int) -> tuple[numpy.random.Generator, numpy.ndarray]:
    """Of as many examples as a cell of 200 has."""
    draw = numpy.random.default_rng(seed)
    return draw, draw.standard_normal((5000, variables))


def _linear(seed: int) -> Table:
    _, x = _drawn(seed, 10)
    return x, (x[:, :5].sum(1) > 0).astype(int)


def _curved(seed: int) -> Table:
    _, x = _drawn(seed, 10)
    return x, (x[:, 0] * x[:, 1] + x[:, 2] * x[:, 3] > 0).astype(int)


def _sine(seed: int) -> Table:
    draw = numpy.random.default_rng(seed)
    x = draw.uniform(-1, 1, (5000, 4))
    return x, numpy.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.3 * abs(x[:, 3]) * draw.standard_normal(5000)


def _network(seed: int) -> Table:
    draw, x = _drawn(seed, 12)
    weights = numpy.random.default_rng(77).standard_normal((12, 6))
    return x, numpy.tanh(x @ weights / 3.5).sum(1) + 0.2 * draw.standard_normal(5000)


def _mixture(_: int) -> Table:
    from sklearn.datasets import make_classification

    found: Table = make_classification(5000, n_informative=6, n_redundant=4, n_classes=3, random_state=5)
    return found


FITTED = (
    Set("linear rule", "table", 200, 2, _linear),
    Set("curved rule", "table", 200, 2, _curved),
    Set("sine", "table", 100, 0, _sine),
    Set("random network", "table", 200, 0, _network),
    Set("mixture", "table", 200, 3, _mixture),
    Set("digits", "image", 200, 10, _loaded("load_digits")),
)
"""On these the factor of the calibrated mean and the spreads of the intervals were chosen; none is in the study."""


@dataclass(frozen=True, eq=False)
class Cell:
    """A data set, noise in its labels and a way to train, over several seeds: what is trained and looked at.

    Attributes:
        x, y: (S, n, d), (S, n): for each seed the sample and what it grows by (4 k), the held-out examples (k), and the
            test examples.
    """

    of: Set
    noise: float
    how: str
    x: Tensor
    y: Tensor

    @property
    def held_out(self) -> slice:
        """Rows of the examples that a user would hold out."""
        return slice(4 * self.of.k, 5 * self.of.k)

    @property
    def tested(self) -> slice:
        """Rows of the examples on which the truth is told."""
        return slice(5 * self.of.k, None)


def cell(of: Set, noise: float, how: str, seeds: int) -> Cell:
    """Each seed has examples, an order, noise and a scale of its own; these are of the sample of k."""
    tables = [_shuffled(of, noise, seed) for seed in range(seeds)]
    x, y = torch.stack([x for x, _ in tables]), torch.stack([y for _, y in tables])
    sample = slice(0, of.k)
    x = (x - x[:, sample].mean(1, keepdim=True)) / x[:, sample].std(1, keepdim=True).clamp_min(0.1)
    if not of.classes:
        y = (y - y[:, sample].mean(1, keepdim=True)) / y[:, sample].std(1, keepdim=True)
    return Cell(of, noise, how, x, y)


def _shuffled(of: Set, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    x, y = (torch.as_tensor(numpy.ascontiguousarray(part)) for part in of.read(seed))
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=draw)[: 5 * of.k + MOST_TESTED]
    x, y = x[order].double(), y[order].long() if of.classes else y[order].double()
    changed = torch.rand(len(y), generator=draw) < noise
    if of.classes:
        others = (y + torch.randint(1, of.classes, y.shape, generator=draw)) % of.classes
    else:
        others = y[torch.randperm(len(y), generator=draw)]
    return x, torch.where(changed, others, y)


Weights = list[Tensor]


def trained(cell: Cell, pieces: list[Tensor], seed: int) -> Weights:
    """Networks of one hidden layer, one for each piece of rows and each seed (p S), by Adam on all their examples."""
    x, y = gathered(cell, pieces)
    wide, count, width = x.shape[2], len(x), cell.of.classes or 1
    draw = torch.Generator().manual_seed(seed)
    shapes = ((count, wide, WIDTH), (count, 1, WIDTH), (count, WIDTH, width), (count, 1, width))
    scales = (wide**-0.5, 0.0, WIDTH**-0.5, 0.0)
    weights = [
        (scale * torch.randn(shape, generator=draw, dtype=torch.float64)).requires_grad_()
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    optimiser = torch.optim.Adam(weights, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    stopped = x.shape[1] - x.shape[1] // 5 if cell.how == "early stopping" else x.shape[1]
    best, least = [w.detach().clone() for w in weights], torch.full((count,), math.inf, dtype=torch.float64)
    for step in range(STEPS):
        optimiser.zero_grad()
        fit = losses(cell, weights, x[:, :stopped], y[:, :stopped]).mean(1).sum()
        size = torch.stack([w.square().sum() for w in weights]).sum()
        (fit + DECAY[cell.how] / 2 * size).backward()
        optimiser.step()
        schedule.step()
        if stopped < x.shape[1] and step % 10 == 9:  # a fifth of the rows tells when to stop
            with torch.no_grad():
                found = losses(cell, weights, x[:, stopped:], y[:, stopped:]).mean(1)
            better, least = found < least, torch.minimum(found, least)
            for kept, new in zip(best, weights, strict=True):
                kept[better] = new.detach()[better]
    return best if stopped < x.shape[1] else [w.detach() for w in weights]


def gathered(cell: Cell, pieces: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Inputs (p S, n, d) and targets of some pieces of rows."""
    return torch.cat([cell.x[:, rows] for rows in pieces]), torch.cat([cell.y[:, rows] for rows in pieces])


def losses(cell: Cell, weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    """Losses of examples (p S, n)."""
    outputs = torch.baddbmm(weights[3], torch.tanh(torch.baddbmm(weights[1], x, weights[0])), weights[2])
    if not cell.of.classes:
        return (outputs[..., 0] - y).square()
    found = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none")
    return found.view(x.shape[:2])


def on(cell: Cell, weights: Weights, rows: slice, pieces: int) -> Tensor:
    """Losses of the same rows by every network (p, S, n)."""
    x, y = cell.x[:, rows].repeat(pieces, 1, 1), cell.y[:, rows].repeat(pieces, 1)
    return losses(cell, weights, x, y).view(pieces, len(cell.x), -1)


def refits(cell: Cell, pieces: list[Tensor], seed: int) -> tuple[list[Refits], Tensor]:
    """What is looked at of networks trained on some pieces, for each seed, and their tested losses (p, S)."""
    weights, count, seeds = trained(cell, pieces, seed), len(pieces), len(cell.x)
    x, y = gathered(cell, pieces)
    own, moving = losses(cell, weights, x, y).view(count, seeds, -1), _moving(cell, weights, x, y).view(count, seeds)
    held_out = on(cell, weights, cell.held_out, count)
    others = torch.zeros(count, seeds, 0, dtype=torch.float64)
    if count % 2 == 0:  # halves: what each loses on the other
        swapped = [pieces[place ^ 1] for place in range(count)]
        others = losses(cell, weights, *gathered(cell, swapped)).view(count, seeds, -1)
    one = torch.ones_like(own[:, 0])
    found = [
        Refits(
            held_out=held_out[:, s],
            weights=torch.ones_like(held_out[0, s]),
            own=own[:, s],
            own_weights=one,
            others=others[:, s],
            other_weights=torch.ones_like(others[:, s]),
            moving=moving[:, s],
            seconds=torch.zeros(count),
        )
        for s in range(seeds)
    ]
    return found, on(cell, weights, cell.tested, count).mean(2)


def _moving(cell: Cell, weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    """Squared mean gradient of each network over what its examples' scatter explains (p S,), layer by layer."""
    hidden = torch.tanh(torch.baddbmm(weights[1], x, weights[0]))
    outputs = torch.baddbmm(weights[3], hidden, weights[2])
    if cell.of.classes:
        last = torch.softmax(outputs, -1) - torch.nn.functional.one_hot(y, cell.of.classes)
    else:
        last = 2 * (outputs - y[..., None])
    first, n = (last @ weights[2].transpose(1, 2)) * (1 - hidden.square()), x.shape[1]
    squares = (hidden.square().sum(2) + 1) * last.square().sum(2) + (x.square().sum(2) + 1) * first.square().sum(2)
    means = (x.transpose(1, 2) @ first / n, first.mean(1), hidden.transpose(1, 2) @ last / n, last.mean(1))
    square = torch.stack([mean.square().flatten(1).sum(1) for mean in means]).sum(0)
    scatter = (squares.mean(1) - square) / n
    return torch.tensor(
        [over_scatter(float(a), float(b), n) for a, b in zip(square, scatter, strict=True)], dtype=torch.float64
    )
