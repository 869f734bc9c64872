"""Write the tables in README.md and docs/benchmarks.md from the committed result files."""

import json
import re
from pathlib import Path

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

ROOT = Path(__file__).parent.parent


SCRIPTS = (concentration, coverage_of_intervals, curve, gpu, limit, monte_carlo, paper, peers, scaling, solver)
"""Each writes a result file of its name, and its ``table`` makes a table of that."""


def fill(text: str) -> str:
    """The text with every ``<!-- table NAME -->`` block written anew, where there is a result of that name."""
    for script in SCRIPTS:
        if not script.RESULT.exists():
            continue
        table = script.table(json.loads(script.RESULT.read_text()))
        pattern = rf"(<!-- table {script.__name__} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)
    return text


def main() -> None:
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    main()
