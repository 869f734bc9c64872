"""The small tables of docs/paper.md, one a figure: from the committed results of the paper's experiments.

They stand here and not with the experiments because a point of an experiment is kept under its file's code: a column
more would have everything computed anew. All that a command prints stands folded below each.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmark import RESULTS, markdown, read

from curvprobe.experiments.error_map import below_rounding
from curvprobe.experiments.over_seeds import said
from curvprobe.experiments.ratio import LABELS
from curvprobe.experiments.timing import cells_of

# ---- cells


def short(value: float, digits: int = 3) -> str:
    """So many digits, and an exponent as the page's text has it: 2e-8."""
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e")


def in_extremes(median: float, low: float, high: float) -> str:
    return f"{short(median)} [{short(low, 2)}, {short(high, 2)}]"


def with_error(mean: float, error: float) -> str:
    return f"{short(mean, 2)} ± {short(error, 1)}"


def between(values: Sequence[float], digits: int = 2) -> str:
    return f"{short(min(values), digits)} to {short(max(values), digits)}" if values else "below rounding"


def noted(head: str, rows: list[str], note: str) -> str:
    """A table whose numbers are not broken into lines, and below it what they are."""
    return f'<div class="numbers" markdown="1">\n\n{markdown(head, rows)}\n\n</div>\n\n({note}.)'


# ---- tables


def decay(record: dict[str, Any]) -> str:
    result = record["result"]
    ks, sigma, middle = result["ks"], len(result["sigmas"]) // 2, len(result["ks"]) // 2
    criteria: list[tuple[str, Callable[[Any], Any]]] = [
        ("Δ_1", lambda found: found["delta1"]),
        ("Δ_2", lambda found: found["delta2"][sigma]),
        (f"Δ_2^({result['dims'][-1]})", lambda found: found["delta2_subspace"][-1][sigma]),
    ]
    rows = []
    for which, title, shown in (
        ("expected", f"mean over {result['candidates']} next examples", criteria),
        ("single", "one next example", criteria[:2]),
        ("literal", "released procedure", criteria[:2]),
    ):
        if which in result["exponents"]:
            both = (result["exponents"][which], result["late_exponents"][which])
            rows += [f"| {label}, {title} | {' | '.join(said(of(found)) for found in both)} |" for label, of in shown]
    both = (result["dispersion"][at]["total"][sigma] for at in ("exponents", "late_exponents"))
    rows.append(f"| V, landscape dispersion | {' | '.join(map(said, both))} |")
    head = f"| goes as k to the | k from {ks[0]} to {ks[-1]} | k from {ks[middle]} to {ks[-1]} |"
    note = f"sigma {result['sigmas'][sigma]:g}; means over {record['settings']['seeds']} seeds, 95 % intervals"
    return noted(head, rows, note)


def ratio(record: dict[str, Any]) -> str:
    result = record["result"]
    sigmas, rows = range(len(result["sigmas"])), ["| the paper | about 1 | about 1 | 0.01 to 1000 |"]
    for name, label in LABELS:
        low, high = (result["all_criterion"][name][end] for end in ("low", "high"))
        cells = [between([of[s] for of in low + high], 3) for s in sigmas]
        rows.append(f"| Δ_2^(D) / Δ_2: {label} | {' | '.join(cells)} |")
    for name, label in LABELS[:2]:
        shape = result["all_shape"][name]
        cells = [in_extremes(*(shape[end][-1][s] for end in ("median", "low", "high"))) for s in sigmas]
        rows.append(f"| shape ratio, D = {result['dims'][-1]}: {label} | {' | '.join(cells)} |")
    head = "| | " + " | ".join(f"sigma {short(sigma)}" for sigma in result["sigmas"]) + " |"
    note = (
        f"smallest to largest over {result['seeds']} seeds, all k and D of {', '.join(map(str, result['dims']))}; "
        "of the shape ratio median [smallest, largest] over seeds and k"
    )
    return noted(head, rows, note)


def subspaces(record: dict[str, Any]) -> str:
    compared = record["result"]["subspaces"]
    rows = []
    for i, name in enumerate(compared["names"]):
        blocks = (compared["bent_of_top"], compared["tilted_of_top"])
        cells = [in_extremes(*(block[end][i] for end in ("median", "low", "high"))) for block in blocks]
        rows += [f"| {name} | {' | '.join(cells)} |"] if name != "top" else []
    head = "| over that of the top eigenspace | 2 &#124;B&#124;² + (tr B)² | &#124;c&#124;² |"
    seeds = record["settings"]["seeds"]
    note = f"k = {compared['k']}, D = {compared['dim']}; median [smallest, largest] over {seeds} seeds"
    return noted(head, rows, note)


