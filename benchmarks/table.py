"""Write the tables in README.md and the docs from the committed result files."""

import re
from pathlib import Path
from typing import Any

import acceptance_table
import adapters
import concentration
import coverage_of_draws
import coverage_of_errors
import coverage_of_intervals
import curve
import demo
import extremality
import forecast
import forecast_factor
import front_door
import gates
import gpu
import gpu_parts
import limit
import load
import misses
import monitor
import monte_carlo
import more_data
import paper
import paper_page
import peers
import plan
import processes
import projection
import report_page
import scale
import scaling
import solver
import versions
import vocabulary
import which_candidates
from benchmark import RESULTS, page, read

ROOT = Path(__file__).parent.parent
ACCEPTANCE = ROOT / "acceptance" / "results.json"

SCRIPTS = (
    adapters,
    concentration,
    coverage_of_draws,
    coverage_of_errors,
    coverage_of_intervals,
    curve,
    demo,
    extremality,
    forecast,
    forecast_factor,
    front_door,
    gates,
    gpu,
    gpu_parts,
    limit,
    load,
    misses,
    more_data,
    monitor,
    monte_carlo,
    paper,
    peers,
    plan,
    processes,
    projection,
    report_page,
    scale,
    scaling,
    solver,
    versions,
    vocabulary,
    which_candidates,
)
BENCHMARKS = tuple(script.BENCHMARK for script in SCRIPTS)


def fill(text: str) -> str:
    """The text with every ``<!-- table NAME -->`` block written anew, where there is a result of that name."""
    tables = {one.name: one.table(read(one.result)) for one in BENCHMARKS if one.result.exists()}
    tables |= {path.stem: experiment(read(path)) for path in RESULTS.glob("experiment_*.json")}
    tables |= {f"demo, {title}": text for title, text in demo.excerpts(read(demo.BENCHMARK.result)).items()}
    tables |= paper_page.tables()
    tables["acceptance"] = acceptance_table.table(read(ACCEPTANCE))
    for name, table in tables.items():
        pattern = rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)
    return text


def experiment(record: dict[str, Any]) -> str:
    """What an experiment of the paper found, as its command prints it."""
    literal = ", --literal" if record["options"]["literal"] else ""
    note = (
        f"{record['experiment']}, preset {record['preset']}{literal}, {record['settings']['seeds']} seeds, "
        f"{record['seconds'] / 60:.1f} minutes, estimated {record['estimate_seconds'] / 60:.1f}"
    )
    return page(record, "\n".join(["```text", *record["findings"], "```"]), note=note)


def main() -> None:
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    main()
