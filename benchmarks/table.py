"""Write the tables in README.md and docs/benchmarks.md from the committed result files."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def monte_carlo() -> str:
    result = json.loads((RESULTS / "monte_carlo.json").read_text())
    lines = [
        "| task | sigma | quadratic model | closed form | direct | controlled | variance ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['sigma']:g} | {row['verdict']}, {100 * row['increment_error']:.2g} % off "
        f"| {row['closed_form']:.5e} | {row['direct']:.5e} ± {row['direct_stderr']:.1e} "
        f"| {row['controlled']:.5e} ± {row['controlled_stderr']:.1e} | {row['variance_ratio']:.1e} |"
        for name, task in result["tasks"].items()
        for row in task["rows"]
    ]
    tasks = "; ".join(
        f"{name}: {task['num_params']} parameters, k = {task['k']}, D = {task['dim']}, {task['num_probes']} draws, "
        f"largest residual {task['largest_residual']:.0e}"
        for name, task in result["tasks"].items()
    )
    machine = result["machine"]
    return "\n".join([*lines, "", f"({tasks}. {machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}.)"])


TABLES = {"monte_carlo": monte_carlo}


def fill(text: str) -> str:
    """The text with every ``<!-- table NAME -->`` block written anew."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- table {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text, flags=re.DOTALL)
    return text


def main() -> None:
    for path in (ROOT / "README.md", ROOT / "docs" / "benchmarks.md"):
        path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    main()
