"""How often forecasts of what more data takes off the held-out loss are right, by the rules of docs/forecast.md.

Networks of one hidden layer are trained on k examples of data sets and generators on which no rule was tuned, with and
without noise in the labels, with strong and weak decay of the weights and with early stopping. Each rule forecasts from
what a user has: k examples, as many held out, and trainings on parts of the k. The truth is told on other examples, by
training on twice and four times as many. *Expected*: over samples, the mean over all seeds, which the rules are meant
for. *Realised*: that of the one model and the one sample.
Run: python benchmarks/forecast.py
"""

import math
import statistics
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from benchmark import Benchmark, markdown, page
from forecast_cells import DECAY, SETS, Cell, cell, refits

from curvprobe.forecasting import rules
from curvprobe.forecasting.gates import gates
from curvprobe.forecasting.refits import Refits
from curvprobe.forecasting.result import SHIPPED
from curvprobe.forecasting.rules import GainEstimate

OPTIONS = {
    "sets": ([of.name for of in SETS], "data sets and generators"),
    "noises": ([0.0, 0.2], "share of labels that are replaced by another"),
    "ways": (list(DECAY), "of training"),
    "seeds": (8, "samples of each, with initial weights"),
    "splits": (4, "of a sample into halves"),
}
FACTORS = (1.5, 2.0, 3.0)
AHEAD = {"twice": 2, "four times": 4}
AGAIN = 2
"""Trainings on k and on 2 k for the truth, so that initial weights do not make it."""


