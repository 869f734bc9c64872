"""Experiments at a tiny size."""

import json

from curvprobe.experiments import growth
from curvprobe.experiments.options import Options
from curvprobe.experiments.run import run_experiment
from curvprobe.experiments.solutions import Language
from curvprobe.runtime.store import Store

TINY = Language(
    vocabulary=300,
    context=12,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    batch=4,
    learning_rate=3e-3,
)


GROWTH = growth.Settings(
    TINY,
    ks=(8, 16, 32),
    converged_ks=(64, 128),
    seeds=2,
    candidates=6,
    dims=(1, 3),
    num_probes=16,
    trace_candidates=4,
    trace_products=8,
    compared_at=32,
    sigmas=(1e-4, 1e-3, 1e-1),  # the last is large enough for B to matter
)


def run(name, settings, folder, **options):
    said = []
    done = run_experiment(
        name,
        settings=settings,
        options=Options(**options),
        out=folder / name,
        stages=folder / "stages",
        say=said.append,
    )
    assert any("estimate" in line for line in said)
    assert json.loads((folder / name / "result.json").read_text())["findings"] == done.findings
    assert {path.suffix for path in done.paths} == {".json", ".png", ".pdf"}
    assert all(path.stat().st_size > 100 for path in done.paths)
    return done.result["result"]


def sequences():
    return TINY.sequences(None, Store(None))
