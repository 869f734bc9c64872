"""The ``curvprobe`` command: arguments to the library, and where the results lie.

Imports everything; nothing imports it.
"""

import sys

from curvprobe.cli import analysis, experiment, forecast, plan, results, surface, trajectory
from curvprobe.cli.app import app
from curvprobe.cli.processes import together
from curvprobe.runtime.memory import freed_memory_kept

__all__ = ["analysis", "app", "experiment", "forecast", "main", "plan", "results", "surface", "trajectory"]


def main() -> None:
    """Entry point of the ``curvprobe`` command."""
    with freed_memory_kept(), together():
        sys.exit(app())
