"""``python -m curvprobe``: the same as the ``curvprobe`` command."""

from curvprobe.cli import main

main()
