"""What the factor of the calibrated mean rests on, and whether the study of docs/forecast.md would have had another.

On six sets that the study does not hold, with the study's own ways of training, noise and rules, the mean of gap and
halving is set against the expected gain, times several factors. Beside it the same of the study's committed rows.
Run: python benchmarks/forecast_factor.py
"""

import math
import statistics
from argparse import Namespace
from typing import Any

import forecast
from benchmark import Benchmark, markdown, page, read
from forecast_cells import FITTED, cell

from curvprobe.forecasting.result import SHIPPED
from curvprobe.forecasting.rules import FACTOR

FACTORS = (1.0, 1.2, FACTOR, 1.5)
RULES = ("gap", "halves", "mean", SHIPPED)

OPTIONS = forecast.OPTIONS | {"sets": ([of.name for of in FITTED], "generators and data on which it was fitted")}


def measure(options: Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for of in (one for one in FITTED if one.name in options.sets):
        for noise in options.noises:
            for how in options.ways:
                rows += forecast.of_cell(cell(of, noise, how, options.seeds), options.splits)
                print(of.name, noise, how, flush=True)
    found, study = [forecast.kept(row) for row in rows], read(forecast.BENCHMARK.result)["rows"]
    return {
        "rows": found,
        "rules": {rule: forecast.rate(rows, rule, "twice") for rule in RULES},
        "factors": {
            str(factor): {"fitted": _times(found, factor), "study": _times(study, factor)} for factor in FACTORS
        },
    }


def _times(rows: list[dict[str, Any]], factor: float) -> dict[str, float | None]:
    """The mean of gap and halving times a factor, where the calibrated mean is an answer."""
    answered = [row for row in rows if not row["told"][SHIPPED]["refused"]]
    over = [row["expected"]["twice"] / (factor * math.sqrt(math.prod(row["gains"].values()))) for row in answered]
    return {
        "answered": len(answered) / len(rows),
        "within": sum(1 / 2 <= found <= 2 for found in over) / len(over) if over else None,
        "truth_over_forecast": statistics.median(over) if over else None,
    }


HEAD = (
    "| mean of gap and halving times | sets of the fit: within 2 | truth over forecast, median "
    "| study: within 2 | truth over forecast, median |"
)


def table(result: dict[str, Any]) -> str:
    lines = []
    for factor, found in result["factors"].items():
        lines.append(f"| {factor} | {' | '.join(map(_pair, found.values()))} |")
    rules = [forecast.rate_line(rule, found) for rule, found in result["rules"].items()]
    cells = {(row["set"], row["noise"], row["how"]) for row in result["rows"]}
    note = f"{len(cells)} cells of {len(result['rows']) // len(cells)} samples"
    return page(
        result,
        markdown(HEAD, lines),
        markdown(forecast.KIND_HEAD.format(kind="on the sets of the fit"), rules),
        note=note,
    )


def _pair(found: dict[str, float | None]) -> str:
    within, over = found["within"], found["truth_over_forecast"]
    return "– | –" if within is None or over is None else f"{100 * within:.0f} % | {over:.2f}"


BENCHMARK = Benchmark("forecast_factor", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
