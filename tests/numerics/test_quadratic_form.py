"""The contour integral against one-dimensional quadrature, closed forms of SciPy, and its own second moments."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from curvprobe.numerics.quadratic_form import absolute_moment, upper_moment

ORDERS = (0.5, 1.0, 1.5, 3.0, 4.0, 6.0)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def by_quadrature(p, a, c, b):
    """``E |a + c x + b x^2 / 2|^p`` of one normal variable, split at the zeros of the form."""
    zeros = []
    if b and c * c - 2 * a * b > 0:
        root = math.sqrt(c * c - 2 * a * b)
        zeros = [(-c - root) / b, (-c + root) / b]
    elif c and not b:
        zeros = [-a / c]
    cuts = sorted({-38.0, 38.0, *(z for z in zeros if abs(z) < 38), *np.linspace(-12, 12, 25)})

    def value(x):
        return abs(a + c * x + b * x * x / 2) ** p * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    return in_pieces(value, cuts)


def density_moment(y, *, p, a, b, law):
    return abs(a + b / 2 * y) ** p * law.pdf(y)


def in_pieces(value, cuts):
    pieces = itertools.pairwise(cuts)
    return sum(integrate.quad(value, low, high, epsabs=0, epsrel=1e-12, limit=400)[0] for low, high in pieces)


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")
@pytest.mark.parametrize("p", ORDERS)
def test_one_variable(p):
    """Every kind of degenerate case among them: no level, no slope, no curvature, huge and tiny ones of either sign."""
    cases = [
        (a, c, b)
        for a in (0.0, 1.0, -1e-3, 1e3)
        for c in (0.0, 1.0, 1e-3, 30.0)
        for b in (0.0, 1.0, 1e-4, -20.0, 1e3)
        if (a, c, b) != (0, 0, 0)
    ]
    a, c, b = (column(*values) for values in zip(*cases, strict=True))
    value, error = absolute_moment(p, a[:, 0], c, b)
    exact = torch.tensor([by_quadrature(p, *case) for case in cases], dtype=torch.float64)
    assert bool(((value - exact).abs() <= 1e-9 * exact).all())
    assert bool((error <= 1e-9 * exact).all())


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")
@pytest.mark.parametrize("dim", [2, 10, 200])
@pytest.mark.parametrize("p", [1.0, 1.5, 3.0])
def test_many_variables_of_one_eigenvalue(dim, p):
    """Then the form is a non-central chi-square variable, whose density SciPy has."""
    for shift in (0.5, 20.0)[: 1 if dim == 200 else 2]:
        for b in (1.0, -0.01):
            for a in (0.0, -0.5 * b * dim, 2.0):
                law = stats.ncx2(dim, shift)
                mean, deviation = law.mean(), law.std()
                cuts = {max(1e-12, mean + step * deviation) for step in range(-9, 30)} | {max(1e-12, -2 * a / b)}
                exact = in_pieces(partial(density_moment, p=p, a=a, b=b, law=law), sorted(cuts))
                every = torch.ones(1, dim, dtype=torch.float64)
                level = torch.tensor([a + b * shift / 2], dtype=torch.float64)
                value, _ = absolute_moment(p, level, b * math.sqrt(shift / dim) * every, b * every)
                assert float(value) == pytest.approx(exact, rel=1e-8)


def test_tails_keep_their_digits():
    one = torch.ones(1, 10, dtype=torch.float64)
    for x in (1.0, 60.0, 500.0):
        level = torch.tensor([x / 2], dtype=torch.float64)
        assert float(upper_moment(0.0, -level, 0 * one, one)[0]) == pytest.approx(stats.chi2.sf(x, 10), rel=1e-10)
        assert float(upper_moment(0.0, level, 0 * one, -one)[0]) == pytest.approx(stats.chi2.cdf(x, 10), rel=1e-10)
    level, unit = torch.tensor([-3.0, -10.0, -30.0], dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    found = upper_moment(0.0, level, unit, 0 * unit)[0]
    assert found.tolist() == pytest.approx(stats.norm.sf([3, 10, 30]).tolist(), rel=1e-10)


def test_constants_and_forms_of_one_sign():
    zero = torch.zeros(1, 3, dtype=torch.float64)
    for level, p, expected in ((2.0, 3.0, 8.0), (-2.0, 3.0, 8.0), (0.0, 1.0, 0.0)):
        value, error = absolute_moment(p, torch.tensor([level], dtype=torch.float64), zero, zero)
        assert (float(value), float(error)) == (pytest.approx(expected), 0.0)
    assert float(upper_moment(0.0, torch.tensor([-1.0], dtype=torch.float64), zero, zero - 1)[0]) == 0.0
    # never positive, but for rounding
    c = torch.full((1, 3), 0.1, dtype=torch.float64)
    level = -torch.tensor([3 * 0.1**2 / (2 * 0.7)], dtype=torch.float64)
    assert float(upper_moment(1.0, level, c, zero - 0.7)[0]) == 0.0


def test_second_moments_are_the_sum_of_squares():
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(300, generator=draw, dtype=torch.float64)
    c, b = (torch.randn(300, 7, generator=draw, dtype=torch.float64) * size for size in (0.3, 1.0))
    value, error = absolute_moment(2.0, a, c, b)
    exact = (a + b.sum(1) / 2).square() + c.square().sum(1) + b.square().sum(1) / 2
    assert bool(((value - exact).abs() <= 1e-12 * exact).all())
    assert bool((error <= 1e-11 * exact).all())
