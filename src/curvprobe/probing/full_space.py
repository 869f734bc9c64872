"""The criterion in all parameters: the closed form by stochastic traces, for one increment and over next examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe.criteria.draws import check_sigma
from curvprobe.criteria.estimators import Estimate
from curvprobe.curvature.double_backward import double_backward_errors
from curvprobe.curvature.matrix import hessian
from curvprobe.curvature.per_example import products_together
from curvprobe.errors import ArgumentError
from curvprobe.numerics.intervals import freedom, standard_error
from curvprobe.numerics.noise import sign_vector
from curvprobe.numerics.traces import TraceMoments, trace_moments
from curvprobe.probing.joining import Joining
from curvprobe.risk.empirical import EmpiricalRisk, expect_risk
from curvprobe.risk.passes import over_examples
from curvprobe.runtime import progress
from curvprobe.runtime.plain import brief


def full_space_moment(
    risk: EmpiricalRisk,
    new: EmpiricalRisk,
    *,
    sigma: float | Tensor,
    num_probes: int = 16,
    seed: int = 0,
) -> Estimate:
    r"""Second moment of the quadratic model of the increment under a Gaussian probe in all N parameters.

    .. math:: (a + \sigma^2 \mathrm{tr} A / 2)^2 + \sigma^2 |b|^2 + \sigma^4 |A|_F^2 / 2

    a and b are exact; tr A, its square and the Frobenius norm are unbiased stochastic estimates. No N x N matrix and no
    draw of the loss.

    Args:
        risk: on the k examples.
        new: on the examples that join together.
        sigma: standard deviation in parameter units, one for all parameters or one for each (N,); an (N,) tensor may
            hold zeros.
        num_probes: products with the increment's Hessian, at least 4; each is one with the sample's and one with the
            new examples'.
        seed: of the probes.

    Returns:
        Value in squared loss units with its level, slope and curvature parts, and the standard error of what is
        estimated.

    Raises:
        ValueError: for a sigma or a number of probes that makes no sense.

    Source: closed form of Kiselev & Grabovoy (2026), arXiv:2604.14870, in the full space; traces as in
    :func:`trace_moments`.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0]]), torch.zeros(1, 1)))
        >>> new = risk.on((torch.tensor([[3.0]]), torch.zeros(1, 1)))
        >>> estimate = cp.full_space_moment(risk, new, sigma=0.5)
        >>> estimate.value, estimate.stderr
        (43.0, 0.0)
    """
    expect_risk(risk)
    scale, joining = _scale(risk, sigma), Joining(risk, new)
    level = joining.increment_at()
    slope = scale * joining.gradient_gap() * joining.factor
    hessian_gap = joining.hessian_gap()
    with progress.bar("traces (products)", num_probes) as advance:

        def scaled_product(block: Tensor) -> Tensor:
            advance(block.shape[1])
            return hessian_gap(block * scale[:, None]) * (joining.factor * scale)[:, None]

        vectors = risk.probed.vectors
        moments = trace_moments(
            scaled_product,
            risk.num_params,
            num_products=num_probes,
            seed=seed,
            dtype=risk.dtype,
            device=risk.device,
            space=vectors,
        )
    return _estimate(level, vectors.norm(slope) ** 2, moments)


def _scale(risk: EmpiricalRisk, sigma: float | Tensor) -> Tensor:
    """Standard deviation of each parameter (N,)."""
    if isinstance(sigma, Tensor) and sigma.dim():
        if sigma.shape != (risk.probed.held,) or not bool((sigma.isfinite() & (sigma >= 0)).all()):
            raise ArgumentError(
                f"sigma has shape {tuple(sigma.shape)}; expected a positive number, or "
                f"{risk.probed.held} that are finite and not negative"
            )
        return sigma.detach().to(device=risk.device, dtype=risk.dtype)
    return torch.full((risk.probed.held,), float(check_sigma(sigma)), dtype=risk.dtype, device=risk.device)


def _estimate(level: float, slope: float, moments: TraceMoments) -> Estimate:
    raised, terms = _raised(torch.tensor(level, dtype=torch.float64, device="cpu"), moments.trace_terms)
    curvature = moments.frobenius_squared / 2
    return Estimate(
        value=float(raised) + slope + curvature,
        stderr=standard_error(terms + moments.frobenius_terms / 2),
        freedom=freedom(terms + moments.frobenius_terms / 2),
        num_probes=moments.num_products,
        level=float(raised),
        slope=slope,
        curvature=curvature,
        shape=slope + curvature,
    )


def _raised(level: Tensor, traces: Tensor) -> tuple[Tensor, Tensor]:
    """``(level + trace / 2)^2`` without bias, from independent estimates (..., S) of the trace, and their shares.

    The shares (..., S), whose mean it is, are jackknife pseudo-values.
    """
    count, mean = traces.shape[-1], traces.mean(-1, keepdim=True)
    squares = (traces - mean).square()
    spread = squares.sum(-1, keepdim=True)

    def value(trace: Tensor, around: Tensor, n: int) -> Tensor:
        return (level[..., None] + trace / 2).square() - around / (n - 1) / n / 4

    whole = value(mean, spread, count)
    others = (count * mean - traces) / (count - 1)
    left_out = value(others, spread - count / (count - 1) * squares, count - 1)
    return whole[..., 0], count * whole - (count - 1) * left_out


def quadratic_model_at(joining: Joining, displacements: Iterable[Tensor], count: int) -> Tensor:
    """The quadratic model of the increment at ``count`` displacements (N,) from the solution; float64 (count,)."""
    level, slope, hessian_gap = joining.value_gap(), joining.gradient_gap(), joining.hessian_gap()
    vectors = joining.risk.probed.vectors
    values = []
    before, curvature = None, 0.0
    with progress.bar("quadratic model (draws)", count) as advance:
        for displacement in displacements:
            if before is None or vectors.norm(displacement + before) > 0:  # a mirror image curves alike
                curvature = float(vectors.inner(displacement[None], hessian_gap(displacement))[0])
            before = displacement
            along = float(vectors.inner(displacement[None], slope)[0])
            values.append(joining.factor * (level + along + curvature / 2))
            advance(1)
    return torch.tensor(values, dtype=torch.float64, device="cpu")


@dataclass(frozen=True, eq=False)
class FullSpaceParts:
    """Level, slope and curvature parts of the full-space moment for every next example, squared loss units.

    Attributes:
        level, slope, curvature: float64 (m,), unbiased; slope exact.
        value_terms: float64 (S,), what each probe says of the mean value over the examples; their scatter is the error
            that all examples share.
        shape_terms: float64 (S,), the same for the shape criterion.
    """

    level: Tensor
    slope: Tensor
    curvature: Tensor
    value_terms: Tensor
    shape_terms: Tensor

    __repr__ = brief

    @property
    def value(self) -> Tensor:
        """Criterion of each example (m,)."""
        return self.level + self.slope + self.curvature

    @property
    def shape(self) -> Tensor:
        """Shape criterion of each example (m,)."""
        return self.slope + self.curvature

    @property
    def expected(self) -> Estimate:
        """The mean over the examples, with the error of both the examples and the probes."""
        level, slope, curvature = (float(part.mean()) for part in (self.level, self.slope, self.curvature))
        over_examples = standard_error(self.value) if len(self.value) > 1 else 0.0
        return Estimate(
            value=level + slope + curvature,
            stderr=math.hypot(over_examples, standard_error(self.value_terms)),
            num_probes=len(self.value_terms),
            level=level,
            slope=slope,
            curvature=curvature,
            shape=slope + curvature,
        )


def full_space_parts(
    risk: EmpiricalRisk,
    candidates: EmpiricalRisk,
    *,
    sigma: float | Tensor,
    num_probes: int = 16,
    seed: int = 0,
) -> FullSpaceParts:
    """The full-space moment for each candidate as the next example, all with the same probes.

    Costs ``num_probes`` products with the sample's Hessian, and as many with each candidate's.

    Args:
        risk: on the k examples.
        candidates: the m examples, each of which is tried as the next one.
        sigma: as in :func:`full_space_moment`.
        num_probes: random probes, at least 4.
        seed: of the probes.

    Example:
        >>> import torch, curvprobe as cp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> risk = cp.EmpiricalRisk(model, cp.losses.mse, (torch.tensor([[1.0]]), torch.zeros(1, 1)))
        >>> new = risk.on((torch.tensor([[3.0], [1.0]]), torch.zeros(2, 1)))
        >>> cp.full_space_parts(risk, new, sigma=0.5).value.tolist()   # the second changes nothing
        [43.0, 0.0]
    """
    expect_risk(risk)
    if num_probes < 4:
        raise ArgumentError(f"num_probes is {num_probes}; expected at least 4")
    scale, joining = _scale(risk, sigma), Joining(risk, candidates)
    factor, m, gradient = joining.factors, len(candidates), risk.gradient()
    slopes = factor * _of_each(candidates, work=lambda own: _lengths(own, scale, gradient))
    traces, squares = (torch.empty(m, num_probes, dtype=torch.float64, device="cpu") for _ in range(2))
    H = hessian(risk)
    with progress.bar("full space (examples x probes)", m * num_probes) as advance:
        for first, block in _sign_blocks(risk, num_probes, seed):
            columns, count = scale[:, None] * block, block.shape[1]
            of_sample = H @ columns

            def seen(own: EmpiricalRisk, columns: Tensor = columns, of: Tensor = of_sample) -> Tensor:
                return _bends(own, scale, columns, of, advance)

            bends = factor[:, None, None] * _of_each(candidates, 2, count, work=seen)
            traces[:, first : first + count], squares[:, first : first + count] = bends[:, 0], bends[:, 1].square()
    raised, terms = _raised(factor * (candidates.losses() - risk.value()), traces)
    return FullSpaceParts(
        level=raised,
        slope=slopes.square(),
        curvature=squares.mean(1) / 2,
        value_terms=(terms + squares / 2).mean(0),
        shape_terms=squares.mean(0) / 2,
    )


def _of_each(candidates: EmpiricalRisk, *shape: int, work: Callable[[EmpiricalRisk], Tensor]) -> Tensor:
    """Rows (m, *shape) that ``work`` makes of the examples, of which each process has its own; where the weights are
    divided all go through every example together."""
    if candidates.probed.divided is not None:
        return work(candidates)
    return over_examples(candidates, *shape, work=work)


def _lengths(candidates: EmpiricalRisk, scale: Tensor, gradient: Tensor) -> Tensor:
    """Length of each example's gradient less the sample's, float64 (m,)."""
    norm = candidates.probed.vectors.norm
    found = [norm(scale * (candidates[[j]].gradient() - gradient)) for j in range(len(candidates))]
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def _bends(
    candidates: EmpiricalRisk, scale: Tensor, columns: Tensor, of_sample: Tensor, advance: Callable[[int], None]
) -> Tensor:
    """What each example's Hessian, less the sample's, makes of scaled signs (N, b): (m, 2, b) along them and in all."""
    found = torch.empty(len(candidates), 2, columns.shape[1], dtype=torch.float64, device="cpu")
    space = candidates.probed.vectors
    for rows, s, products in _products_of_each(candidates, columns):
        images = products - of_sample[:, s]
        found[rows, 0, s] = space.inner(images, columns[:, s].contiguous(), quick=True).cpu()
        found[rows, 1, s] = space.norms(scale * images).cpu()
        advance(len(products))
    return found


def _products_of_each(candidates: EmpiricalRisk, columns: Tensor) -> Iterator[tuple[slice, int, Tensor]]:
    """Which examples, which column of (N, b), and the products (n, N) of the examples' own Hessians with it."""
    start, size = 0, min(candidates.budget.examples_together(), candidates.microbatch_size)
    size = 1 if candidates.probed.divided is not None else size
    while start < len(candidates):
        rows = slice(start, min(start + size, len(candidates)))
        if size > 1 and (yield from _together(candidates, rows, columns)):
            start = rows.stop
            continue
        size = 1
        products = hessian(candidates[[start]]) @ columns
        yield from ((slice(start, start + 1), s, column[None]) for s, column in enumerate(products.T))
        start += 1


def _together(
    candidates: EmpiricalRisk, rows: slice, columns: Tensor
) -> Generator[tuple[slice, int, Tensor], None, bool]:
    """The same of a group of examples at once; returns whether that works."""
    for s, column in enumerate(columns.T):
        with candidates.undisturbed(), double_backward_errors():
            examples = candidates.sample.read(rows.start, rows.stop)
            products = products_together(candidates.probed, examples, column.contiguous())
        if products is None:
            return False
        yield rows, s, products
    return True


def _sign_blocks(risk: EmpiricalRisk, num_probes: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Random signs in blocks (N, b), with the number of those before."""
    generator, held = torch.Generator().manual_seed(seed), risk.budget.probes_held()
    for first in range(0, num_probes, held):
        count = min(held, num_probes - first)
        signs = torch.empty(count, risk.probed.held, dtype=risk.dtype, device=risk.device)
        for row in signs:
            part = risk.probed.vectors.part
            row.copy_(sign_vector(generator, risk.num_params, dtype=risk.dtype, device=risk.device, part=part))
        yield first, signs.T
