"""The doctor and an analysis on networks that others have trained, each held against plain autograd in float64.

Run: make acceptance [ARGS="--networks faces titanic"], or python acceptance/run.py where the packages are installed
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]

from acceptance_table import table  # noqa: E402
from checks import PlainRisk, product_error, residual  # noqa: E402
from networks import NETWORKS, Network  # noqa: E402

import curvprobe as cp  # noqa: E402
from curvprobe.experiments.machine import describe, timed  # noqa: E402
from curvprobe.runtime.plain import to_json  # noqa: E402
from curvprobe.runtime.store import write_atomically  # noqa: E402

RESULTS = HERE / "results.json"
DIM = 3


def accept(name: str, network: Network, out: Path) -> dict[str, Any]:
    """All that is asked of one network."""
    task, making = timed(torch.device("cpu"), network.make)
    found: dict[str, Any] = {
        "network": name,
        "package": f"{network.package} {version(network.package)}",
        "kind": network.kind,
        "data": network.data,
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
        "making": making,
    }
    try:
        risk = task.risk()
        found |= {"probed": risk.num_params, "k": len(risk)}
        options = {"dim": DIM, "allow_overlap": network.allow_overlap}
        examined, seconds = timed(torch.device("cpu"), cp.examine, risk, task.candidates, **options)
        found |= {"doctor": examined.verdict, "checks": examined.to_json()["findings"], "doctor_seconds": seconds}
        settings = {"dim": DIM, "num_probes": 8, "stages": "quick", "allow_overlap": network.allow_overlap}
        analysis, seconds = timed(torch.device("cpu"), cp.analyze, risk, task.candidates, **settings)
        analysis.to_html(out / f"{name.replace(', ', '_').replace(' ', '_')}.html")
    except cp.CurvprobeError as refused:
        return {**found, "refused": str(refused)}
    return {**found, "seconds": seconds, **told(analysis), **checked(task, risk, analysis)}


def told(analysis: cp.Analysis) -> dict[str, Any]:
    """What the analysis says."""
    answer = analysis.answer
    return {
        "loss": analysis.loss,
        "held_out_loss": analysis.held_out_loss,
        "eigenvalues": analysis.spectrum.eigenvalues,
        "residuals": analysis.spectrum.residuals,
        "products": analysis.subspace.num_matvecs,
        "trust": {mark.name: mark.word for mark in answer.trust},
        "answer": str(answer),
        "notes": analysis.notes,
    }


def checked(task: cp.Task, risk: cp.EmpiricalRisk, analysis: cp.Analysis) -> dict[str, Any]:
    """What plain autograd in float64 says of a product with a random vector, and of the first eigenpair."""
    plain = PlainRisk.of(task, risk.param_names)
    vector = torch.randn(risk.num_params, generator=torch.Generator().manual_seed(1))
    first = analysis.subspace.basis[:, 0]
    value = float(analysis.subspace.eigenvalues[0])
    return {
        "product_error": product_error(plain, vector, cp.hessian(risk) @ vector),
        "first_product_error": product_error(plain, first, cp.hessian(risk) @ first),
        "first_residual": residual(plain, first, value),
    }


def main() -> None:
    """The command."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    options.add_argument("--out", type=Path, default=RESULTS, help=f"result file (default: {RESULTS})")
    options.add_argument("--reports", type=Path, default=Path("runs/acceptance"), help="folder of the reports")
    chosen = options.parse_args()
    chosen.reports.mkdir(parents=True, exist_ok=True)
    known = json.loads(chosen.out.read_text())["rows"] if chosen.out.exists() else []
    rows = {row["network"]: row for row in known}  # those that are not asked for now
    for name in chosen.networks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages' own old code
            rows[name] = accept(name, NETWORKS[name], chosen.reports)
        print(rows[name].get("answer") or rows[name].get("refused"), flush=True)
        told = [rows[name] for name in NETWORKS if name in rows]
        write_atomically(chosen.out, to_json({"machine": describe(), "dim": DIM, "rows": told}))
    print(f"written to {chosen.out}\n\n{table(json.loads(chosen.out.read_text()))}")


if __name__ == "__main__":
    main()
