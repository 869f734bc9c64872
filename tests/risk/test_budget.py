"""How many bytes the work takes, and how those that it may take are divided."""

import re
from dataclasses import replace

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import curvprobe as cp
from curvprobe.curvature import per_example
from curvprobe.curvature.linearisation import linearise
from curvprobe.numerics.space import Space
from curvprobe.risk import budget
from curvprobe.risk.budget import BasisPlan, Budget, Footprint, SavedBytes
from curvprobe.risk.frozen import Raised
from tests import cases
from tests.cases import EXACT, block_of
from tests.subspace.projected import taking

CPU, OTHER = torch.device("cpu"), torch.device("meta")


def wide(width: int, dtype: torch.dtype = torch.float32, **options) -> cp.EmpiricalRisk:
    model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)).to(dtype)
    return cp.EmpiricalRisk(model, cp.losses.mse, (torch.ones(9, 2), torch.ones(9)), **options)


# ---- what is measured ----------------------------------------------------------------------------------------------


def test_saved_bytes_count_every_tensor_once_and_no_parameter():
    x, weight = torch.ones(100, dtype=torch.float64), torch.ones(100, dtype=torch.float64, requires_grad=True)
    kept = SavedBytes([weight], Raised(torch.float32))
    with kept:
        y = x * weight  # saves x and the parameter
        z = y.sin() + y.cos()  # both save y
    assert kept.total == 1600
    z.sum().backward()
    assert torch.allclose(weight.grad, torch.cos(x) - torch.sin(x))


def test_saved_bytes_of_nothing():
    kept = SavedBytes([], Raised(torch.float32))
    with kept:
        torch.ones(3, requires_grad=True).sum()
    assert kept.total == 0


@pytest.mark.parametrize(
    ("free", "total"),
    [(0, 2**28), (2**29, 2**28), (2**34, 2**33), (2**35 - 1, 2**33), (2**35, 2**34), (3 * 2**34, 2**34)],
)
def test_the_default_budget_is_half_of_what_is_free_as_a_power_of_two(monkeypatch, free, total):
    monkeypatch.setattr(budget, "free_bytes", lambda device: free)
    assert budget.default_budget(CPU) == total


def test_numbers_of_a_float64_model_take_eight_bytes():
    single, double, half = (
        wide(64, dtype, memory_budget=2**20) for dtype in (torch.float32, torch.float64, torch.half)
    )
    assert [risk.footprint.itemsize for risk in (single, double, half)] == [4, 8, 4]  # half is raised to float32
    assert [risk.footprint.vector for risk in (single, double, half)] == [4 * 257, 8 * 257, 4 * 257]
    assert double.footprint == single.footprint.in_double() == double.footprint.in_double()
    assert double.footprint.example == 2 * single.footprint.example
    assert double.microbatch_size < 0.51 * single.microbatch_size


# ---- microbatches --------------------------------------------------------------------------------------------------


def test_the_automatic_microbatch_follows_the_size_of_an_example():
    total = 2**30
    small, large = (wide(width, memory_budget=total) for width in (8, 4096))
    assert large.footprint.activation >= 4096 * 4
    assert large.footprint.example > 2 * large.footprint.activation
    for risk in (small, large):
        assert risk.microbatch_size * risk.footprint.example <= total // 2
        assert (risk.microbatch_size + 1) * risk.footprint.example > total // 2 - 6 * 4 * risk.num_params
    assert small.microbatch_size > 50 * large.microbatch_size


def test_the_microbatch_follows_the_budget():
    sizes = [wide(4096, memory_budget=b).microbatch_size for b in (2**22, 2**23, 2**28)]
    assert sizes == sorted(set(sizes))
    stated = wide(4096, memory_budget=2**23, microbatch_size=numpy.int64(7))
    assert (stated.microbatch_size, stated.memory_budget, stated.budget.stated) == (7, 2**23, True)
    assert stated.with_room(0).microbatch_size == 7


def test_the_default_budget_is_a_power_of_two(monkeypatch):
    monkeypatch.setattr(budget, "default_budget", lambda device: 2**28)
    risk = wide(64)
    assert (risk.memory_budget, risk.budget.stated) == (2**28, False)
    assert risk.microbatch_size == wide(64, memory_budget=2**28).microbatch_size


