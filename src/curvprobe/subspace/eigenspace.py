"""The leading eigenspace of a curvature, with certificates."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from curvprobe.curvature.linearisation import Kind
from curvprobe.curvature.matrix import CurvatureMatrix
from curvprobe.eigensolver.checkpoint import Checkpoint
from curvprobe.eigensolver.lanczos import Eigenpairs, lanczos
from curvprobe.eigensolver.wanted import Which
from curvprobe.errors import ArgumentError
from curvprobe.numerics.space import Space
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.runtime.digest import digest
from curvprobe.runtime.ranks import Ranks
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
    matrix, ranks, space = CurvatureMatrix(slim, curvature, compile), risk.ranks, risk.space
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
            start=None if start is None else _rows(start, space)[:, :basis_size],
            basis_size=basis_size,
            checkpoint=kept,
            space=space,
        )
    found = spanned(pairs, curvature, risk)
    return replace(found, space=space) if ranks.several else found


def _rows(subspace: Subspace, space: Space) -> Tensor:
    """The coordinates of its basis vectors that this process holds in the space."""
    if subspace.space is not None and subspace.space.part == space.part:
        return subspace.basis
    return subspace.columns()[space.rows]


def gathered(space: Eigenspace, ranks: Ranks) -> Eigenspace:
    """The eigenspace with all its coordinates, on the host and one vector after the other, in the first process; in the
    others without any."""
    if space.space is None or space.space.gathered is None:
        return space
    basis = torch.empty(space.num_params if ranks.rank == 0 else 0, space.dim, dtype=space.basis.dtype, device="cpu")
    for i, column in enumerate(basis.T):
        found = space.space.gathered(space.basis[:, i])
        column.copy_(found[: len(column)])
    return replace(space, basis=basis, space=None)


def handed_out(space: Eigenspace | None, risk: EmpiricalRisk) -> Eigenspace:
    """What each process holds of the eigenspace of the first one, which alone has it."""
    among = risk.space
    assert among.handed_out is not None  # of several

    def without_basis() -> Eigenspace:
        assert space is not None
        return replace(space, basis=space.basis[:0])

    found = risk.ranks.from_first(without_basis)
    columns = [among.handed_out(None if space is None else space.basis[:, i]) for i in range(found.dim)]
    return replace(found, basis=torch.stack(columns, dim=1), space=among)


def _checkpoint(path: str | Path, risk: EmpiricalRisk, settings: list[Any]) -> Checkpoint:
    """The solver's state, of which each process keeps its own rows in a file of its own."""
    return Checkpoint(Path(path), digest([risk.key(), *settings]), rank=risk.ranks.rank, world=risk.ranks.world)


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
    plan = risk.budget.basis_for(int(dim), risk.space)
    device = torch.device("cpu") if plan.on_host else risk.device
    return risk if plan.room is None else risk.with_room(plan.room), plan.size, device
