"""The paper's theorem, corollary and proposition where they must hold, and where their premises fail."""

import itertools
import math

import pytest
import torch

import curvprobe as cp
from tests import cases
from tests.criteria.samples import sample_of


@pytest.mark.parametrize("sigma", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize("seed", range(8))
def test_the_bound_holds(sigma, seed):
    sample, new = sample_of(9, seed=seed, weighted=seed % 2 == 1), sample_of(1, seed=100 + seed)
    found = cp.rate_bound(sample, new, sigma)
    assert found.holds
    assert found.slack >= 1
    assert found.value == cp.gaussian_moment(cp.increment(sample, new), sigma=sigma).value


def test_the_bound_falls_as_the_square_of_k():
    one = sample_of(1, seed=1)
    bounds = []
    for k in (9, 99):
        same = cp.ProjectedSample(*(getattr(one, n).expand(k, *getattr(one, n).shape[1:]) for n in FIELDS))
        bounds.append(cp.rate_bound(same, sample_of(1, seed=2), 0.1).bound)
    assert bounds[0] / bounds[1] == pytest.approx(100, rel=1e-12)


FIELDS = ("loss", "weight", "gradient", "hessian")


def test_the_spectral_form_needs_shared_eigenvectors():
    bends = torch.diag(torch.tensor([3.0, 1.0, 0.5]))
    shared = [
        cp.ProjectedSample(torch.zeros(1), torch.ones(1), torch.zeros(1, 3), part[None]) for part in (bends, 2 * bends)
    ]
    found = cp.spectral_closed_form(*shared, sigma=0.2)
    assert found.value == pytest.approx(found.full, rel=1e-12)
    assert found.misalignment == 0
    # A shift that changes the order of the eigenvalues: 2 and 1 become 2 and 4.
    flat = [torch.diag(torch.tensor(values)) for values in ((2.0, 1.0), (2.0, 7.0))]
    crossed = [cp.ProjectedSample(torch.zeros(1), torch.ones(1), torch.zeros(1, 2), part[None]) for part in flat]
    found = cp.spectral_closed_form(*crossed, sigma=0.2)
    assert found.value == pytest.approx(found.full, rel=1e-12)
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q.double()
    other = cp.ProjectedSample(
        torch.zeros(1), torch.ones(1), torch.zeros(1, 3), (turned @ bends.double() @ turned.T)[None]
    )
    mixed = cp.spectral_closed_form(shared[0], other, sigma=0.2)
    assert mixed.misalignment > 0.1
    assert mixed.value < mixed.curvature_only


def test_misalignment_of_a_shift_that_turns():
    """B off the diagonal by b, beside a gap g: shifts of (sqrt(g^2 + 4 b^2) - g) / 2 up and down."""
    g, b = 1.0, 0.5
    before, turning = torch.diag(torch.tensor([2.0, 1.0])), torch.tensor([[0.0, b], [b, 0.0]])
    hessians = torch.stack([before, before + 2 * turning])  # at a factor of 1/2
    two = cp.ProjectedSample(torch.zeros(2), torch.ones(2), torch.zeros(2, 2), hessians)
    shift = (math.sqrt(g**2 + 4 * b**2) - g) / 2
    found = cp.spectral_closed_form(two[:1], two[1], sigma=1.0)
    assert found.misalignment == pytest.approx(math.sqrt(1 - 2 * shift**2 / (2 * b**2)), rel=1e-6)


def test_misalignment_does_not_depend_on_the_basis_of_shared_eigenvectors():
    """Two directions of one eigenvalue: any rotation of them is an eigenbasis, and the shifts are the same."""
    before, shifts = torch.diag(torch.tensor([2.0, 1.0, 1.0])), torch.diag(torch.tensor([0.5, 0.4, -0.3]))
    for angle in (0.0, 0.3, 1.1):
        c, s = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
        hessians = torch.stack([turn.T @ part @ turn for part in (before, before + shifts)])
        two = cp.ProjectedSample(torch.zeros(2), torch.ones(2), torch.zeros(2, 3), hessians)
        found = cp.spectral_closed_form(two[:1], two[1], sigma=1.0)
        assert found.misalignment < 1e-3
        assert found.value == pytest.approx(found.curvature_only, rel=1e-5)


def test_the_bound_with_the_ambient_dimension_is_larger():
    two = sample_of(2, dim=3)
    found = cp.rate_bound(two[:1], two[1], 0.5, num_params=1000)
    plain = cp.rate_bound(two[:1], two[1], 0.5)
    assert (found.bound, math.isnan(plain.ambient_bound)) == (plain.bound, True)
    curved = 3 * 0.5**4 * found.hessian_bound**2 / 4
    assert found.ambient_bound - found.bound == pytest.approx(curved * (1000**2 + 2000 - 9 - 6), rel=1e-9)


def bent(*hessians: torch.Tensor) -> list[cp.ProjectedSample]:
    """An example for each of these Hessians, without loss or gradient."""
    one, dim = torch.ones(1), len(hessians[0])
    return [cp.ProjectedSample(torch.zeros(1), one, torch.zeros(1, dim), h[None]) for h in hessians]


def test_the_spectral_form_is_that_of_the_shifts():
    """A small B, after which the eigenvalues keep their order: the shifts are their differences."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 3, generator=draw, dtype=torch.float64)
    before = torch.diag(torch.tensor([5.0, 3.0, 1.0], dtype=torch.float64))
    B = 0.1 * (noise + noise.T)
    found = cp.spectral_closed_form(*bent(before, before + 2 * B), sigma=0.2)  # at a factor of 1/2
    d = torch.linalg.eigvalsh(before + B) - torch.linalg.eigvalsh(before)
    assert found.value == pytest.approx(0.2**4 / 4 * float(2 * d.square().sum() + d.sum() ** 2), rel=1e-10)
    whole = float(2 * B.square().sum() + B.trace() ** 2)
    assert found.curvature_only == pytest.approx(0.2**4 / 4 * whole, rel=1e-10)
    assert found.misalignment == pytest.approx(math.sqrt(1 - float((d.norm() / B.norm()) ** 2)), rel=1e-9)
    assert cp.spectral_closed_form(*bent(before, before), sigma=0.2).misalignment == 0.0


def test_extremality_by_brute_force():
    noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    B = noise + noise.T
    found = cp.extremality(*bent(torch.zeros(4, 4), 2 * B), dim=3)
    values = {}
    for chosen in itertools.combinations(range(4), 3):
        part = B[list(chosen)][:, list(chosen)]
        values[chosen] = 2 * float((part**2).sum()) + float(part.trace()) ** 2
    assert found.leading == pytest.approx(values[0, 1, 2], rel=1e-12)
    assert found.best == pytest.approx(max(values.values()), rel=1e-12)
    assert found.best_set == max(values, key=values.__getitem__)
    assert found.share_below == sum(v <= values[0, 1, 2] for v in values.values()) / 4
    single = cp.extremality(*bent(torch.zeros(4, 4), 2 * B), dim=1)
    assert single.best == pytest.approx(3 * float(B.diagonal().square().max()), rel=1e-12)
    whole = cp.extremality(*bent(torch.zeros(4, 4), 2 * B), dim=4)
    assert (whole.num_sets, whole.share_below, whole.leading) == (1, 1.0, whole.best)


@pytest.mark.parametrize(
    ("shifts", "mixing", "premise"),
    [
        ((3.0, 2.0, 1.0), 0.0, True),
        ((2.0, 2.0, 2.0), 0.0, True),
        ((3.0, 2.0, 0.0), 0.0, True),
        ((3.0, 2.0, 1.0), 0.01, True),
        ((3.0, 2.0, 1.0), 0.04, False),
        ((3.0, 2.0, -1.0), 0.0, False),
        ((2.0, 2.5, 1.0), 0.0, False),
        ((3.0, 1.0, 2.0), 0.0, False),
    ],
)
def test_the_premise_of_the_proposition(shifts, mixing, premise):
    B = torch.diag(torch.tensor(shifts, dtype=torch.float64))
    B[0, 1] = B[1, 0] = mixing
    assert cp.extremality(*bent(torch.zeros(3, 3), B), dim=2).premise is premise


def test_equal_choices_bend_no_more_than_the_leading_ones():
    """All sets of equal shifts have the same value, but for rounding."""
    third = torch.diag(torch.full((5,), 1 / 3, dtype=torch.float64))
    assert cp.extremality(*bent(torch.zeros(5, 5), third), dim=3).share_below == 1.0


def test_the_choice_of_sets_is_by_its_seed_alone():
    sample, new = sample_of(5, dim=40), sample_of(1, dim=40, seed=3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again, other = (cp.extremality(sample, new, 10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert first.share_below != other.share_below


def test_all_three_at_once():
    sample, new = sample_of(9, dim=5), sample_of(1, dim=5, seed=3)
    found = cp.theory_checks(sample, new, 0.3, 100)
    even = cp.theory_checks(sample.truncate(4), new.truncate(4), 0.3)
    assert (len(found.extremality.best_set), len(even.extremality.best_set)) == (3, 2)
    assert found.rate_bound == cp.rate_bound(sample, new, 0.3, num_params=100)
    assert found.spectral_closed_form == cp.spectral_closed_form(sample, new, 0.3)
    assert found.extremality == cp.extremality(sample, new, 3)


def test_the_leading_directions_are_extremal_under_the_premise_and_not_always_elsewhere():
    flat = torch.zeros(1, 6, 6)

    def with_shifts(*shifts: float) -> cp.Extremality:
        bend = torch.diag(torch.tensor(shifts))[None]
        parts = [cp.ProjectedSample(torch.zeros(1), torch.ones(1), torch.zeros(1, 6), part) for part in (flat, bend)]
        return cp.extremality(*parts, dim=2)

    ordered = with_shifts(6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
    assert ordered.premise
    assert ordered.best_set == (0, 1)
    assert ordered.num_sets == 15
    other = with_shifts(1.0, -1.0, 4.0, 3.0, 2.0, 1.0)
    assert not other.premise
    assert other.best_set == (2, 3)
    assert other.share_below < 0.2
    many = cp.extremality(sample_of(5, dim=40), sample_of(1, dim=40, seed=3), 10)
    assert many.num_sets == 20_000
    bend = torch.diag(torch.tensor([*[0.1] * 30, *[-3.0] * 10]))[None]
    far = [cp.ProjectedSample(torch.zeros(1), torch.ones(1), torch.zeros(1, 40), part) for part in (0 * bend, bend)]
    assert cp.extremality(*far, 10).best_set == tuple(range(30, 40))  # no random choice would find it
    with pytest.raises(ValueError, match="dim is 7"):
        cp.extremality(sample_of(2, dim=6), sample_of(1, dim=6), 7)


def test_stationarity_of_a_network():
    case = cases.make("mlp")
    risk = case.risk()
    space = cp.top_eigenspace(risk, dim=4, tol=1e-8)
    sample, fresh = cp.project(risk, space), cp.project(risk.on(case.candidates), space)
    found = cp.stationarity(risk, space, sample, fresh)
    mean = space.basis.T @ risk.gradient()
    assert found.gradient_norm == pytest.approx(float(risk.gradient().norm()), rel=1e-10)
    assert found.projected_gradient_norm == pytest.approx(float(mean.norm()), rel=1e-8)
    assert found.newton_decrement == pytest.approx(float((mean.square() / space.eigenvalues).sum() / 2), rel=1e-6)
    gradient, square = risk.gradient(), found.gradient_norm**2
    along = float(gradient @ (cp.hessian(risk) @ gradient)) / square
    curvature = max(abs(along), float(space.eigenvalues.abs().max()))
    assert found.step_decrease == pytest.approx(square / (2 * curvature), rel=1e-6)
    every = torch.stack([risk[[i]].gradient() for i in range(len(risk))])
    scatter = (risk.shares.square() * (every.square().sum(1) - square)).sum()
    assert found.moving_ratio == pytest.approx(square / float(scatter), rel=1e-8)
    assert found.outside == pytest.approx(1 - float(mean.square().sum()) / square, rel=1e-8)
    expected = mean.square().sum() / (fresh.gradient - mean).square().sum(1).mean()
    assert found.slope_share == pytest.approx(float(expected), rel=1e-6)
    bottom = cp.top_eigenspace(risk, dim=2, which="smallest")
    assert str(cp.stationarity(risk, bottom, cp.project(risk, bottom)).newton_decrement) == "nan"