def test_the_least_budget_is_enough_and_one_byte_less_is_refused():
    with pytest.raises(ValueError, match="for one example") as refused:
        wide(64, memory_budget=1000)
    least = int(re.search(r"needs at least (\d+)", str(refused.value))[1])
    risk = wide(64, memory_budget=least)
    assert (cp.hessian(risk) @ torch.ones(risk.num_params)).isfinite().all()
    with pytest.raises(ValueError, match=f"needs at least {least} for one example"):
        wide(64, memory_budget=least - 1)


def test_less_room_means_smaller_microbatches_and_the_same_risk():
    risk = wide(64, memory_budget=2**24)
    sizes = [risk.with_room(room).microbatch_size for room in (2**30, 2**23, 2**22, 2**21, 0)]
    assert sizes[0] == sizes[1] == risk.microbatch_size
    assert sizes[1:] == sorted(set(sizes[1:]), reverse=True)
    assert sizes[-1] == 1
    assert risk.with_room(0).key() == risk.key()
    assert risk.with_room(0).value() == pytest.approx(risk.value(), rel=1e-6)


def test_selections_and_other_examples_keep_the_budget():
    risk = wide(64, memory_budget=2**22)
    other = risk.on((torch.ones(3, 2), torch.ones(3)))
    assert risk[:2].memory_budget == other.memory_budget == 2**22
    assert risk[:2].budget.stated == other.budget.stated is True
    assert risk[:2].microbatch_size == other.microbatch_size == risk.microbatch_size


@pytest.mark.parametrize("total", [0, -1, float("nan"), float("inf"), "1GiB", True, 0.5, [2**30]])
def test_budgets_that_make_no_sense(total):
    with pytest.raises((ValueError, TypeError), match=r"memory_budget is .*; expected a positive number of bytes"):
        wide(8, memory_budget=total)


def test_numpy_and_float_budgets_are_numbers():
    assert wide(8, memory_budget=numpy.int64(2**24)).memory_budget == 2**24
    assert wide(8, memory_budget=1e8).memory_budget == 10**8


def test_longer_examples_come_in_smaller_microbatches():
    model = nn.Sequential(nn.Embedding(7, 8), nn.Tanh(), nn.Linear(8, 7))
    tokens = torch.zeros(5, 4, dtype=torch.long)
    risk = cp.EmpiricalRisk(model, cp.losses.causal_lm, tokens, memory_budget=2**24)
    longer = risk.on(torch.zeros(5, 400, dtype=torch.long))
    assert longer.microbatch_size < risk.microbatch_size / 20
    assert risk.on(tokens + 1).microbatch_size == risk.microbatch_size


# ---- the same in float64 -------------------------------------------------------------------------------------------


def saved(risk: cp.EmpiricalRisk) -> int:
    """Bytes that autograd saves for the curvature of one microbatch."""
    kept = SavedBytes(risk.probed.state.tensors.values(), risk.probed.raised)
    with kept, risk.undisturbed():
        linearise(risk.probed, "hessian", risk.sample.read(0, risk.microbatch_size))
    return kept.total


def test_the_same_risk_in_float64_keeps_to_the_budget():
    total = 2**16
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))
    single = cp.EmpiricalRisk(model, cp.losses.mse, (block_of(64, 2), block_of(64, 1)), memory_budget=total)
    double = single.in_double()
    assert double.memory_budget == total
    assert double.budget.stated
    assert double.footprint == single.footprint.in_double()
    assert double.microbatch_size == double.budget.examples_at_once() < single.microbatch_size < 64
    for risk in (single, double):
        vectors = budget.VECTORS_IN_FLIGHT * risk.num_params * risk.dtype.itemsize
        assert budget.PEAK_OVER_SAVED * saved(risk) + vectors <= total // 2
    assert double.value() == pytest.approx(single.value(), rel=1e-5)
    assert double.in_double().microbatch_size == double.microbatch_size


