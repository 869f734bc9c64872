"""Which tenth of the candidates to add: whether the ranking tells it better than chance, or than the loss alone.

A network is trained to the end on k examples of digits (images), breast cancer (a table) or text (the kind of the
character that stands between four others), with weight decay in the loss; the candidates are ranked at its weights; and
it is trained anew on the k and a tenth of the candidates: those of largest, and those of smallest value in each column
of the ranking, and tenths drawn at random. In half of the cells a fifth of the candidates, none of the sample and none
of the test, have a wrong label. Seeds draw the split, the wrong labels, the initial weights and the random tenths.
Weight decays were set by the test loss of the k alone, with seeds that are not among those here.

What counts was laid down before anything was measured. The test loss decides; the error rate stands beside it. A choice
*beats random* in a cell where the interval of its test loss less that of random tenths (their mean), paired by seed, is
below zero: mean and Student's t, at 95 % for all choices of a cell together, by Bonferroni; it *loses to random* where
the interval is above zero. It *beats plain loss* where the same holds against the tenth of largest loss and against
that of smallest loss, and *beats adding none* likewise (this comparison was added after a trial of one cell with two
seeds). Cells are not corrected for one another: were no choice of any use, at most one cell in twenty would have one
that differs from random.
Run: python benchmarks/which_candidates.py
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import torch
from benchmark import Benchmark, markdown, page
from more_data import Decayed, penalty

import curvprobe as cp

COLUMNS = ("total", "shape", "loss", "gradient_norm", "projected_gradient_norm")
CHOICES = tuple(f"{end} {column.replace('_', ' ')}" for column in COLUMNS for end in ("largest", "smallest"))
PLAIN = ("largest loss", "smallest loss")
REFERENCES = ("none", "random", "all")
MEASURES = ("test_loss", "error")
WINDOW, KINDS = 4, ("aeiou", "bcdfghjklmnpqrstvwxyz", " ")

Data = tuple[torch.Tensor, torch.Tensor]
"""Inputs (n, features) and classes (n,)."""


def digits() -> Data:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x).double() / 16 - 0.5, torch.from_numpy(y)


def cancer() -> Data:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = torch.from_numpy(x).double()
    return (x - x.mean(0)) / x.std(0), torch.from_numpy(y)


def text() -> Data:
    """Windows of Python's help topics, one-hot; a vowel, a consonant, a blank or another is hidden in the middle.

    The topics differ a little from one version of Python to the next.
    """
    from pydoc_data.topics import topics

    known = "abcdefghijklmnopqrstuvwxyz "
    letters = " ".join(" ".join(topics[name] for name in sorted(topics)).lower().split())
    codes = torch.tensor([known.find(letter) % (len(known) + 1) for letter in letters])
    kinds = torch.tensor(
        [next((i for i, kind in enumerate(KINDS) if letter in kind), len(KINDS)) for letter in f"{known}."]
    )
    windows = codes.unfold(0, WINDOW + 1, WINDOW + 1)
    middle = WINDOW // 2
    seen = torch.cat([windows[:, :middle], windows[:, middle + 1 :]], dim=1)
    x = torch.nn.functional.one_hot(seen, len(known) + 1).flatten(1).double()
    return x, kinds[windows[:, middle]]


@dataclass(frozen=True)
class Setting:
    """Data, how much of them is sample, candidates and test at most, and the network's hidden layer and decay."""

    make: Callable[[], Data]
    k: int
    candidates: int
    test: int
    hidden: int
    decay: float


SETS = {
    "digits": Setting(digits, 200, 400, 2000, 16, 3e-4),
    "cancer": Setting(cancer, 60, 300, 2000, 8, 1e-2),
    "text": Setting(text, 400, 400, 5000, 16, 6e-3),
}
OPTIONS = {
    "sets": (list(SETS), "data"),
    "noise": ([0.0, 0.2], "share of the candidates whose label is wrong"),
    "seeds": (8, "splits, initial weights and draws"),
    "draws": (5, "random tenths for each seed, whose mean counts"),
    "share": (0.1, "of the candidates that is added"),
    "dim": (10, "dimension D of the subspace"),
    "iterations": (2000, "of L-BFGS, at most"),
}


@dataclass(frozen=True)
class Split:
    """Sample, candidates and test of one seed, and which candidates have a wrong label."""

    sample: Data
    candidates: Data
    test: Data
    wrong: torch.Tensor
    classes: int


