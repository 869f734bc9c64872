"""Results in files: what ``result.json`` holds, and how it is read back, whichever version wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from curvprobe.analysis.result import RESULT_VERSION, Absent, Analysis
from curvprobe.analysis.trajectory import TRAJECTORY_VERSION, Trajectory
from curvprobe.criteria.expected import PARTS, SOURCES
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.forecasting.result import FORECAST_VERSION, Forecast
from curvprobe.probing.plane import Plane
from curvprobe.runtime.plain import numbers
from curvprobe.runtime.store import RESULT, read_stage
from curvprobe.subspace.spaces import Eigenspace

_NEWEST = {"forecast": FORECAST_VERSION, "trajectory": TRAJECTORY_VERSION}
"""Of the records that are not of an analysis."""


def load(path: str | Path) -> Analysis | Trajectory | Forecast:
    """A finished run, from its folder or its result file; no model is needed.

    Args:
        path: folder of a run, or a ``result.json`` of this or an earlier version. Where the stages that the result
            rests on lie beside it, the eigenspace and the projected examples come too.

    Returns:
        What :func:`curvprobe.analyze`, :func:`curvprobe.trajectory` or :func:`curvprobe.forecast` returned. A number
        that was not finite comes back as NaN, or as infinity where nothing else makes sense.

    Raises:
        ValueError: where nothing is found, or something else than such a result.

    Example:
        >>> import tempfile, torch, curvprobe as cp
        >>> x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[::2], x[::2].sin()))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     analysis = cp.analyze(risk, (x[1::2], x[1::2].sin()), dim=3, tol=1e-6, out=folder)
        ...     again = cp.load(folder)
        >>> str(again) == str(analysis), again.sample.gradient.shape
        (True, torch.Size([20, 3]))
    """
    file = _result_file(path)
    record = _read(file)
    found: Analysis | Trajectory | Forecast
    try:
        if "forecast" in record:
            found = Forecast.from_json(record["forecast"])
        elif "trajectory" in record:
            found = Trajectory.from_json(_upgraded_trajectory(record)["trajectory"])
        else:
            found = Analysis.from_json(_upgraded(record), **_bulk(record, file.parent))
        _tell(found)
        return found
    except Exception as error:  # whatever a number makes of a text in its place
        reason = f"{error!r:.200}"
        raise ArgumentError(
            f"{str(file)!r} is not a whole result of an analysis, a trajectory or a forecast: {reason}"
        ) from error


def _tell(found: Analysis | Trajectory | Forecast) -> None:
    """Say all of it, to see that it can be: a file's entries may be of any kind."""
    str(found)
    if isinstance(found, Analysis):
        found.table()
        found.metrics()


def _result_file(path: str | Path) -> Path:
    if not isinstance(path, str | Path):
        raise ArgumentTypeError(f"path is a {type(path).__name__}; expected a run's folder or a result file")
    return Path(path) / RESULT if Path(path).is_dir() else Path(path)


def _read(file: Path) -> dict[str, Any]:
    """The record in a file, if it is one that can be understood."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError(f"no result could be read from {str(file)!r}: {error}; expected a run's folder") from error
    if not isinstance(record, dict) or not {*_NEWEST, "first_candidate"} & record.keys():
        raise ArgumentError(
            f"{str(file)!r} is of something else than an analysis, a trajectory or a forecast; read it with json.load"
        )
    version = record.get("schema_version")
    newest = next((newest for name, newest in _NEWEST.items() if name in record), RESULT_VERSION)
    if type(version) is not int or not 1 <= version <= newest:
        raise ArgumentError(
            f"{str(file)!r} has schema version {version!r}; this version of curvprobe reads 1 to {newest}"
        )
    return record


def _upgraded(record: dict[str, Any]) -> dict[str, Any]:
    """A record of an earlier version with what it left out, as far as it can be told."""
    record.setdefault("examination", None)
    if record["schema_version"] < 6:  # one number of draws for all sigmas
        record["validity"]["num_probes"] = [record["validity"]["num_probes"]] * len(record["validity"]["sigmas"])
    if record["schema_version"] > 1:
        return record
    for row in record["first_candidate"].values():
        row.setdefault("p", 2.0)
    record["first_candidate"]["delta1"]["p"] = 1.0
    record["validity"].setdefault("change", None)
    record["validity"].setdefault("loss", record["sample"]["loss"])
    several = record["sample"]["num_candidates"] > 1
    for name in ("expected", "doubling"):
        if record[name] is not None:
            record[name].setdefault("contributions", [])
            record[name].setdefault("pool", not several)
    if record["concentration"] is not None:
        record["concentration"].setdefault("num_params", record["sample"]["num_params"])
    return record


def _upgraded_trajectory(record: dict[str, Any]) -> dict[str, Any]:
    if record["schema_version"] == 1:
        unknown = {source: {part: {"value": None, "stderr": None} for part in PARTS} for source in SOURCES}
        for expected in record["trajectory"]["expected"]:
            low, high = expected["rms_interval"]
            interval = [low**2, None if high is None else high**2]
            expected |= {"interval": interval, "table": unknown, "contributions": [], "grow_by": 1, "pool": False}
    return record


def _bulk(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The eigenspace and the projections, where the stages that the result rests on lie beside it."""
    # The first version did not name its stages: what lay beside the result was what it rested on.
    keys = record.get("stages")

    def stage(name: str, kind: Any) -> Any:
        found = None
        if keys is None or name in keys:
            found = read_stage(folder, name, kind, None if keys is None else keys[name])
        return Absent(name) if found is None else found[0]

    space = stage("eigenspace", Eigenspace if record["schema_version"] > 1 else _first_eigenspace)
    sample, fresh = stage("sample", ProjectedSample), stage("candidates", ProjectedSample)
    solved = record["eigenspace"].get("found") or record["eigenspace"]["eigenvalues"]
    if not isinstance(space, Absent) and not torch.equal(space.eigenvalues, numbers(solved)):
        space = Absent("eigenspace")
    counts = (("k", sample), ("num_candidates", fresh))
    sample, fresh = (
        one if isinstance(one, Absent) or one.size == record["sample"][name] else Absent("projections")
        for name, one in counts
    )
    plane = None if keys is None or "surface" not in keys else stage("surface", Plane)
    return {"subspace": space, "sample": sample, "fresh": fresh, "plane": None if isinstance(plane, Absent) else plane}


def _first_eigenspace(*, origin: Any, **values: Any) -> Eigenspace:
    """An eigenspace from the fields that the first version kept."""
    matrices = {"deformation": "gradient covariance"}
    return Eigenspace(**values, matrix=matrices.get(origin, origin))