def test_microbatches_in_float64_are_no_larger_than_they_were_and_as_stated_where_they_were():
    assert wide(64, memory_budget=2**16).with_room(2**13).in_double().microbatch_size == 1
    assert wide(64, memory_budget=2**24)[:2].in_double().microbatch_size < wide(64, memory_budget=2**24).microbatch_size
    assert wide(64, memory_budget=2**16, microbatch_size=7).in_double().microbatch_size == 7


# ---- what is held at once ------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(
    st.builds(
        Footprint,
        activation=st.integers(0, 2**24),
        graph=st.integers(0, 2**26),
        num_params=st.integers(1, 2**24),
        itemsize=st.sampled_from([4, 8]),
    ),
    st.integers(1, 2**40),
    st.integers(1, 1000),
)
def test_nothing_that_is_held_at_once_takes_more_than_half_of_the_budget(footprint, total, rows):
    """Where one alone takes more, it is one."""
    here, there = Budget(total, True, footprint, CPU), Budget(total, True, footprint, OTHER)
    example, vector = footprint.example, footprint.num_params * footprint.itemsize
    held = {
        "examples": (here.examples_at_once(), example, 6 * vector),
        "tangents": (there.tangents_at_once(rows), rows * example, 0),
        "points": (here.points_at_once(rows), 4 * vector + rows * footprint.activation, 0),
        "examples together": (here.examples_together(), 4 * vector + example, 0),
        "directions at once": (here.directions_at_once(rows), example + 4 * rows * footprint.itemsize, 0),
        "products": (here.products_held(), vector, 0),
        "directions": (here.directions_held(), 2 * vector, 0),
        "probes": (here.probes_held(), 8 * vector, 0),
    }
    for name, (count, each, beside) in held.items():
        assert count == 1 or count * each + beside <= total // 2, name
    assert here.tangents_at_once(rows) == 1
    double = here.in_double()
    assert double.total == total
    assert double.examples_at_once() <= here.examples_at_once()
    assert double.points_at_once(rows) <= here.points_at_once(rows)
    assert double.examples_together() <= here.examples_together()
    assert double.products_held() <= here.products_held()
    assert double.directions_held() <= here.directions_held()


SMALL = Footprint(activation=1000, graph=4000, num_params=10_000)  # 10 kB an example, 40 kB a vector


def test_as_much_is_held_as_half_of_the_budget_has_room_for():
    def held(half: int, device: torch.device = CPU) -> Budget:
        return Budget(2 * half, True, SMALL, device)

    assert held(250_000).examples_at_once() == 1
    assert held(299_999).examples_at_once() == 5
    assert held(300_000).examples_at_once() == 6
    assert held(3 * 50_000, OTHER).tangents_at_once(5) == 3
    assert held(3 * 42_000).directions_at_once(2_000) == 3
    assert held(3 * 42_000 - 1).directions_at_once(2_000) == 2
    assert held(3 * 165_000 - 1).points_at_once(5) == 2
    assert held(3 * 165_000).points_at_once(5) == 3
    assert held(3 * 170_000).examples_together() == 3
    assert held(3 * 40_000).products_held() == 3
    assert held(3 * 80_000 - 1).directions_held() == 2
    assert held(3 * 80_000).directions_held() == 3
    assert held(3 * 320_000).probes_held() == 3


def test_no_more_is_held_than_pays():
    boundless = Budget(2**50, True, SMALL, OTHER)
    assert boundless.tangents_at_once(1) == budget.TANGENTS_AT_ONCE == boundless.directions_at_once(1000)
    assert boundless.points_at_once(1) == budget.POINTS_TOGETHER // 41_000
    assert boundless.examples_together() == budget.EXAMPLES_TOGETHER // 170_000
    assert boundless.products_held() == budget.PRODUCTS_HELD
    assert boundless.probes_held() == budget.PROBES_HELD
    large = replace(SMALL, activation=budget.SMALL_EXAMPLE + 1)
    assert replace(boundless, footprint=large).examples_together() == 1