def validity(small: dict[str, Any], large: dict[str, Any]) -> str:
    rows = ["| the paper, float32 | 7e-4 to 1e-3 | 7e-4 to 1e-3 | 0.04 | 30 | |"]
    for record, size in ((small, ""), (large, ", at the paper's size")):
        result = record["result"]
        sigmas, errors = result["sigmas"], result["anchored_in_float64"]
        at = [nearest(sigmas, sigma) for sigma in (1e-7, 1e-3, 1e-2, 1e-1)]
        for p, precision in enumerate(result["precisions"]):
            cells = " | ".join(with_error(errors["mean"][p][i], errors["stderr"][p][i]) for i in at)
            changes = zip(sigmas, result["relative_to_change"]["mean"][p], strict=True)
            good = [sigma for sigma, change in changes if change is not None and change < 0.05]
            held = between(good, 1) if good else "nowhere"
            rows.append(f"| {precision}{size} | {cells} | {held} |")
    head = "| error of the loss | sigma 1e-7 | 0.001 | 0.01 | 0.1 | below 5 % of the change: sigma |"
    sizes = [f"{record['result']['num_params']:,}" for record in (small, large)]
    seeds = small["settings"]["seeds"]
    return noted(
        head, rows, f"± standard error over {seeds} models; {sizes[0]} parameters, at the paper's size {sizes[1]}"
    )


def nearest(values: Sequence[float], wanted: float) -> int:
    """Index of a positive value that is nearest to another on a logarithmic scale."""
    return min(range(len(values)), key=lambda i: abs(math.log(values[i] / wanted)))


def convergence(small: dict[str, Any], large: dict[str, Any]) -> str:
    here, there = (deviations(record["result"]) for record in (small, large))
    rows = ["| the paper: direct | 0.6 | | | |"]
    rows += [f"| {name} | {cells} | {there.get(name, ' | ')} |" for name, cells in here.items()]
    names = [f"{len(record['result']['deviation'])} models" for record in (small, large)]
    head = f"| % from the closed form | {names[0]} | farthest | {names[1]}, the paper's size | farthest |"
    note = (
        f"k = {small['result']['k']}, D = {small['result']['dim']}, sigma {small['result']['sigma']:g}, "
        f"{small['result']['draws'][-1]} draws; means over the models ± standard error; farthest: of all models, in "
        "errors of its own; the errors on the right leave rounding out"
    )
    return noted(head, rows, note)


def deviations(result: dict[str, Any]) -> dict[str, str]:
    """Mean over the models and the farthest one, by estimator, at the most draws."""
    found = {
        "controlled, mirrored pairs" if name == "controlled" else name: [
            [models[i][-1] for models in result[what]] for what in ("deviation", "distance")
        ]
        for i, name in enumerate(result["estimators"])
    }
    for name, rows in (("released procedure", ""), ("the same with both Hessians on all rows", "same_rows_")):
        blocks = (result["literal"][f"{rows}{what}"] for what in ("deviation", "distance"))
        found[name] = [[model[-1] for model in block] for block in blocks]
    return {name: deviation_of(*of_models) for name, of_models in found.items()}


def deviation_of(deviations: list[float], distances: list[float]) -> str:
    """From each model's deviation, and the same in errors of its own."""
    errors = [one / distance for one, distance in zip(deviations, distances, strict=True)]
    mean, error = statistics.fmean(deviations), math.hypot(*errors) / len(errors)
    return f"{short(100 * mean, 2)} ± {short(100 * error, 2)} | {max(abs(distance) for distance in distances):.1f}"


def error_map(record: dict[str, Any]) -> str:
    result = record["result"]
    hidden, rows = below_rounding(result).tolist(), []
    for s, sigma in enumerate(result["sigmas"]):
        if 0 < s < FIRST_TOLD:
            continue
        columns = {name: [row[s] for row in result[name]] for name in ERRORS}
        told = [m for m in range(len(hidden)) if not hidden[m][s]]
        for name in ("model_error", "model_error_of_shape"):
            columns[name] = [columns[name][m] for m in told]
        rows.append(f"| {short(sigma, 2)} | {' | '.join(between(column) for column in columns.values())} |")
    head = f"| sigma | {' | '.join(ERRORS.values())} |"
    note = (
        f"from the smallest to the largest over D of {result['dims'][0]} to {result['dims'][-1]}, each a mean over "
        f"{record['settings']['seeds']} models; {result['num_probes']} draws a cell; rounding is at most "
        f"{short(max(result['rounding']), 2)}"
    )
    return noted(head, rows, note)


