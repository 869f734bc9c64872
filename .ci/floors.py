"""The oldest versions that pyproject.toml admits of what users and the tests need, as constraints for pip.

Run: python .ci/floors.py > floors.txt
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

EXTRAS = ("plots", "report", "digits", "text", "test")


def main() -> None:
    """Print them, a package a line."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = [project["optional-dependencies"][name] for name in EXTRAS]
    declared = [one for part in (project["dependencies"], *extras) for one in part]
    print("\n".join(one.replace(">=", "==") for one in declared if re.fullmatch(r"[\w-]+>=[\w.]+", one)))


if __name__ == "__main__":
    main()
