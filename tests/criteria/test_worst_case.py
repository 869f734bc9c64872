"""The largest increment within a ball against a search, and against its bound."""

import math

import pytest
import torch

import curvprobe as cp


def searched(inc, radius):
    """Projected ascent of either sign from many starts."""
    start = torch.randn(4000, inc.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = radius * start / start.norm(dim=1, keepdim=True)
    step = 1 / max(1e-9, float(torch.linalg.eigvalsh(inc.curvature).abs().max()) + float(inc.slope.norm()) / radius)
    best = 0.0
    for sign in (1, -1):
        z = start
        for _ in range(600):
            z = z + sign * step * (inc.slope + z @ inc.curvature)
            z = z * (radius / z.norm(dim=1, keepdim=True)).clamp_max(1.0)
        best = max(best, float(inc.at(z).abs().max()))
    return best


@pytest.mark.parametrize("dim", [1, 2, 6])
@pytest.mark.parametrize("radius", [1e-3, 0.7, 30.0])
@pytest.mark.parametrize("kind", ["general", "hard", "definite", "linear"])
def test_against_a_search(dim, radius, kind):
    draw = torch.Generator().manual_seed(dim)
    c, B = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((dim,), (dim, dim)))
    B = {"definite": -B @ B.T - torch.eye(dim), "linear": 0 * B}.get(kind, (B + B.T) / 2)
    if kind == "hard":  # no slope along the extreme eigenvectors
        vectors = torch.linalg.eigh(B).eigenvectors
        for leading in (vectors[:, 0], vectors[:, -1]):
            c = c - leading * (leading @ c)
    inc = cp.QuadraticIncrement(torch.tensor(0.3), c, B)
    found = cp.worst_case(inc, radius)
    best = searched(inc, radius)
    assert found.value == pytest.approx(best, rel=1e-6)
    assert found.value >= best * (1 - 1e-12)
    assert float(inc.at(found.at[None]).abs()) == found.value
    assert float(found.at.norm()) <= radius * (1 + 1e-12)
    assert best <= found.bound * (1 + 1e-12)


def test_the_bound_is_reached_where_slope_and_curvature_agree():
    inc = cp.QuadraticIncrement(torch.tensor(1.0), torch.tensor([2.0, 0.0]), torch.diag(torch.tensor([3.0, -1.0])))
    found = cp.worst_case(inc, 2.0)
    assert found.value == pytest.approx(1 + 2 * 2 + 3 * 4 / 2)
    assert found.bound == pytest.approx(found.value)


def test_it_is_the_limit_of_large_orders():
    """For draws that fill the ball, (E |Q|^p)^(1/p) rises to it."""
    inc = cp.QuadraticIncrement(torch.tensor(0.1), torch.tensor([1.0, -0.5]), torch.tensor([[0.5, 0.2], [0.2, -1.0]]))
    z = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = z / z.norm(dim=1, keepdim=True) * torch.rand(len(z), 1, generator=torch.Generator().manual_seed(1)).sqrt()
    values, worst = inc.at(z).abs(), cp.worst_case(inc, 1.0).value
    roots = [float((values / worst).pow(p).mean()) ** (1 / p) for p in (2, 20, 2000)]
    assert roots == sorted(roots)
    assert 0.99 < roots[-1] <= 1


def test_a_constant_and_arguments():
    flat = cp.QuadraticIncrement(torch.tensor(-2.0), torch.zeros(3), torch.zeros(3, 3))
    assert cp.worst_case(flat, 1.0).value == 2.0
    for radius in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="radius is"):
            cp.worst_case(flat, radius)


def test_the_bound_by_eigenvalues_term_by_term():
    """|a| + r |c| + r^2 |B| / 2: above the worst case where c and the leading eigenvector point apart."""
    slope, curvature = (torch.tensor(v, dtype=torch.float64) for v in ([0.6, 0.8], [[2.0, 0.0], [0.0, -3.0]]))
    found = cp.worst_case(cp.QuadraticIncrement(torch.tensor(-0.5).double(), slope, curvature), radius=0.7)
    assert found.bound == pytest.approx(0.5 + 0.7 * 1.0 + 0.7**2 * 3 / 2, rel=1e-12)
    assert found.value < found.bound
    assert found.radius == 0.7


def test_the_hard_case_with_a_part_beside_the_leading_eigenvector_by_hand():
    """mu = 2: z = (+-sqrt(1 - 1/4), 1/2), and Q = 9 + 1.5 / 2 + (2 * 3/4 - 1/4) / 2; on other balls too."""
    slope, curvature = torch.tensor([0.0, 1.5]).double(), torch.diag(torch.tensor([2.0, -1.0]).double())
    inc = cp.QuadraticIncrement(torch.tensor(9.0).double(), slope, curvature)
    found = cp.worst_case(inc, 1.0)
    assert found.value == pytest.approx(9 + 1.375, rel=1e-12)
    assert found.at.abs().tolist() == pytest.approx([math.sqrt(0.75), 0.5], rel=1e-12)
    assert cp.worst_case(inc, 2.0).value == pytest.approx(9 + 0.75 + (2 * 3.75 - 0.25) / 2, rel=1e-12)
    inside = cp.worst_case(inc, 0.25)  # the part beside does not fit: on the sphere along it
    assert inside.value == pytest.approx(9 + 1.5 * 0.25 - 0.25**2 / 2, rel=1e-12)
    assert inside.at.tolist() == pytest.approx([0.0, 0.25], abs=1e-12)


def test_a_largest_value_inside_the_ball_is_not_pushed_to_its_surface():
    """A negative definite curvature: Q = 2 z - z^2 / 2 . 4 is largest at z = 1/2, wherever the ball ends beyond; the
    most negative value is on its surface."""
    inc = cp.QuadraticIncrement(
        torch.tensor(1.0).double(), torch.tensor([2.0]).double(), torch.tensor([[-4.0]]).double()
    )
    found = cp.worst_case(inc, 0.9)
    assert found.value == pytest.approx(abs(1 - 2 * 0.9 - 2 * 0.81), rel=1e-12)
    small = cp.worst_case(inc, 0.6)  # 1 + 1 - 1/2 at 1/2, above |1 - 1.2 - 0.72|
    assert small.value == pytest.approx(1.5, rel=1e-12)
    assert small.at.tolist() == pytest.approx([0.5], rel=1e-12)