FIRST_TOLD = 4
"""Of the map's sigmas, beside the smallest: below it rounding is all there is."""

ERRORS = {
    "direct_error": "direct against the closed form",
    "direct_noise": "noise of direct",
    "model_error": "the quadratic model's own",
    "model_error_of_shape": "that over the shape",
    "literal_error": "released procedure",
}


def timing(small: dict[str, Any], large: dict[str, Any]) -> str:
    result = small["result"]
    models, gpu = cells_of(result["rows"]), cells_of([large])
    columns = [[result["paper_seconds"]]] + [of_side(cells, side) for cells in (models, gpu) for side in SIDES]
    rows = [
        f"| {title} | {' | '.join(of_models([take(seconds) for seconds in column]) for column in columns)} |"
        for title, take in STAGES.items()
    ]
    head = "| seconds | the paper | its procedure | ours | its procedure, one GPU | ours, one GPU |"
    note = (
        f"{len(result['rows'])} models of {result['num_params']:,} parameters, D = {result['dim']}, median [smallest, "
        f"largest]; one of {large['num_params']:,} on one {large['machine']['gpu']}, D = {large['dim']}, as the paper's"
    )
    return noted(head, rows, note)


def of_side(cells: dict[str, list[dict[str, float]]], side: str) -> list[dict[str, float]]:
    """Seconds by stage, of every model."""
    models = zip(*([cell[side] for cell in of_stage] for of_stage in cells.values()), strict=True)
    return [dict(zip(cells, seconds, strict=True)) for seconds in models]


def of_models(values: list[float]) -> str:
    """Of several models median and extremes."""
    low, high = min(values), max(values)
    return in_extremes(statistics.median(values), low, high) if len(values) > 1 else short(low)


SIDES = ("paper", "ours")

STAGES: dict[str, Callable[[dict[str, float]], float]] = {
    "I, eigenspace": lambda seconds: seconds["I"],
    "II, increment, Hessians on all rows": lambda seconds: seconds["II"],
    "II, the paper's Hessians on four rows": lambda seconds: seconds["II, four rows"],
    "III, direct Monte Carlo": lambda seconds: seconds["direct"],
    "III, quadratic Monte Carlo": lambda seconds: seconds["quadratic"],
    "III, closed form": lambda seconds: seconds["closed form"],
    "direct, times the closed form": lambda seconds: seconds["direct"] / seconds["closed form"],
    "II and closed form, times direct": lambda seconds: (seconds["II"] + seconds["closed form"]) / seconds["direct"],
}


def fully_connected(record: dict[str, Any]) -> str:
    result, rows = record["result"], []
    for network in result["networks"]:
        plateau, held_out, exact = (network[name] for name in ("plateau", "held_out", "square_to_exact"))
        cells = [with_error(*both) for both in zip(plateau["mean"], plateau["stderr"], strict=True)]
        cells.append(with_error(held_out["mean"][0], held_out["stderr"][0]))
        cells.append(f"{exact['mean'][0]:.3f} ± {exact['stderr'][0]:.3f}")
        rows.append(f"| {'x'.join(map(str, network['hidden']))} | {' | '.join(cells)} |")
    sigmas = " | ".join(f"sigma {short(sigma)}" for sigma in result["sigmas"])
    head = f"| hidden | plateau at w* | {sigmas} | at w*, held-out images | mean square, of Var(l) / (k (k + 1)) |"
    return noted(
        head, rows, f"k mean &#124;L_(k+1) − L_k&#124;, ± standard error over {record['settings']['seeds']} models"
    )


Table = Callable[..., str]

TABLES: dict[str, tuple[Table, tuple[str, ...]]] = {
    "figure_2": (decay, ("experiment_decay",)),
    "figure_2_converged": (decay, ("experiment_converged",)),
    "figure_3": (ratio, ("experiment_ratio",)),
    "figure_4": (validity, ("experiment_validity", "experiment_validity_paper")),
    "figure_5": (convergence, ("experiment_convergence", "experiment_convergence_paper")),
    "figure_6": (error_map, ("experiment_error-map",)),
    "timings": (timing, ("experiment_timing", "gpu")),
    "predecessor": (fully_connected, ("experiment_fc",)),
    "subspaces": (subspaces, ("experiment_ratio",)),
}
"""By the name of its block on the page: the function, and the results that it takes."""


def tables() -> dict[str, str]:
    """All of them."""
    return {name: make(*(read(RESULTS / f"{one}.json") for one in results)) for name, (make, results) in TABLES.items()}
