"""Rankings against the closed form of every candidate."""

import pytest
import torch

import curvprobe as cp
from tests import cases
from tests.criteria.samples import SIGMA, joined, sample_of


def test_the_totals_are_the_criteria_and_their_mean_the_expectation():
    sample, fresh = sample_of(9, weighted=True), sample_of(6, seed=1, weighted=True)
    ranking = cp.rank_candidates(sample, fresh, SIGMA)
    each = [joined(sample, fresh[j]) for j in range(6)]
    assert ranking.total.tolist() == pytest.approx([e.value for e in each], rel=1e-12)
    assert ranking.shape.tolist() == pytest.approx([e.shape for e in each], rel=1e-12)
    assert float(ranking.total.mean()) == pytest.approx(cp.expected_criterion(sample, fresh, SIGMA).value, rel=1e-12)
    table = ranking.to_dataframe()
    assert table.index.tolist() == sorted(range(6), key=lambda j: -each[j].value)
    assert set(ranking.agreement()["total"]) == {"loss", "projected_gradient_norm"}


def test_norms_of_gradients_where_the_model_is_at_hand():
    case = cases.make("mlp")
    risk = case.risk()
    candidates = risk.on(case.candidates)
    space = cp.top_eigenspace(risk, dim=2)
    fresh = cp.project(candidates, space)
    norms = cp.gradient_norms(candidates)
    ranking = cp.rank_candidates(cp.project(risk, space), fresh, 0.1, gradient_norms=norms)
    assert ranking.gradient_norm[1] == pytest.approx(float(candidates[[1]].gradient().norm()), rel=1e-12)
    assert bool((ranking.projected_gradient_norm <= ranking.gradient_norm).all())
    assert set(ranking.agreement()["shape"]) == {"loss", "gradient_norm", "projected_gradient_norm"}
    with pytest.raises(ValueError, match="expected as many"):
        cp.rank_candidates(fresh, fresh[:1], 0.1, gradient_norms=norms)


def test_the_agreement_is_a_rank_correlation():
    losses = torch.tensor([1.0, 4.0, 2.0, 8.0])
    flat = cp.ProjectedSample(losses, torch.ones(4), torch.zeros(4, 1), torch.zeros(4, 1, 1))
    ranking = cp.rank_candidates(cp.ProjectedSample([0.0], [1.0], [[0.0]], [[[0.0]]]), flat, 0.1)
    assert ranking.agreement()["total"]["loss"] == pytest.approx(1.0)


def test_a_sigma_of_the_wrong_length_is_refused():
    with pytest.raises(cp.ArgumentError, match="sigma"):
        cp.rank_candidates(sample_of(3), sample_of(2, seed=1), torch.full((3,), 0.1))
    norms = cp.rank_candidates(sample_of(3), sample_of(2, seed=1), 0.1).gradient_norm
    assert norms.dtype == torch.float64
    assert bool(norms.isnan().all())
