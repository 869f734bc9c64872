"""Projections by double backward, one example and one direction at a time, and the package's three ways to them."""

import torch
from torch import Tensor

import curvprobe as cp
from curvprobe.curvature.nodewise.examples import NODEWISE
from curvprobe.curvature.per_example import TOGETHER
from tests import cases, reference

DIM = 3
CLOSE = {"rtol": 1e-10, "atol": 1e-8}


def orthonormal(n: int, dim: int = DIM, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, dim, generator=generator, dtype=torch.float64)).Q


def given(risk: cp.EmpiricalRisk, dim: int = DIM) -> cp.Subspace:
    return cp.Subspace.from_basis(orthonormal(risk.num_params, dim))


def naive_projection(case: cases.Case, U: Tensor, data=None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    params = reference.trainable(case.model)
    values, weights = reference.example_losses(case.model, case.loss, case.batches(data))
    slopes, bends = [], []
    for value in values:
        flat = reference.gradient(value, params, create_graph=True)
        slopes.append(U.T @ flat.detach())
        bends.append(U.T @ torch.stack([reference.gradient(flat @ u, params) for u in U.T], dim=1))
    losses = torch.stack([value.detach() for value in values])
    return losses, torch.tensor(weights, dtype=torch.float64), torch.stack(slopes), torch.stack(bends)


def same(first: cp.ProjectedSample, second: cp.ProjectedSample, **tolerance) -> bool:
    names = ("loss", "weight", "gradient", "hessian")
    tolerance = tolerance or CLOSE
    return all(torch.allclose(getattr(first, n), getattr(second, n), **tolerance) for n in names)


WAYS = ("by operations", "together", "one by one")


def taking(way: str, risk: cp.EmpiricalRisk) -> cp.EmpiricalRisk:
    """The risk, whose examples go this way; by operations is what they do by themselves."""
    given_up = {"together": [NODEWISE], "one by one": [NODEWISE, TOGETHER]}.get(way, [])
    risk.probed.fast_paths.verdicts.update(dict.fromkeys(given_up, False))
    return risk


def taken(risk: cp.EmpiricalRisk) -> str:
    """The way that its examples went."""
    verdicts = risk.probed.fast_paths.verdicts
    return next((way for way, name in zip(WAYS, (NODEWISE, TOGETHER), strict=False) if verdicts.get(name)), WAYS[2])


def together(risk: cp.EmpiricalRisk) -> bool | None:
    """Whether its examples were differentiated together; None where that was never tried."""
    return risk.probed.fast_paths.verdicts.get(TOGETHER)
