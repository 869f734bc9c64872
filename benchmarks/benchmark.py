"""What all benchmarks share: the command line, the machine, the result file and how tables are written."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvprobe.experiments.machine import describe
from curvprobe.runtime.plain import to_json
from curvprobe.runtime.store import write_atomically

RESULTS = Path(__file__).parent / "results"

MEANINGS = {
    "tasks": "what to measure on",
    "models": "what to measure on",
    "dim": "dimension D of the subspace",
    "k": "examples in the sample",
    "num_probes": "draws",
    "repeats": "of everything that is timed; medians are reported",
    "seed": "of the draws and of the solver's start",
}
"""Of the options that several benchmarks have."""


BUSY = 0.5
"""Load of a core above which a time is worth nothing."""


def shared(**defaults: Any) -> dict[str, tuple[Any, str]]:
    """Options that other benchmarks have too, with defaults of one's own."""
    return {name: (default, MEANINGS[name]) for name, default in defaults.items()}


@dataclass(frozen=True)
class Benchmark:
    """What a script measures, and how its table looks.

    Attributes:
        name: of the script, of its result file and of its table in the README and the docs.
        about: the script's docstring.
        options: default and meaning by name. A list takes one value or more, a tuple also none; of words, its own only.
        measure: plain values, all that the result file holds beside the machine; from the options.
        table: the content of a result file as Markdown.
    """

    name: str
    about: str
    options: Mapping[str, tuple[Any, str]]
    measure: Callable[[argparse.Namespace], dict[str, Any]]
    table: Callable[[dict[str, Any]], str]

    @property
    def result(self) -> Path:
        """The committed result file."""
        return RESULTS / f"{self.name}.json"

    def main(self, argv: list[str] | None = None) -> None:
        """Measure, write the result file and print its table."""
        options = self.parser().parse_args(argv)
        machine = {**describe(), "load": os.getloadavg()}  # before the work, which is a load itself
        warn_of(os.getloadavg()[0], os.cpu_count() or 1)
        write_atomically(options.out, to_json({"machine": machine, **self.measure(options)}))
        print(f"written to {options.out}\n\n{self.table(read(options.out))}")

    def parser(self) -> argparse.ArgumentParser:
        """The command line."""
        made = argparse.ArgumentParser(description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter)
        for name, (default, meaning) in {**self.options, "out": (self.result, "result file")}.items():
            several = "+" if isinstance(default, list) else "*" if isinstance(default, tuple) else None
            values = default if several else [default]
            made.add_argument(
                f"--{name.replace('_', '-')}",
                default=default,
                type=type(values[0]),
                nargs=several,
                choices=values if several and isinstance(values[0], str) else None,
                help=f"{meaning} (default: {' '.join(map(str, values))})",
            )
        return made


def warn_of(load: float, cores: int) -> None:
    """Say that other work goes on, beside which no time is worth anything."""
    if load > BUSY * cores:
        said = f"WARNING: the load is {load:.1f} on {cores} cores; times measured beside other work are not comparable"
        print(said, file=sys.stderr)


def read(path: Path) -> dict[str, Any]:
    """The content of a result file."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


# ---- tables


def markdown(head: str, rows: Iterable[str]) -> str:
    """A table from the line of its head and those of its rows."""
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows])


def page(result: dict[str, Any], *tables: str, note: str = "") -> str:
    """Tables, one below the other, with a note and where and with what they were measured."""
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    foot = ". ".join(part for part in (note, f"{where}, torch {machine['torch']}") if part)
    return "\n\n".join([*tables, f"({foot}.)"])


def mebibytes(count: float) -> str:
    """Bytes, as a table has them."""
    return f"{count / 2**20:.0f} MiB"
