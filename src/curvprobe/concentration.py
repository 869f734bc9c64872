"""How much of the full-space signal a few directions capture, as their number grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvprobe.deformation import deformation_subspace
from curvprobe.estimators import moment_parts
from curvprobe.full_space import full_space_parts
from curvprobe.increment import fresh_increments
from curvprobe.intervals import pseudo_values, standard_error
from curvprobe.probes import check_sigma
from curvprobe.projection import mean_projection, project
from curvprobe.risk import EmpiricalRisk
from curvprobe.subspace import Subspace, gradient_subspace, random_subspace, top_eigenspace

LOOSE = 1e-2
"""Tolerance of the Hessian's bottom, where the spectrum is so crowded that single directions mean little."""


@dataclass(frozen=True, eq=False)
class ConcentrationCurve:
    """Share of the full-space signal in the first D' directions of several subspaces, averaged over next examples.

    Attributes:
        names: (M,), of the subspaces.
        certified: int (M,), how many of the leading directions are certified as what they are called; those of a
            subspace that is not an eigenspace need no certificate.
        dims: int (P,), dimensions D'; a subspace with fewer directions has NaN beyond.
        criterion: float64 (M, P), share of the paper's criterion, level included.
        criterion_stderr: (M, P), over the examples, with the error of the traces.
        shape: (M, P), share of the shape criterion.
        shape_stderr: (M, P).
        null: (P,), D' / N: what a random subspace captures of the slope on average.
        num_params: N.
        sigma: standard deviation of the probe.
        full_criterion, full_criterion_stderr, full_shape: the mean full-space signal that the shares are of, squared
            loss units.
    """

    names: tuple[str, ...]
    certified: Tensor
    dims: Tensor
    criterion: Tensor
    criterion_stderr: Tensor
    shape: Tensor
    shape_stderr: Tensor
    num_params: int
    sigma: float
    full_criterion: float
    full_criterion_stderr: float
    full_shape: float

    @property
    def null(self) -> Tensor:
        """D' / N, float64 (P,)."""
        return self.dims.double() / self.num_params

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "dims": self.dims,
            "null": self.null,
            "sigma": self.sigma,
            "full_space": {
                "value": self.full_criterion,
                "stderr": self.full_criterion_stderr,
                "shape": self.full_shape,
            },
            "subspaces": {
                name: {
                    "certified": self.certified[i],
                    "shape": self.shape[i],
                    "shape_stderr": self.shape_stderr[i],
                    "criterion": self.criterion[i],
                    "criterion_stderr": self.criterion_stderr[i],
                }
                for i, name in enumerate(self.names)
            },
        }

    def __str__(self) -> str:
        lines = [
            f"Full space, averaged over the candidates: criterion {self.full_criterion:.4e} +- "
            f"{self.full_criterion_stderr:.1e}, of it shape {self.full_shape:.4e}",
            f"Share of the full-space shape signal in the first D of {self.num_params}, sigma {self.sigma:g}",
        ]
        lines.append(f"  {'D':>14} " + "".join(f"{d:>18}" for d in self.dims.tolist()))
        for i, name in enumerate(self.names):
            cells = zip(self.shape[i].tolist(), self.shape_stderr[i].tolist(), strict=True)
            lines.append(
                f"  {name:>14} "
                + "".join(" " * 17 + "-" if math.isnan(v) else f"{v:>9.2e} +-{e:.0e} " for v, e in cells)
            )
            if int(self.certified[i]) < int((~self.shape[i].isnan()).double().mul(self.dims).max()):
                lines[-1] += f" ({int(self.certified[i])} directions certified)"
        lines.append(f"  {'null D/N':>14} " + "".join(f"{v:>9.2e}         " for v in self.null.tolist()))
        return "\n".join(lines)


def default_subspaces(
    risk: EmpiricalRisk,
    candidates: EmpiricalRisk,
    dim: int,
    *,
    tol: float = 1e-3,
    seed: int = 0,
    hessian: Subspace | None = None,
) -> dict[str, Subspace]:
    """The subspaces that a concentration curve compares.

    The top of the Hessian and of the Gauss-Newton matrix, the bottom of the Hessian, the directions in which the
    sample's gradients differ most and those in which the candidates' do (which has seen the answer: at small sigma
    nothing captures more of what the candidates' gradients scatter about their mean), gradients of the sample, and
    random directions.

    Args:
        risk: on the k examples.
        candidates: the next examples.
        dim: directions of each; fewer where the examples cannot span so many.
        tol, seed: of the eigensolver and the random directions.
        hessian: the top of the Hessian, where it is known already.
    """
    spaces = {
        "hessian": top_eigenspace(risk, dim=dim, tol=tol, seed=seed) if hessian is None else hessian,
        "ggn": top_eigenspace(risk, dim=dim, curvature="ggn", tol=tol, seed=seed),
    }
    if len(risk) > 1:
        spaces["deformation"] = deformation_subspace(risk, min(dim, len(risk) - 1), tol=tol, seed=seed)
    if len(candidates) > 1:
        spaces["best possible"] = deformation_subspace(candidates, min(dim, len(candidates) - 1), tol=tol, seed=seed)
    spaces["gradients"] = gradient_subspace(risk[: min(dim, len(risk))])
    spaces["random"] = random_subspace(risk, dim, seed=seed)
    spaces["bottom"] = top_eigenspace(
        risk, dim=dim, which="smallest", tol=max(tol, LOOSE), max_matvecs=30 * dim + 10, seed=seed
    )
    return spaces


