"""Per-example statistics against double backward, one example and one direction at a time."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.curvature.linearisation import Linearisation
from curvprobe.risk.budget import SMALL_EXAMPLE, Budget
from curvprobe.runtime.digest import digest
from tests import cases
from tests.subspace.counted import counted
from tests.subspace.projected import (
    CLOSE,
    DIM,
    WAYS,
    given,
    naive_projection,
    orthonormal,
    same,
    taken,
    taking,
    together,
)


@pytest.fixture(params=WAYS)
def way(request):
    """Each of the three ways to the examples' derivatives."""
    return request.param


def with_budget(risk: cp.EmpiricalRisk, budget: Budget) -> cp.EmpiricalRisk:
    return cp.EmpiricalRisk.of(risk.probed, risk.sample, budget, most=risk.microbatch_size)


def test_every_example_is_that_of_double_backward(case, way):
    risk, loss = counted(case)
    subspace = given(taking(way, risk))
    cp.mean_projection(risk, subspace)  # losses, weights and checks are done with: what follows is the projection
    before = loss.calls
    sample = cp.project(risk, subspace)
    passes = loss.calls - before
    losses, weights, slopes, bends = naive_projection(case, subspace.basis)
    assert torch.allclose(sample.loss, losses, **CLOSE)
    assert torch.equal(sample.weight, weights)
    assert torch.allclose(sample.gradient, slopes, **CLOSE)
    assert torch.allclose(sample.hessian, bends, **CLOSE)
    assert torch.equal(sample.hessian, sample.hessian.mT)
    assert (len(sample), sample.dim) == (len(risk), DIM)
    assert taken(risk) == way
    # By operations one is recorded, and one pass by double backward confirms all. Together a pass for the slopes and
    # one for each direction, and one that confirms them.
    assert passes == {"by operations": 2, "together": 1 + DIM + 1, "one by one": len(risk)}[way]


@pytest.mark.parametrize(("activation", "expected"), [(SMALL_EXAMPLE, True), (SMALL_EXAMPLE + 1, None)])
def test_small_examples_are_differentiated_together_and_large_ones_are_not(activation, expected):
    made, loss = counted(cases.make("mlp"))
    taking("together", made)
    risk = with_budget(made, replace(made.budget, footprint=replace(made.footprint, activation=activation)))
    cp.mean_projection(risk, given(risk))
    before = loss.calls
    cp.project(risk, given(risk))
    assert together(risk) is expected
    assert (loss.calls - before == len(risk)) == (expected is None)


def test_candidates_of_the_same_model():
    case = cases.make("weighted")
    risk = case.risk()
    fresh = cp.project(risk.on(case.candidates), given(risk))
    losses, weights, slopes, bends = naive_projection(case, given(risk).basis, case.candidates)
    assert same(fresh, cp.ProjectedSample(losses, weights, slopes, bends))


def test_examples_of_unequal_length_are_padded_only_among_themselves(way):
    tokens = [torch.randint(6, (length,), generator=torch.Generator().manual_seed(length)) for length in (6, 3, 5, 2)]

    def collate(items: list[Tensor]) -> dict[str, Tensor]:
        padded = nn.utils.rnn.pad_sequence(items, batch_first=True)
        labels = nn.utils.rnn.pad_sequence(items, batch_first=True, padding_value=-100)
        return {"input_ids": padded, "labels": labels}

    model = cases.make("weighted").model  # a recurrence: padding on the right does not reach back
    risk = cp.EmpiricalRisk(model, cp.losses.causal_lm, tokens, collate_fn=collate)
    alone = [cp.EmpiricalRisk(model, cp.losses.causal_lm, collate([t])) for t in tokens]
    sample = cp.project(taking(way, risk), given(risk))
    assert taken(risk) == way
    assert sample.weight.tolist() == [5.0, 2.0, 4.0, 1.0]
    for i, one in enumerate(alone):
        assert same(sample[i], cp.project(one, given(risk)))


@pytest.mark.parametrize("size", [1, 2, 4, 100])
@pytest.mark.parametrize("name", ["layer_norm", "weighted"])
def test_microbatches_do_not_matter(name, size):
    case = cases.make(name)
    subspace = given(case.risk())
    assert same(cp.project(case.risk(microbatch_size=size), subspace), cp.project(case.risk(), subspace))


