"""What every row of docs/models.md is held against: plain double backward, and the remedy that an error names."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import curvprobe as cp

ROUNDED = 1e-4
"""Tolerance for models that compute in float32, all or in part (a norm's ``.float()``), whatever their weights are."""

Term = Tensor | tuple[Tensor, Tensor | int]
"""Loss of one example: its mean, or the sum of its terms and their number."""


def refused(remedy: str) -> AbstractContextManager:
    """An error of the package whose message has these words; the page's row has them too."""
    return pytest.raises(cp.CurvprobeError, match=re.escape(remedy))


def rows(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """One example at a time, as batches of one."""
    return list(zip(*(tensor.split(1) for tensor in tensors), strict=True))


def entries(batch: dict[str, Tensor]) -> list[tuple[dict[str, Tensor]]]:
    """The same of a batch by name."""
    return [(dict(zip(batch, row, strict=True)),) for row in rows(*batch.values())]


def first_product(risk: cp.EmpiricalRisk) -> Tensor:
    return cp.hessian(risk) @ torch.ones(risk.num_params, dtype=risk.dtype)


@sdpa_kernel(SDPBackend.MATH)
def agrees(
    risk: cp.EmpiricalRisk,
    model: nn.Module,
    term: Callable[..., Term],
    examples: Sequence[Sequence[Any]],
    rtol: float = 1e-8,
) -> None:
    """Hold gradient, Hessian products, eigenpairs, projections and displaced losses against plain double backward.

    Args:
        risk: under test.
        model: that ``term`` calls, on the same weights; all that is trainable is probed.
        term: loss of one example, computed as a user calls the model.
        examples: what ``term`` is given, one after the other.
        rtol: relative to the norm of what is compared.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    losses, counts = by_hand(term, examples)
    shares = counts / counts.sum()
    slopes = [flat_gradient(loss, params, create_graph=True) for loss in losses]
    slope = sum(share * part for share, part in zip(shares, slopes, strict=True))
    close(risk.gradient(), slope, rtol)

    vectors = torch.randn(len(slope), 2, dtype=slope.dtype)
    products = torch.stack([flat_gradient(slope @ v, params) for v in vectors.T], dim=1)
    assert float(products.norm()) > 0
    close(cp.hessian(risk) @ vectors, products, rtol)

    space = cp.top_eigenspace(risk, dim=2)
    first, second = space.eigenvalues.tolist()
    assert first >= second
    basis = space.basis.to(slope.dtype)
    products = torch.stack([flat_gradient(slope @ v, params) for v in basis.T], dim=1)
    assert float((products - basis * space.eigenvalues.to(basis.dtype)).norm()) < 3e-3 * abs(first)

    sample = cp.project(risk, space)
    close(sample.loss, torch.stack(losses), rtol)
    close(sample.weight, counts, rtol)
    close(sample.gradient, torch.stack([part @ basis for part in slopes]), rtol)
    bends = [torch.stack([flat_gradient(part @ v, params) @ basis for v in basis.T]) for part in slopes]
    close(sample.hessian, torch.stack(bends), rtol)

    step = slope.detach() * (-0.05 * norm_of(params) / slope.detach().norm())
    with torch.no_grad():
        before = [p.clone() for p in params]
        for p, part in zip(params, step.split([p.numel() for p in params]), strict=True):
            p += part.view(p.shape)
    close(risk.losses(step), torch.stack(by_hand(term, examples)[0]), rtol)
    with torch.no_grad():
        for p, value in zip(params, before, strict=True):
            p.copy_(value)


def by_hand(term: Callable[..., Term], examples: Sequence[Sequence[Any]]) -> tuple[list[Tensor], Tensor]:
    """Mean loss of each example, and the number of its terms."""
    found = [term(*example) for example in examples]
    pairs = [pair if isinstance(pair, tuple) else (pair, 1) for pair in found]
    return [total.sum() / int(count) for total, count in pairs], torch.tensor(
        [float(count) for _, count in pairs]
    ).double()


def norm_of(params: list[Tensor]) -> float:
    return float(torch.cat([p.detach().reshape(-1) for p in params]).norm())


def flat_gradient(scalar: Tensor, params: list[Tensor], *, create_graph: bool = False) -> Tensor:
    if not scalar.requires_grad:
        return torch.zeros(sum(p.numel() for p in params), dtype=scalar.dtype)
    parts = torch.autograd.grad(
        scalar, params, create_graph=create_graph, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.reshape(-1) for part in parts])


def close(found: Tensor, exact: Tensor, rtol: float) -> None:
    assert found.shape == exact.shape
    error = (found.double() - exact.detach().double()).norm() / exact.detach().double().norm()
    assert float(error) < rtol
