"""Write the tables in README.md and the docs from the committed result files."""

import json
import re
from pathlib import Path
from typing import Any

import concentration
import coverage_of_intervals
import curve
import gpu
import limit
import monte_carlo
import paper
import peers
import scaling
import solver
from machine import place

ROOT = Path(__file__).parent.parent


SCRIPTS = (concentration, coverage_of_intervals, curve, gpu, limit, monte_carlo, paper, peers, scaling, solver)
"""Each writes a result file of its name, and its ``table`` makes a table of that."""


def fill(text: str) -> str:
    """The text with every ``<!-- table NAME -->`` block written anew, where there is a result of that name."""
    tables = {
        script.__name__: script.table(json.loads(script.RESULT.read_text()))
        for script in SCRIPTS
        if script.RESULT.exists()
    }
    tables |= {
        path.stem: experiment(json.loads(path.read_text()))
        for path in (ROOT / "benchmarks" / "results").glob("experiment_*.json")
    }
    for name, table in tables.items():
        pattern = rf"(<!-- table {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)
    return text


def experiment(record: dict[str, Any]) -> str:
    """What an experiment of the paper found, as its command prints it."""
    literal = ", --literal" if record["options"]["literal"] else ""
    foot = (
        f"({record['experiment']}, preset {record['preset']}{literal}, {record['settings']['seeds']} seeds, "
        f"{record['seconds'] / 60:.1f} minutes, estimated {record['estimate_seconds'] / 60:.1f}. "
        f"{place(record['machine'])}.)"
    )
    return "\n".join(["```text", *record["findings"], "```", "", foot])


def main() -> None:
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    main()
