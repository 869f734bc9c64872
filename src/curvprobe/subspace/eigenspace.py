"""The leading eigenspace of a curvature, with certificates."""

from __future__ import annotations

import re
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, get_args

import torch

from curvprobe.curvature.linearisation import Kind
from curvprobe.curvature.matrix import CurvatureMatrix
from curvprobe.eigensolver.checkpoint import Checkpoint
from curvprobe.eigensolver.lanczos import Eigenpairs, lanczos
from curvprobe.eigensolver.wanted import Which
from curvprobe.errors import ArgumentError
from curvprobe.numerics.space import Space
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.runtime.digest import digest
from curvprobe.runtime.threads import SWEPT
from curvprobe.subspace.spaces import Eigenspace, Matrix, Subspace


def top_eigenspace(
    risk: EmpiricalRisk,
    dim: int = 10,
    *,
    which: Which = "algebraic",
    curvature: Kind = "hessian",
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    seed: int = 0,
    start: Subspace | None = None,
    checkpoint: str | Path | None = None,
    compile: bool = False,  # noqa: A002 - torch's word
) -> Eigenspace:
    r"""Leading eigenspace of the curvature of an empirical risk, with certificates.

    .. math:: H^{(k)} u_i = \lambda_i u_i, \qquad i = 1, \dots, D

    Args:
        risk: the empirical risk.
        dim: number of eigenpairs D.
        which: "algebraic" (largest), "magnitude" (largest absolute value) or "smallest" (most negative).
        curvature: "hessian" or "ggn".
        tol: bound on the residuals relative to ``|lambda_1|``; for "smallest" to the largest magnitude.
        max_matvecs: budget of curvature products; None is generous.
        seed: of the solver's random vectors.
        start: a subspace near the wanted one, such as that of a slightly smaller sample.
        checkpoint: file for the solver's state, written every minute or so, when ``max_matvecs`` is used up and when
            the computation is interrupted; the next call for the same risk and arguments goes on from there, also with
            a larger ``max_matvecs`` or another ``tol``.
        compile: compile the Hessian product, see :func:`hessian`.

    Returns:
        The eigenspace with signed eigenvalues, certified residuals and ``converged`` flags. The work keeps to the
        risk's ``memory_budget``: by smaller microbatches, then by fewer basis vectors, then (for a model on an
        accelerator) with the basis in host memory.

    Raises:
        ValueError: for arguments that make no sense, or an operation without a second derivative.
        Warns ConvergenceWarning when a residual is above the tolerance.

    Source: thick-restart Lanczos, see :func:`curvprobe.lanczos`.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> x = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, torch.zeros(3, 1)))
        >>> cp.top_eigenspace(risk, dim=2).eigenvalues.round(decimals=4)
        tensor([6.0000, 2.6667], dtype=torch.float64)
    """
    expect_risk(risk)
    if curvature not in get_args(Kind):
        raise ArgumentError(f"curvature is {curvature!r}; expected one of {list(get_args(Kind))}")
    if start is not None and (not isinstance(start, Subspace) or start.num_params != risk.num_params):
        raise ArgumentError(f"start is {start!r:.80}; expected a Subspace of {risk.num_params} parameters")
    slim, basis_size, device = plan_memory(risk, dim)
    matrix, ranks, space = CurvatureMatrix(slim, curvature, compile), risk.ranks, _space(risk)
    kept = None if checkpoint is None else _checkpoint(checkpoint, risk, [curvature, dim, which, seed])
    with risk.few_threads(SWEPT * 4 * risk.num_params * (basis_size or 0)), ranks.told():
        pairs = lanczos(
            matrix.of_rows if ranks.several else lambda block: matrix @ block,
            risk.num_params,
            dim=dim,
            which=which,
            tol=tol,
            max_matvecs=max_matvecs,
            seed=seed,
            dtype=risk.dtype,
            device=device,
            start=None if start is None else start.basis[space.part or slice(None), :basis_size],
            basis_size=basis_size,
            checkpoint=kept,
            space=space,
        )
        pairs = replace(pairs, vectors=ranks.whole(pairs.vectors, risk.num_params))
    _forget_others(checkpoint, kept)
    return spanned(pairs, curvature, risk)


def _space(risk: EmpiricalRisk) -> Space:
    """The parameter space, of which each process holds some coordinates."""
    ranks, size = risk.ranks, risk.num_params
    if not ranks.several:
        return Space(size)
    return Space(size, ranks.share(size), ranks.total, ranks.of_first)


def _checkpoint(path: str | Path, risk: EmpiricalRisk, settings: list[Any]) -> Checkpoint:
    """The solver's state, of which each process keeps its own rows in a file of its own."""
    ranks, key = risk.ranks, [risk.key(), *settings]
    if not ranks.several:
        return Checkpoint(Path(path), digest(key))
    mine = f"{ranks.rank}-of-{ranks.world}"
    return Checkpoint(Path(f"{path}.{mine}"), digest([*key, mine]))


def _forget_others(checkpoint: str | Path | None, kept: Checkpoint | None) -> None:
    """Remove what another number of processes has left of a computation, where it is complete now."""
    if checkpoint is None or kept is None or kept.path.exists():
        return
    path = Path(checkpoint)
    for other in path.parent.iterdir() if path.parent.is_dir() else ():
        if re.fullmatch(rf"{re.escape(path.name)}(\.\d+-of-\d+)?", other.name):
            other.unlink(missing_ok=True)


def spanned(pairs: Eigenpairs, matrix: Matrix, risk: EmpiricalRisk) -> Eigenspace:
    """The eigenspace that the solver found of a matrix of the risk's."""
    return Eigenspace(
        basis=pairs.vectors,
        eigenvalues=pairs.eigenvalues,
        residuals=pairs.residuals,
        cut_decided=pairs.cut_decided,
        converged=pairs.converged,
        matrix=matrix,
        risk_key=risk.key(),
        num_matvecs=pairs.num_matvecs,
        num_search_matvecs=pairs.num_search_matvecs,
        next_eigenvalue=pairs.next_eigenvalue,
    )


def plan_memory(risk: EmpiricalRisk, dim: int) -> tuple[EmpiricalRisk, int | None, torch.device]:
    """The risk in microbatches that leave room for a basis, the basis's size, and the device it lies on."""
    if not isinstance(dim, Integral) or not 1 <= dim <= risk.num_params:
        return risk, None, risk.device  # refused by the solver
    plan = risk.budget.basis_for(int(dim))
    device = torch.device("cpu") if plan.on_host else risk.device
    return risk if plan.room is None else risk.with_room(plan.room), plan.size, device
