"""Trace and Frobenius norm of a symmetric matrix that is known by its products; knows nothing of models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvprobe.errors import ArgumentError
from curvprobe.numerics.noise import normal_vector, sign_vector
from curvprobe.numerics.space import Space

SKETCHED = 3
"""One of so many products makes a sketch of the dominant directions, one is spent in them, the rest on probes."""

FEWEST_PROBES = 4


@dataclass(frozen=True, eq=False)
class TraceMoments:
    """Unbiased estimates of tr A, (tr A)^2 and the squared Frobenius norm of a symmetric matrix.

    Attributes:
        trace_terms: float64 (S,), independent unbiased estimates of tr A.
        frobenius_terms: float64 (S,), of ``|A|_F^2``, from the same probes.
        num_products: products used.
    """

    trace_terms: Tensor
    frobenius_terms: Tensor
    num_products: int

    @property
    def trace(self) -> float:
        """tr A."""
        return float(self.trace_terms.mean())

    @property
    def trace_stderr(self) -> float:
        """Standard error of ``trace``."""
        return math.sqrt(self._noise)

    @property
    def _noise(self) -> float:
        return float(self.trace_terms.var()) / len(self.trace_terms)

    @property
    def trace_squared(self) -> float:
        """(tr A)^2: the square of the mean without the mean's own variance."""
        return self.trace**2 - self._noise

    @property
    def frobenius_squared(self) -> float:
        """``|A|_F^2``."""
        return float(self.frobenius_terms.mean())

    @property
    def frobenius_squared_stderr(self) -> float:
        """Standard error of ``frobenius_squared``."""
        return float(self.frobenius_terms.std()) / math.sqrt(len(self.frobenius_terms))


def trace_moments(
    matmul: Callable[[Tensor], Tensor],
    num_params: int,
    *,
    num_products: int = 16,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    space: Space | None = None,
) -> TraceMoments:
    r"""Trace moments by random probes outside a sketch of the dominant directions.

    .. math:: \mathrm{tr} A = \mathrm{tr}\, Q^T A Q + E\, r^T A r, \quad |A|_F^2 = |A Q|_F^2 + E |A r|^2, \quad
        r = (I - Q Q^T) v

    with random signs v and Q an orthonormal basis of A times a Gaussian block. Unbiased whatever Q is; where a few
    eigenvalues dominate, Q holds them and little is left to chance. With fewer than 12 products, or in a matrix that
    is smaller than the sketch, there is no sketch.

    Args:
        matmul: maps a block (N, b) to ``A @ block``; A symmetric.
        num_params: N.
        num_products: products to use, at least 4.
        seed: of the sketch and the probes.
        dtype, device: of the vectors; sums are float64.
        space: where several processes hold the coordinates: ``matmul`` is then given the rows (n, b) that this one
            holds and returns those of the product.

    Source: Meyer, Musco, Musco & Woodruff (2021), "Hutch++: Optimal stochastic trace estimation"; the Frobenius norm
    from the same products is ours.

    Example:
        >>> import torch
        >>> diagonal = torch.arange(1.0, 6.0, dtype=torch.float64)
        >>> found = trace_moments(lambda block: diagonal[:, None] * block, 5, num_products=4, dtype=torch.float64)
        >>> found.trace, found.frobenius_squared   # exact for a diagonal matrix and random signs
        (15.0, 55.0)
    """
    if num_products < FEWEST_PROBES:
        raise ArgumentError(f"num_products is {num_products}; expected at least {FEWEST_PROBES}")
    generator = torch.Generator().manual_seed(seed)
    count = num_products // SKETCHED
    count = 0 if num_products < SKETCHED * FEWEST_PROBES or count >= num_params else count
    space = space or Space(num_params)
    sketch = torch.empty(count, space.held, dtype=dtype, device=device)
    kept, trace, square = 0, 0.0, 0.0
    for _ in range(count):
        draw = normal_vector(generator, num_params, dtype=dtype, device=device, part=space.part)
        image = matmul(draw[:, None])[:, 0].clone()
        before = space.norm(image)
        space.orthogonalise(image, sketch[:kept])
        after = space.norm(image)
        if after > 100 * torch.finfo(dtype).eps * before:
            sketch[kept] = image / after
            kept += 1
    for row in sketch[:kept]:
        image = matmul(row[:, None])[:, 0]
        trace += float(space.inner(row[None], image)[0])
        square += space.norm(image) ** 2
    traces, squares = [], []
    for _ in range(num_products - 2 * count):
        signs = sign_vector(generator, num_params, dtype=dtype, device=device, part=space.part)
        space.orthogonalise(signs, sketch[:kept])
        image = matmul(signs[:, None])[:, 0]
        traces.append(trace + float(space.inner(signs[None], image)[0]))
        squares.append(square + space.norm(image) ** 2)
    terms, frobenius = (torch.tensor(part, dtype=torch.float64, device="cpu") for part in (traces, squares))
    return TraceMoments(terms, frobenius, num_products - (count - kept))
