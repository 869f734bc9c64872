from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    """The scripts import one another as neighbours."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