def split(setting: Setting, data: Data, noise: float, seed: int) -> Split:
    draw = torch.Generator().manual_seed(seed)
    x, y = data
    rows = torch.randperm(len(x), generator=draw)
    sizes = (setting.k, setting.candidates, min(setting.test, len(x) - setting.k - setting.candidates))
    sample, candidates, test = ((x[part], y[part]) for part in rows[: sum(sizes)].split(sizes))
    classes = int(y.max()) + 1
    wrong = torch.zeros(setting.candidates, dtype=torch.bool)
    wrong[torch.randperm(setting.candidates, generator=draw)[: round(noise * setting.candidates)]] = True
    other = torch.randint(1, classes, (setting.candidates,), generator=draw)
    labels = torch.where(wrong, (candidates[1] + other) % classes, candidates[1])
    return Split(sample, (candidates[0], labels), test, wrong, classes)


def trained(setting: Setting, data: Data, classes: int, seed: int, iterations: int) -> torch.nn.Module:
    """From the seed's initial weights to a minimum."""
    x, y = data
    sizes = (x.shape[1], setting.hidden, classes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first, last = (torch.nn.Linear(*pair) for pair in pairwise(sizes))
    model = torch.nn.Sequential(first, torch.nn.Tanh(), last).double()
    optimiser = torch.optim.LBFGS(
        model.parameters(),
        max_iter=iterations,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y) + setting.decay * penalty(model)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return model


def tested(model: torch.nn.Module, data: Data) -> dict[str, float]:
    with torch.no_grad():
        outputs = model(data[0])
    loss = torch.nn.functional.cross_entropy(outputs, data[1])
    return {"test_loss": float(loss), "error": float((outputs.argmax(1) != data[1]).double().mean())}


def ranked(model: torch.nn.Module, parts: Split, decay: float, dim: int) -> cp.Analysis:
    def loss(outputs: Any, batch: Any) -> torch.Tensor:
        each = torch.nn.functional.cross_entropy(outputs["logits"], batch[1], reduction="none")
        return each + decay * outputs["penalty"]

    risk = cp.EmpiricalRisk(Decayed(model), loss, parts.sample)
    return cp.analyze(risk, parts.candidates, dim=dim, surface=0, allow_overlap=True)


def chosen(ranking: cp.Ranking, count: int, draws: int, seed: int) -> dict[str, list[list[int]]]:
    """Rows of the candidates by choice; several of them for random."""
    size, draw = len(ranking.total), torch.Generator().manual_seed(seed)
    found = {"none": [[]], "all": [list(range(size))]}
    found["random"] = [torch.randperm(size, generator=draw)[:count].tolist() for _ in range(draws)]
    for name, values in ranking.columns().items():
        order = torch.tensor(values).argsort(descending=True, stable=True)
        for end, rows in (("largest", order[:count]), ("smallest", order[-count:])):
            found[f"{end} {name.replace('_', ' ')}"] = [rows.tolist()]
    return found


def one(name: str, data: Data, noise: float, seed: int, options: Namespace) -> dict[str, Any]:
    """Test loss, error rate and share of wrong labels by choice, of one seed."""
    setting, parts = SETS[name], split(SETS[name], data, noise, seed)
    count = round(options.share * setting.candidates)
    first = trained(setting, parts.sample, parts.classes, seed, options.iterations)
    analysis = ranked(first, parts, setting.decay, options.dim)
    row: dict[str, Any] = {"set": name, "noise": noise, "seed": seed, "sigma": analysis.sigma, "choices": {}}
    known: dict[tuple[int, ...], dict[str, float]] = {}
    for choice, several in chosen(analysis.ranking, count, options.draws, seed).items():
        results = []
        for rows in map(sorted, several):
            if tuple(rows) not in known:
                grown = tuple(
                    torch.cat([old, new[rows]]) for old, new in zip(parts.sample, parts.candidates, strict=True)
                )
                model = trained(setting, grown, parts.classes, seed, options.iterations)
                wrong = float(parts.wrong[rows].double().mean()) if rows else 0.0
                known[tuple(rows)] = {**tested(model, parts.test), "wrong": wrong}
            results.append(known[tuple(rows)])
        row["choices"][choice] = {of: fmean(found[of] for found in results) for of in results[0]}
    print(
        name, noise, seed, {choice: f"{found['test_loss']:.4f}" for choice, found in row["choices"].items()}, flush=True
    )
    return row


def measure(options: Namespace) -> dict[str, Any]:
    rows = []
    for name in options.sets:
        data = SETS[name].make()
        rows += [one(name, data, noise, seed, options) for noise in options.noise for seed in range(options.seeds)]
    cells = [summed(rows, name, noise) for name in options.sets for noise in options.noise]
    said = {"seeds": options.seeds, "draws": options.draws, "share": options.share, "dim": options.dim}
    return {**said, "quantile": quantile(options.seeds), "cells": cells, "rows": rows}


def quantile(seeds: int) -> float:
    """Of Student's t, for intervals that hold at 95 % for all choices together."""
    from scipy.stats import t

    return float(t.ppf(1 - 0.05 / (2 * len(CHOICES)), seeds - 1))


def summed(rows: list[dict[str, Any]], name: str, noise: float) -> dict[str, Any]:
    """A cell: means by choice, and each choice less random and less plain loss, paired by seed."""
    own = [row["choices"] for row in rows if (row["set"], row["noise"]) == (name, noise)]
    means = {
        choice: {of: fmean(row[choice][of] for row in own) for of in (*MEASURES, "wrong")}
        for choice in (*REFERENCES, *CHOICES)
    }
    less = {of: {choice: paired(own, choice, of) for choice in CHOICES} for of in MEASURES}
    setting = SETS[name]
    return {"set": name, "noise": noise, "k": setting.k, "candidates": setting.candidates, "means": means, "less": less}


def paired(own: list[dict[str, Any]], choice: str, of: str) -> dict[str, dict[str, float]]:
    """Mean and standard error of the choice less each of what it may beat."""
    found = {}
    for against in ("random", "none", *PLAIN):
        each = [row[choice][of] - row[against][of] for row in own]
        found[against] = {"mean": fmean(each), "stderr": stdev(each) / len(each) ** 0.5}
    return found


# ---- the table


def verdict(less: dict[str, float], reach: float) -> int:
    """-1 where it is below zero, 1 where it is above, 0 where that cannot be told."""
    mean, half = less["mean"], reach * less["stderr"]
    return -1 if mean + half < 0 else 1 if mean - half > 0 else 0


def table(result: dict[str, Any]) -> str:
    note = (
        f"{result['seeds']} seeds; {100 * result['share']:.0f} % of the candidates; random is the mean of "
        f"{result['draws']} draws; ± is {result['quantile']:.2f} standard errors, half of an interval at 95 % for the "
        f"{len(CHOICES)} choices of a cell together, **bold** where zero is outside; cells are counted, of "
        f"{len(result['cells'])}"
    )
    return page(result, references(result), *(against_random(result, of) for of in MEASURES), wrong(result), note=note)


def cell_name(cell: dict[str, Any]) -> str:
    return f"{cell['set']}, {100 * cell['noise']:.0f} % wrong" if cell["noise"] else cell["set"]


def references(result: dict[str, Any]) -> str:
    named = " | ".join(f"{what}: the k | and a random tenth | and all" for what in ("test loss", "error rate"))
    rows = []
    for cell in result["cells"]:
        losses = " | ".join(f"{cell['means'][name]['test_loss']:.3f}" for name in REFERENCES)
        errors = " | ".join(f"{100 * cell['means'][name]['error']:.1f} %" for name in REFERENCES)
        rows.append(f"| {cell_name(cell)} | {cell['k']} | {cell['candidates']} | {losses} | {errors} |")
    return markdown(f"| data | k | candidates | {named} |", rows)


def against_random(result: dict[str, Any], of: str) -> str:
    """A row for each choice: its difference to random in every cell, and the cells that it wins."""
    cells, reach = result["cells"], result["quantile"]
    what = {"test_loss": "test loss less random's, %", "error": "error rate less random's, points"}[of]
    wins = "beats random | loses to random | beats plain loss | beats adding none"
    rows = []
    for choice in CHOICES:
        less = [cell["less"][of][choice] for cell in cells]
        marks = [verdict(one["random"], reach) for one in less]
        plain = sum(all(verdict(one[name], reach) < 0 for name in PLAIN) for one in less)
        none = sum(verdict(one["none"], reach) < 0 for one in less)
        shown = " | ".join(difference(cell, of, choice, reach) for cell in cells)
        counts = [str(marks.count(-1)), str(marks.count(1)), "" if choice in PLAIN else str(plain), str(none)]
        rows.append(f"| {choice} | {shown} | " + " | ".join(counts) + " |")
    return markdown(f"| {what} | {' | '.join(map(cell_name, cells))} | {wins} |", rows)


def wrong(result: dict[str, Any]) -> str:
    """How many of the chosen have a wrong label, where some have."""
    cells = [cell for cell in result["cells"] if cell["noise"]]
    head = "| wrong labels among the chosen | " + " | ".join(map(cell_name, cells)) + " |"
    rows = [
        f"| {choice} | " + " | ".join(f"{100 * cell['means'][choice]['wrong']:.0f} %" for cell in cells) + " |"
        for choice in ("random", *CHOICES)
    ]
    return markdown(head, rows)


def difference(cell: dict[str, Any], of: str, choice: str, reach: float) -> str:
    """Of the test loss relative to random's, of the error rate as it is; bold where it is told from zero."""
    less = cell["less"][of][choice]["random"]
    scale = 100 / cell["means"]["random"][of] if of == "test_loss" else 100
    shown = f"{scale * less['mean']:+.1f} ± {scale * reach * less['stderr']:.1f}".replace("-", "−")
    return f"**{shown}**" if verdict(less, reach) else shown


BENCHMARK = Benchmark("which_candidates", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