def test_order_of_examples_does_not_matter():
    case = cases.make("weighted")
    risk = case.risk()
    order = [3, 0, 4, 2, 1]
    shuffled, sample = cp.project(risk[order], given(risk)), cp.project(risk, given(risk))
    assert same(shuffled, sample[order])
    assert same(shuffled.mean(), sample.mean())
    assert shuffled.digests == sample[order].digests


def test_rotating_the_basis_rotates_the_sample():
    risk = cases.make("layer_norm").risk()
    U, R = orthonormal(risk.num_params), orthonormal(DIM, DIM, seed=1)
    sample = cp.project(risk, cp.Subspace.from_basis(U))
    rotated = cp.project(risk, cp.Subspace.from_basis(U @ R))
    assert torch.allclose(rotated.gradient, sample.gradient @ R, **CLOSE)
    assert torch.allclose(rotated.hessian, R.T @ sample.hessian @ R, **CLOSE)
    assert torch.equal(rotated.loss, sample.loss)


@pytest.mark.parametrize("block", [1, 2, 5])
def test_directions_in_several_blocks_are_those_of_one(block):
    risk = taking("one by one", cases.make("mlp").risk())
    subspace = given(risk, dim=5)
    narrow = with_budget(risk, replace(risk.budget, total=2 * block * risk.footprint.vector))
    assert narrow.budget.products_held() == block < risk.budget.products_held()
    assert same(cp.project(narrow, subspace), cp.project(risk, subspace))


def test_directions_taken_through_the_graph_together_give_the_same(monkeypatch):
    """As an accelerator takes them; blocks of three and one of the rest."""
    risk = taking("one by one", cases.make("mlp").risk())
    subspace = given(risk, dim=7)
    apart, batches, together = cp.project(risk, subspace), [], Linearisation._together

    def recorded(self, chunk):
        batches.append(chunk.shape[1])
        return together(self, chunk)

    monkeypatch.setattr(Linearisation, "_together", recorded)
    monkeypatch.setattr(Budget, "tangents_at_once", lambda self, rows: 3)
    assert same(cp.project(risk, subspace), apart)
    assert sorted(set(batches)) == [2, 3]  # the comparison with one, and the batches


def test_a_selection_of_parameters_projects_the_sub_block():
    case = cases.make("mlp")
    risk = case.risk(params=["2.*"])
    U = orthonormal(risk.num_params)
    inside = torch.cat([torch.zeros(16, DIM, dtype=torch.float64), U])
    whole = cp.project(case.risk(), cp.Subspace.from_basis(inside))
    assert same(cp.project(risk, cp.Subspace.from_basis(U)), whole)


def test_float32_model_projects_in_float64():
    case = cases.make("layer_norm")
    exact = cp.project(case.risk(), given(case.risk()))
    single = cp.EmpiricalRisk(cases.make("layer_norm").model.float(), case.loss, case.data)
    sample = cp.project(single, given(case.risk()))
    assert sample.loss.dtype == sample.gradient.dtype == sample.hessian.dtype == torch.float64
    assert same(sample, exact, rtol=1e-4, atol=1e-5)


# ---- the mean --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layer_norm", "weighted", "attention"])
def test_mean_projection_in_any_basis(name):
    risk = cases.make(name).risk()
    mean = cp.mean_projection(risk, given(risk))
    assert same(mean, cp.project(risk, given(risk)).mean())
    assert float(mean.weight) == risk.total_weight


def test_mean_projection_in_more_directions_than_a_block():
    """The graph of the first derivatives is made once, and serves all blocks."""
    risk, loss = counted(cases.make("mlp"))
    subspace = given(risk, 20)
    expected = cp.project(risk, subspace).mean()
    assert same(cp.mean_projection(risk, subspace), expected)
    before = loss.calls
    assert same(cp.mean_projection(risk, subspace), expected)
    assert risk.budget.products_held() < 20
    assert loss.calls - before == 1