def concentration_curve(
    risk: EmpiricalRisk,
    candidates: EmpiricalRisk,
    *,
    sigma: float,
    subspaces: Mapping[str, Subspace] | None = None,
    dim: int = 10,
    dims: Sequence[int] | None = None,
    num_probes: int = 16,
    seed: int = 0,
) -> ConcentrationCurve:
    r"""Share of the full-space criterion, and of its shape, that subspaces capture as their dimension grows.

    .. math:: \frac{ \sum_j \sigma^2 |U^T b_j|^2 + \sigma^4 |U^T A_j U|_F^2 / 2 }
        { \sum_j \sigma^2 |b_j|^2 + \sigma^4 |A_j|_F^2 / 2 }

    over the candidates j as next examples. The share of the paper's criterion is close to 1 for any subspace at small
    sigma, because the level is in it; the shape's is the answer to "how much of the deformation lives in these
    directions?".

    Args:
        risk: on the k examples.
        candidates: the next examples, outside the sample.
        sigma: standard deviation in parameter units.
        subspaces: by name; None takes :func:`default_subspaces` of ``dim`` directions.
        dims: dimensions D' at which to look; None is 1, 2, 4, ... up to the largest subspace.
        num_probes: random probes for the full space's traces.
        seed: of the probes.

    Source: derived in docs/theory.md.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> x = torch.eye(4)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, 5 + torch.zeros(4, 1)))
        >>> new = risk.on((2 * x[:2], torch.zeros(2, 1)))
        >>> everything = {"all": cp.Subspace.from_basis(torch.eye(4))}
        >>> curve = cp.concentration_curve(risk, new, sigma=0.1, subspaces=everything, dims=[4])
        >>> round(float(curve.shape), 4)
        1.0
    """
    single = float(check_sigma(sigma))
    spaces = default_subspaces(risk, candidates, dim, seed=seed) if subspaces is None else dict(subspaces)
    if not spaces:
        raise ValueError("subspaces is empty; expected at least one")
    largest = max(space.dim for space in spaces.values())
    chosen = sorted({*(2**i for i in range(largest.bit_length())), largest}) if dims is None else list(dims)
    if not chosen or not all(1 <= d <= largest for d in chosen):
        raise ValueError(f"dims is {chosen}; expected dimensions from 1 to {largest}")
    full = full_space_parts(risk, candidates, sigma=single, num_probes=num_probes, seed=seed)
    shares = torch.full((4, len(spaces), len(chosen)), math.nan, dtype=torch.float64)
    for i, space in enumerate(spaces.values()):
        increments = next(fresh_increments(mean_projection(risk, space), project(candidates, space)))
        for j, d in enumerate(chosen):
            if d <= space.dim:
                level, slope, bend = moment_parts(increments.truncate(d), check_sigma(single))
                shares[:2, i, j] = _share(level + slope + bend, full.value, full.value_terms)
                shares[2:, i, j] = _share(slope + bend, full.shape, full.shape_terms)
    criterion, criterion_stderr, shape, shape_stderr = shares.unbind(0)
    return ConcentrationCurve(
        tuple(spaces),
        torch.tensor(
            [space.dim if space.converged is None else int(space.converged.sum()) for space in spaces.values()]
        ),
        torch.as_tensor(chosen),
        criterion,
        criterion_stderr,
        shape,
        shape_stderr,
        risk.num_params,
        single,
        full.expected.value,
        full.expected.stderr,
        float(full.shape.mean()),
    )


def _share(captured: Tensor, whole: Tensor, probe_terms: Tensor) -> Tensor:
    """Ratio of the means of ``captured`` and ``whole`` (m,), and its standard error over examples and probes."""
    m, total = len(captured), float(whole.sum())
    ratio = captured.sum() / total
    over_probes = float(ratio) * standard_error(probe_terms) * m / total
    over_examples = 0.0
    if m > 1:
        left_out = (captured.sum() - captured) / (total - whole)
        over_examples = standard_error(pseudo_values(ratio, left_out))
    return torch.tensor([float(ratio), math.hypot(over_probes, over_examples)], dtype=torch.float64)