def test_room_for_a_basis_comes_from_microbatches_then_from_vectors_then_from_the_host():
    def plan(total: int, stated: bool = True, device: torch.device = CPU) -> BasisPlan:
        return Budget(total, stated, SMALL, device).basis_for(20, Space(SMALL.num_params))

    full, least = (size + 25 for size in (40, 30))  # vectors, with the result and those in flight
    enough, little = (vectors * 40_000 + SMALL.least for vectors in (full, least))
    assert plan(2 * enough) == BasisPlan(40, 2 * enough - full * 40_000)
    assert plan(enough) == BasisPlan(40, SMALL.least)
    assert plan(enough - 1) == BasisPlan(30, enough - 1 - least * 40_000)
    assert plan(little) == BasisPlan(30, SMALL.least)
    with pytest.raises(ValueError, match=f"20 eigenvectors of 10000 parameters need at least {little}"):
        plan(little - 1)
    assert plan(little - 1, stated=False) == BasisPlan(30, 0)  # what happens to be free is no limit
    assert plan(little - 1, device=OTHER) == BasisPlan(None, on_host=True)
    few = Budget(2**30, True, replace(SMALL, num_params=25), CPU)
    assert few.basis_for(20, Space(25)).size == 25


def test_a_basis_that_is_more_than_what_is_free_is_refused_with_what_fits(monkeypatch):
    little = 55 * 40_000 + SMALL.least
    monkeypatch.setattr(budget, "free_bytes", lambda _: little)
    assert Budget(1, False, SMALL, CPU).basis_for(20, Space(SMALL.num_params)) == BasisPlan(30, 0)
    with pytest.raises(ValueError, match=rf"{little} bytes of memory are free; 21 eigenvectors .*dim=20 fits, or free"):
        Budget(1, False, SMALL, CPU).basis_for(21, Space(SMALL.num_params))
    with pytest.raises(ValueError, match=r"memory_budget is 1 bytes; .*no dim fits; allow that much"):
        Budget(1, True, SMALL, CPU).basis_for(21, Space(SMALL.num_params))


# ---- little room, and the same results -----------------------------------------------------------------------------

LITTLE, ENOUGH = 5800, 2**24


@pytest.fixture
def risks() -> tuple[cp.EmpiricalRisk, cp.EmpiricalRisk]:
    case = cases.make("mlp")
    return case.risk(memory_budget=LITTLE), case.risk(memory_budget=ENOUGH)


def test_the_projection_keeps_to_the_budget(risks, monkeypatch):
    taken, held, together, one = [], [], per_example.project_together, per_example.project_one
    little, enough = risks

    def counted_together(model, examples, basis):
        taken.append(len(examples))
        return together(model, examples, basis)

    def counted_one(model, example, basis, products_held, at_once):
        held.append(products_held)
        assert at_once == 1  # on a processor
        return one(model, example, basis, products_held, at_once)

    monkeypatch.setattr("curvprobe.subspace.projection.project_together", counted_together)
    monkeypatch.setattr("curvprobe.subspace.projection.project_one", counted_one)
    subspace = cp.random_subspace(enough, 10)
    for risk in risks:
        taking("together", risk)
    whole = cp.project(enough, subspace)
    assert (taken, held) == ([6], [])
    parts = cp.project(little, subspace)
    assert (taken[1:], held) == ([2, 2, 2], [])
    assert 2 * (4 * 31 * 8 + little.footprint.example) <= LITTLE // 2
    least = taking("together", cases.make("mlp").risk(memory_budget=4000))
    alone = cp.project(least, subspace)
    assert (taken[4:], held) == ([], [least.budget.products_held()] * 6)
    assert held[0] * 31 * 8 <= 2000
    assert held[0] < 10
    for found in (parts, alone):
        assert torch.allclose(found.gradient, whole.gradient, **EXACT)
        assert torch.allclose(found.hessian, whole.hessian, **EXACT)
    means = [cp.mean_projection(risk, subspace).hessian for risk in (least, enough)]
    assert torch.allclose(*means, **EXACT)


def test_probes_of_the_full_space_keep_to_the_budget(risks):
    found = []
    for risk in risks:
        new = risk.on(cases.make("mlp").candidates)
        found.append(cp.full_space_parts(risk, new, sigma=0.1, num_probes=12))
    assert [risk.budget.probes_held() for risk in risks] == [1, budget.PROBES_HELD]
    for name in ("level", "slope", "curvature", "value_terms"):
        assert torch.allclose(*(getattr(parts, name) for parts in found), **EXACT)