@pytest.mark.parametrize("name", ["layer_norm", "weighted"])
def test_mean_projection_in_its_own_eigenspace_costs_no_product(name):
    risk, loss = counted(cases.make(name))
    subspace = cp.top_eigenspace(risk, dim=4, tol=1e-10)
    expected = cp.project(risk, subspace).mean()
    risk.gradient()  # known from here on
    before = loss.calls
    assert same(cp.mean_projection(risk, subspace), expected)
    assert same(cp.mean_projection(risk, subspace.truncate(2)), expected.truncate(2))
    assert loss.calls == before
    assert same(cp.mean_projection(risk, cp.Subspace.from_basis(subspace.basis)), expected)
    assert loss.calls > before


def test_eigenvalues_of_another_matrix_are_not_taken():
    """Of other examples, of other parameters, of the GGN, or of the covariance of the gradients."""
    case = cases.make("layer_norm")
    risk = case.risk()
    subspace = cp.top_eigenspace(risk, dim=3, tol=1e-10)
    moved = cases.make("layer_norm", seed=1).risk()
    ggn = cp.top_eigenspace(risk, dim=3, tol=1e-10, curvature="ggn")
    scatter = cp.deformation_subspace(risk, 3, tol=1e-10)
    others = [(risk[:4], subspace), (risk.on(case.candidates), subspace), (moved, subspace)]
    for other, space in (*others, (risk, ggn), (risk, scatter)):
        mean = cp.mean_projection(other, space)
        assert same(mean, cp.project(other, space).mean())
        assert float((mean.hessian[0].diagonal() - space.eigenvalues).abs().max()) > 1e-3


# ---- the sample ------------------------------------------------------------------------------------------------


def test_truncation_is_projection_on_the_leading_directions():
    risk = cases.make("layer_norm").risk()
    subspace = given(risk)
    sample = cp.project(risk, subspace)
    assert same(sample.truncate(2), cp.project(risk, subspace.truncate(2)))
    assert sample.truncate(2).digests == sample.digests
    with pytest.raises(ValueError, match="dim is 4"):
        sample.truncate(4)


def test_digests_are_those_of_the_examples():
    case = cases.make("mlp")
    sample = cp.project(case.risk(), given(case.risk()))
    assert sample.digests == tuple(digest((x, y), exact=False) for x, y in zip(*case.data, strict=True))


def test_subspace_of_another_model():
    risk = cases.make("mlp").risk()
    for call in (cp.project, cp.mean_projection):
        with pytest.raises(ValueError, match="lives in 30 parameters and the risk has 31"):
            call(risk, cp.Subspace.from_basis(orthonormal(30)))
        with pytest.raises(TypeError, match="expected a Subspace"):
            call(risk, orthonormal(31))


def test_the_model_is_left_as_it_was(way):
    case = cases.make("batch_norm")
    before = cases.state_of(case.model)
    risk = taking(way, case.risk())
    cp.project(risk, given(risk))
    assert cases.state_of(case.model) == before


@pytest.mark.parametrize("microbatch_size", [1, 3, None])
def test_losses_that_are_others_than_in_the_first_pass_are_refused(microbatch_size):
    """They change once the first pass is over, for one example only."""
    case, late = cases.make("mlp"), []
    marked = case.data[0][4].clone()

    def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        struck = (batch[0] == marked).all(-1) & bool(late)
        return case.loss(outputs, batch) * torch.where(struck, 1.01, 1.0)

    risk = cp.EmpiricalRisk(case.model, loss, case.data, microbatch_size=microbatch_size)
    risk.gradient()
    late.append(True)
    with pytest.raises(ValueError, match=r"the loss of example 4 was .* in the first pass and is .* in a later one"):
        cp.project(risk, given(risk))


def test_a_second_derivative_that_is_not_finite_is_refused_where_the_first_is():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    y = torch.ones(40, 1)
    y[17] = 0  # |out - y|^1.5 has slope 0 here, and no curvature; no other example
    risk = cp.EmpiricalRisk(model, lambda out, batch: (out - batch[1]).abs().pow(1.5)[:, 0], (torch.ones(40, 1), y))
    with pytest.raises(cp.NotFiniteError, match="a projected derivative is not finite"):
        cp.project(risk, cp.Subspace.from_basis(torch.ones(1, 1)))
