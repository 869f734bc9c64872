"""The ``curvprobe`` command: arguments to the library, and where the results lie."""

import sys

from curvprobe.cli import analysis, experiment
from curvprobe.cli.app import app
from curvprobe.memory import keep_freed

__all__ = ["analysis", "app", "experiment", "main"]


def main() -> None:
    """Entry point of the ``curvprobe`` command."""
    keep_freed()
    sys.exit(app())