def measure(options: Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for of in (one for one in SETS if one.name in options.sets):
        for noise in options.noises:
            for how in options.ways:
                found = of_cell(cell(of, noise, how, options.seeds), options.splits)
                rows += found
                print(of.name, noise, how, {name: found[0]["expected"][name] for name in AHEAD}, flush=True)
    return {"rows": [kept(row) for row in rows], "rates": rates(rows), "splits": options.splits}


def kept(row: dict[str, Any]) -> dict[str, Any]:
    """Of the many answers in a row, that of the shipped rule, and the gains of the two that it is made of."""
    said = row["told"]
    two = {rule: said[rule]["twice"][0] for rule in ("gap", "halves")}
    return {name: value for name, value in row.items() if not name.startswith("told")} | {
        "told": {SHIPPED: said[SHIPPED]},
        "gains": two,
    }


def of_cell(tried: Cell, splits: int) -> list[dict[str, Any]]:
    """What each seed's user would be told, and the truth."""
    k = tried.of.k
    first, looked = torch.arange(k), {}
    halves = []
    for split in range(splits):
        order = torch.randperm(k, generator=torch.Generator().manual_seed(split))
        halves += [order[: k // 2], order[k // 2 : 2 * (k // 2)]]
    full, tested = refits(tried, [first] * AGAIN, seed=1)
    for parts in (2, 4, 8):
        size = k // parts
        cut = halves if parts == 2 else [first[place * size : (place + 1) * size] for place in range(parts)]
        looked[parts] = refits(tried, cut, seed=parts)[0]
    ahead = {
        name: refits(tried, [torch.arange(times * k)] * (AGAIN if times == 2 else 1), seed=10 * times)[1].mean(0)
        for name, times in AHEAD.items()
    }
    gains = {name: (tested - losses).mean(0) for name, losses in ahead.items()}  # (S,), over initial weights
    realised = {name: tested[0] - losses for name, losses in ahead.items()}
    about = {
        "set": tried.of.name,
        "kind": tried.of.kind,
        "noise": tried.noise,
        "how": tried.how,
        "expected": {name: _short(float(gain.mean())) for name, gain in gains.items()},
        "expected_stderr": {name: _short(float(gain.std()) / math.sqrt(len(gain))) for name, gain in gains.items()},
        "loss": _short(float(tested.mean())),
    }
    rows = []
    for seed in range(len(tried.x)):
        sizes = [first_of(full[seed], 1), *(looked[parts][seed] for parts in (2, 4, 8))]
        rows.append(
            about
            | {"seed": seed, "realised": {name: _short(float(gain[seed])) for name, gain in realised.items()}}
            | {"told": told(sizes), "told_by_one_split": told([sizes[0], first_of(sizes[1], 2), *sizes[2:]])}
            | {"told_by_size": told([sizes[0], *(first_of(one, 1) for one in sizes[1:])])}
        )
    return rows


def first_of(found: Refits, count: int) -> Refits:
    """The first models alone: those that a user has, without what was trained for the truth's sake."""
    names = ("held_out", "own", "own_weights", "others", "other_weights", "moving", "seconds")
    return replace(found, **{name: getattr(found, name)[:count] for name in names})


def told(sizes: list[Refits]) -> dict[str, Any]:
    """What each rule says, and why it does not."""
    gap, halves = rules.gap(sizes[0]), rules.halves(sizes[0], sizes[1])
    again = GainEstimate("halves", 2 * halves.gain, 2 * halves.stderr, 2 * halves.gain * 1.5)
    found = {
        estimate.rule: estimate
        for estimate in (gap, halves, rules.mean(gap, halves), rules.calibrated(gap, halves), rules.power_law(sizes))
    }
    shut = [reason.kind for reason in gates(sizes)]
    answers = {
        rule: {
            "twice": [_short(estimate.gain), *map(_short, estimate.interval)],
            "four times": [_short(estimate.further), *map(_short, estimate.further_interval)],
            "refused": shut + [reason.kind for reason in estimate.reasons],
        }
        for rule, estimate in found.items()
    }
    plain = {"no change": 0.0, "last halving again": again.gain}
    for rule, gain in plain.items():
        further = gain * 1.5
        answers[rule] = {"twice": [_short(gain)], "four times": [_short(further)], "refused": []}
    return answers


def _short(value: float) -> float:
    return float(f"{value:.4g}") if math.isfinite(value) else value


# ---- what comes of it


def rates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each rule: how many were answered, and how many of these were right."""
    by = {"told": "told", "one split": "told_by_one_split", "first k only": "told_by_size"}
    return {
        name: {rule: {ahead: rate(rows, rule, ahead, told=key) for ahead in AHEAD} for rule in rows[0][key]}
        for name, key in by.items()
    }


def rate(rows: Iterable[dict[str, Any]], rule: str, ahead: str, *, told: str = "told") -> dict[str, Any]:
    """Of one rule, against the expected gain, and against the realised one."""
    rows = list(rows)
    answered = [row for row in rows if not row[told][rule]["refused"]]
    pairs = {
        truth: [(row[told][rule][ahead], row[truth][ahead]) for row in answered] for truth in ("expected", "realised")
    }
    return {
        "tries": len(rows),
        "cells": len({(row["set"], row["noise"], row["how"]) for row in rows}),
        "answered": len(answered) / len(rows),
        **{truth: _rate(found) for truth, found in pairs.items()},
    }


def _rate(pairs: list[tuple[list[float], float]]) -> dict[str, Any]:
    if not pairs:
        return {"within": {}, "covered": None, "error": None}
    hits = {
        str(factor): sum(_hit(value[0], truth, factor) for value, truth in pairs) / len(pairs) for factor in FACTORS
    }
    covered = [value[1] <= truth <= value[2] for value, truth in pairs if len(value) == 3]
    errors = [abs(value[0] - truth) / abs(truth) for value, truth in pairs if truth]
    return {
        "within": hits,
        "covered": sum(covered) / len(covered) if covered else None,
        "error": statistics.median(errors),
    }


def _hit(value: float, truth: float, factor: float) -> bool:
    return value > 0 and truth > 0 and 1 / factor <= value / truth <= factor


# ---- tables

RULE_HEAD = (
    "| forecast of {ahead} | answered | within 1.5 | within 2 | within 3 | 90 % interval holds it | median error | "
    "realised: within 2 | holds it |"
)
KIND_HEAD = "| {kind} | tries | answered | within 1.5 | within 2 | within 3 | 90 % interval holds it |"


def table(result: dict[str, Any]) -> str:
    rows, tables = result["rows"], []
    for ahead in AHEAD:
        found = [(rule, of[ahead]) for rule, of in result["rates"]["told"].items()]
        found += [
            (f"{rule}, {fewer}", result["rates"][fewer][rule][ahead]) for fewer in FEWER for rule in ("halves", SHIPPED)
        ]
        tables.append(markdown(RULE_HEAD.format(ahead=f"{ahead} the examples"), [_line(*one) for one in found]))
    kinds = _kinds(rows)
    lines = [rate_line(kind, rate(found, SHIPPED, "twice")) for kind, found in kinds]
    tables.append(markdown(KIND_HEAD.format(kind="kind of cell"), lines))
    tables.append(markdown(WHY_HEAD, [_why(kind, found) for kind, found in [("all", rows), *kinds]]))
    cells = {(row["set"], row["noise"], row["how"]): row for row in rows}.values()
    unknown = sum(map(unseen, cells))
    note = (
        f"{len(cells)} cells of {len(rows) // len(cells)} samples; in {unknown} cells the expected gain is less than "
        "two of its standard errors above zero, and an answer there counts as the others do"
    )
    return page(result, *tables, note=note)


FEWER = ("one split", "first k only")


def _line(rule: str, found: dict[str, Any]) -> str:
    expected, realised = found["expected"], found["realised"]
    cells = [
        rule,
        _percent(found["answered"]),
        *(_percent(expected["within"].get(str(factor))) for factor in FACTORS),
        _percent(expected["covered"]),
        _percent(expected["error"]),
        _percent(realised["within"].get("2.0")),
        _percent(realised["covered"]),
    ]
    return f"| {' | '.join(cells)} |"


def _kinds(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows by what a cell is."""
    ways: dict[str, Callable[[dict[str, Any]], str]] = {
        "kind": lambda row: str(row["kind"]),
        "noise": lambda row: f"{100 * row['noise']:.0f} % of the labels replaced",
        "how": lambda row: str(row["how"]),
        "set": lambda row: str(row["set"]),
    }
    groups = [
        (kind, [row for row in rows if of(row) == kind])
        for of in ways.values()
        for kind in dict.fromkeys(map(of, rows))
    ]
    groups.append(
        (
            "weak decay, 20 % of the labels replaced",
            [row for row in rows if row["how"] == "weak decay" and row["noise"]],
        )
    )
    groups.append(("no gain to be seen, even on average", [row for row in rows if unseen(row)]))
    groups.append(("a gain to be seen on average", [row for row in rows if not unseen(row)]))
    return [(kind, found) for kind, found in groups if found]


def unseen(row: dict[str, Any]) -> bool:
    """Whether the expected gain is less than two of its standard errors above zero."""
    return bool(row["expected"]["twice"] < 2 * row["expected_stderr"]["twice"])


def rate_line(kind: str, found: dict[str, Any]) -> str:
    """A row below `KIND_HEAD`."""
    expected = found["expected"]
    within = (_percent(expected["within"].get(str(factor))) for factor in FACTORS)
    cells = [kind, str(found["tries"]), _percent(found["answered"]), *within, _percent(expected["covered"])]
    return f"| {' | '.join(cells)} |"


WHY = ("the held-out gap is noise", "the halving is noise", "gap and halving apart")
"""Of the gates, those that closed on any row; a forecast may be refused for several reasons."""

WHY_HEAD = f"| refused because | {' | '.join(WHY)} | another gate |"


def _why(kind: str, rows: list[dict[str, Any]]) -> str:
    refused = ({why if why in WHY else "" for why in row["told"][SHIPPED]["refused"]} for row in rows)
    counts = Counter(why for found in refused for why in found)
    return f"| {' | '.join([kind, *(_percent(counts[why] / len(rows)) for why in (*WHY, ''))])} |"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


BENCHMARK = Benchmark("forecast", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
