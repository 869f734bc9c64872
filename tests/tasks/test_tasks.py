"""The built-in tasks, and on them what the package promises on real data."""

from dataclasses import replace

import numpy
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

import curvprobe as cp
from curvprobe.runtime.digest import overlap
from curvprobe.tasks import Task
from curvprobe.tasks.digits import digits
from curvprobe.tasks.text import text
from tests import reference


@pytest.fixture(scope="module")
def digits_task() -> Task:
    return digits(k=200)


@pytest.fixture(scope="module")
def text_task() -> Task:
    """A briefly trained language model in float64, on sequences cut to 32 tokens to save time."""
    task = text(k=2, candidates=1, steps=6, batch=4)
    task.model.double()
    return replace(task, data=task.data[:, :32], candidates=task.candidates[:, :32])


def test_digits_is_a_minimiser_with_disjoint_candidates(digits_task):
    risk = digits_task.risk()
    assert float(risk.gradient().norm()) < 1e-3
    assert len(risk.on(digits_task.candidates)) == 1797 - 200
    assert not overlap(risk.digests(), risk.on(digits_task.candidates).digests())


def test_a_task_is_trained_once_and_found_again(tmp_path, monkeypatch):
    cache = tmp_path / "model.safetensors"
    first = digits(k=20, cache=cache)
    monkeypatch.setattr(torch.optim, "LBFGS", lambda *_, **__: pytest.fail("trained again"))
    again = digits(k=20, cache=cache)
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("k", [0, 1797])
def test_digits_refuses_a_sample_size_it_does_not_have(k):
    with pytest.raises(ValueError, match=f"k is {k}"):
        digits(k=k)


def assert_estimators_agree(risk: cp.EmpiricalRisk, candidates: cp.EmpiricalRisk, dim: int, num_probes: int) -> None:
    subspace = cp.top_eigenspace(risk, dim=dim)
    new = candidates[:1]
    validity = cp.quadratic_validity(risk, [1e-3], subspace=subspace, new=candidates, num_probes=4)
    assert validity.verdicts == ("valid",)
    law = cp.SubspaceProbe(subspace, sigma=1e-3)
    closed = cp.delta2_subspace(risk, new, subspace, sigma=1e-3)
    direct = cp.direct_monte_carlo(risk, new, law, num_probes=num_probes)
    controlled = cp.controlled_monte_carlo(risk, new, law, num_probes=num_probes)
    assert abs(direct.value - closed.value) < 4 * direct.stderr
    assert (direct.stderr / controlled.stderr) ** 2 > 1000
    assert abs(direct.value - controlled.value) < 4 * direct.stderr


def test_estimators_agree_on_digits(digits_task):
    risk = digits_task.risk()
    assert_estimators_agree(risk, risk.on(digits_task.candidates)[:8], dim=10, num_probes=64)


def test_estimators_agree_on_text(text_task):
    risk = text_task.risk()
    assert_estimators_agree(risk, risk.on(text_task.candidates), dim=2, num_probes=8)


def test_float32_level_is_that_of_float64_at_k_1000():
    task = digits(k=1000, rounds=1)
    single = task.risk()
    new = single.on(task.candidates)[:1]
    level = cp.delta1(single, new).value
    task.model.double()
    double = task.risk()
    exact = cp.delta1(double, double.on(task.candidates)[:1]).value
    assert level == pytest.approx(exact, rel=1e-5)


def test_text_eigenpairs_are_those_of_scipy_on_double_backward(text_task):
    risk, dim = text_task.risk(), 2
    params = reference.trainable(text_task.model)
    tokens = text_task.data
    losses, weights = reference.example_losses(text_task.model, cp.losses.causal_lm, [tokens[:1], tokens[1:2]])
    value = sum(w * v for w, v in zip(weights, losses, strict=True)) / sum(weights)
    flat = reference.gradient(value, params, create_graph=True)

    def product(vector: numpy.ndarray) -> numpy.ndarray:
        return reference.gradient(flat @ torch.as_tensor(vector.reshape(-1)), params).numpy()

    operator = LinearOperator((risk.num_params, risk.num_params), matvec=product, dtype=numpy.float64)
    expected, vectors = eigsh(operator, k=dim, which="LA", tol=1e-6)
    subspace = cp.top_eigenspace(risk, dim=dim, tol=1e-5)
    assert bool(subspace.converged.all())
    # transformers computes its norms and softmax in float32 whatever the model's dtype: not more than 7 digits agree
    assert subspace.eigenvalues.numpy() == pytest.approx(expected[::-1], rel=1e-6)
    overlaps = subspace.basis.T @ torch.as_tensor(vectors.copy())
    assert float(overlaps.square().sum()) == pytest.approx(dim, abs=1e-4)


def test_the_candidates_of_a_text_are_called_by_their_beginnings():
    from curvprobe.tasks.text import SHOWN, text

    task = text(steps=1, candidates=3, num_layers=1, hidden_size=32, intermediate_size=64)
    assert len(task.names) == len(task.candidates) == 3
    for name in task.names:
        assert 0 < len(name) <= SHOWN
        assert name == " ".join(name.split(" "))
        assert any(word.isalpha() and len(word) > 2 for word in name.split())


def test_the_candidates_of_the_digits_are_called_by_their_labels():
    from curvprobe.tasks.digits import digits

    task = digits(1790, hidden=(4,), rounds=1)
    assert task.names == [f"{j}: a {label}" for j, label in enumerate(task.candidates[1].tolist())]
    assert task.pictures.flatten(1).equal(task.candidates[0])
