"""surface: the usual picture of a loss landscape, as data and as figures."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from curvprobe.cli.app import app
from curvprobe.cli.loading import sample_of, task_with
from curvprobe.cli.messages import plain_errors, saved, say, tell
from curvprobe.cli.options import Device, K, Memory, Params, Seed, Tol, positive
from curvprobe.probing.plane import Plane, plane
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.runtime.plain import to_json
from curvprobe.runtime.store import Store, write_atomically
from curvprobe.subspace.directions import checkpoint_directions, filter_directions
from curvprobe.subspace.eigenspace import top_eigenspace
from curvprobe.subspace.spaces import Subspace
from curvprobe.tasks import load_task
from curvprobe.tasks.checkpoint import read_weights

DATA = "plane.json"
"""What is left beside the figures."""


class Along(StrEnum):
    """What the plane is spanned by."""

    EIGEN = "eigen"
    FILTER = "filter"
    CHECKPOINTS = "checkpoints"


REACH = {Along.FILTER: (-1.0, 1.0), Along.CHECKPOINTS: (-0.5, 1.5)}
"""From where to where, in steps of the directions' lengths; eigenvectors go as far as the loss doubles."""


@app.command()
def surface(
    task: Annotated[str, typer.Argument(help="file.py:function or module:function that returns a curvprobe.Task.")],
    out: Annotated[Path, typer.Option(help="Folder for plane.json and the figures.")],
    along: Annotated[
        Along,
        typer.Option(
            help="eigen: two leading eigenvectors of the Hessian. filter: two random directions in proportion to the "
            "filters of the weights, the usual plot. checkpoints: to two other weights of the model."
        ),
    ] = Along.EIGEN,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="With --along checkpoints: two files of state dictionaries (.safetensors, .pt). Repeat it."),
    ] = None,
    axes: Annotated[
        str, typer.Option(help="Which two of the directions, from 1: 1,3 takes the first and third eigenvector.")
    ] = "1,2",
    reach: Annotated[
        float | None,
        typer.Option(
            callback=positive,
            help="How far to go either way. Default: 1 along filters, -0.5 to 1.5 to checkpoints, "
            "and along eigenvectors as far as the quadratic model doubles the loss.",
        ),
    ] = None,
    points: Annotated[int, typer.Option(min=3, max=501, help="Points along each side.")] = 41,
    k: K = None,
    params: Params = None,
    device: Device = None,
    tol: Tol = 1e-3,
    seed: Seed = 0,
    memory_budget: Memory = None,
) -> None:
    """Evaluate the loss over a plane around the solution, beside its quadratic model, and draw it in two and three
    dimensions.

    Example: curvprobe surface my_task.py:task --along filter --out runs/surface
    """
    pair, files = _axes(axes), _files(along, checkpoint)
    with plain_errors(), Store.at(out).held():
        loaded = task_with(load_task(task), params, device)
        if loaded.description:
            say(loaded.description)
        risk = sample_of(loaded, k, memory_budget)
        directions, names = _spanned(risk, along, files, pair, tol, seed)
        far = REACH.get(along) if reach is None else reach
        found = plane(risk, directions, axes=pair, reach=far, points=points, names=names)
        write_atomically(out / DATA, to_json(vars(found)))
        figures = saved(lambda: _figures(found, out))
        tell(f"{found}\nwritten to {out}/: {', '.join([DATA, *figures])}")


def _axes(axes: str) -> tuple[int, int]:
    """The value of --axes, from 0."""
    try:
        first, second = (int(number) - 1 for number in axes.split(","))
    except ValueError:
        first = second = -1
    if first == second or min(first, second) < 0:
        raise typer.BadParameter(f"--axes is {axes!r}; expected two different numbers from 1, such as 1,2")
    return first, second


def _files(along: Along, checkpoint: list[Path] | None) -> list[Path]:
    files = list(checkpoint or ())
    if len(files) != (2 if along is Along.CHECKPOINTS else 0):
        raise typer.BadParameter(
            f"{len(files)} --checkpoint came with --along {along.value}; expected two with --along checkpoints, and "
            "none else"
        )
    return files


def _spanned(
    risk: EmpiricalRisk, along: Along, files: list[Path], axes: tuple[int, int], tol: float, seed: int
) -> tuple[Subspace | Tensor, tuple[str, str]]:
    """The directions, and the names of the two."""
    first, second = axes
    if along is Along.EIGEN:
        space = top_eigenspace(risk, dim=max(axes) + 1, tol=tol, seed=seed)
        return space, (f"eigenvector {first + 1}", f"eigenvector {second + 1}")
    if along is Along.FILTER:
        return filter_directions(risk, max(axes) + 1, seed=seed), (f"direction {first + 1}", f"direction {second + 1}")
    return checkpoint_directions(risk, [read_weights(path) for path in files]), (
        f"to {files[0].name}",
        f"to {files[1].name}",
    )


def _figures(found: Plane, out: Path) -> list[Path]:
    from curvprobe.plots import plot_plane, plot_surface, save

    return save({"plane": plot_plane(found), "surface": plot_surface(found)}, out)
