"""Tangents that go through a graph together give what they give one by one, or go one by one."""

import gc
import weakref

import pytest
import torch

import curvprobe as cp
from curvprobe.curvature import linearisation
from tests import cases
from tests.test_curvature import EXACT, block_of
from tests.test_risk import Gate


@pytest.fixture
def three_at_once(monkeypatch):
    monkeypatch.setattr(linearisation, "tangents_at_once", lambda risk, rows: 3)


@pytest.fixture
def passes(monkeypatch):
    """Sizes of the batched passes that were asked for."""
    sizes, together = [], linearisation._together

    def counted(risk, derivative, chunk):
        sizes.append(chunk.shape[1])
        return together(risk, derivative, chunk)

    monkeypatch.setattr(linearisation, "_together", counted)
    return sizes


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
@pytest.mark.parametrize("microbatch_size", [2, None])
def test_together_is_one_by_one(case, matrix, microbatch_size, monkeypatch, passes):
    risk = case.risk(microbatch_size=microbatch_size)
    V = block_of(risk.num_params, 7)
    alone = matrix(risk) @ V
    assert passes == []
    monkeypatch.setattr(linearisation, "tangents_at_once", lambda risk, rows: 3)
    assert torch.allclose(matrix(risk) @ V, alone, **EXACT)
    assert torch.allclose(matrix(risk) @ V[:, 0], alone[:, 0], **EXACT)
    assert passes == [3, 3] * -(-len(risk) // risk.microbatch_size)


@pytest.mark.parametrize("wrong", ["raises", "raises later", "is wrong", "is not finite"])
@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_batching_that_fails_is_not_used(wrong, matrix, monkeypatch):
    risk = cases.make("mlp").risk()
    V = block_of(31, 8)
    alone = matrix(risk) @ V
    together, calls = linearisation._together, []

    def failing(*arguments):
        calls.append(1)
        if wrong == "raises" or (wrong == "raises later" and len(calls) == 2):
            raise RuntimeError("Batching rule not implemented")
        scale = {"is wrong": 1.001, "is not finite": float("nan")}.get(wrong, 1.0)
        return scale * together(*arguments)

    monkeypatch.setattr(linearisation, "tangents_at_once", lambda risk, rows: 3)
    monkeypatch.setattr(linearisation, "_together", failing)
    assert torch.allclose(matrix(risk) @ V, alone, **EXACT)
    assert len(calls) == (2 if wrong == "raises later" else 1)


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
@pytest.mark.parametrize("microbatch_size", [1, None])
@pytest.mark.parametrize("expert", ["first.*", "second.*"])
def test_microbatches_that_do_not_touch_the_parameters(matrix, microbatch_size, expert, monkeypatch):
    """A mixture of experts whose first example does touch them: that one is checked against differences."""
    x, y = cases.make("mlp").data
    touched = (x[:, 0] > 0) == (expert == "first.*")
    order = touched.to(torch.int8).argsort(descending=True)
    assert 0 < int(touched.sum()) < len(x)
    torch.manual_seed(0)
    risk = cp.EmpiricalRisk(
        Gate().double(), cp.losses.cross_entropy, (x[order], y[order]), params=[expert], microbatch_size=microbatch_size
    )
    V = block_of(12, 4)
    alone = matrix(risk) @ V
    assert float(alone.norm()) > 0
    monkeypatch.setattr(linearisation, "tangents_at_once", lambda risk, rows: 3)
    assert torch.allclose(matrix(risk) @ V, alone, **EXACT)


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_a_first_example_that_does_not_touch_the_parameters(matrix):
    """Second derivatives are checked on the first example: there they are zero, and right."""
    x, y = cases.make("mlp").data
    order = (x[:, 0] > 0).to(torch.int8).argsort()
    torch.manual_seed(0)
    risk = cp.EmpiricalRisk(Gate().double(), cp.losses.cross_entropy, (x[order], y[order]), params=["first.*"])
    product = matrix(risk) @ block_of(12, 1)
    assert torch.allclose(product, matrix(risk[::-1]) @ block_of(12, 1), **EXACT)
    assert float(product.norm()) > 0


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_no_curvature_together(matrix, three_at_once):
    risk = cp.EmpiricalRisk(torch.nn.Linear(2, 1).double(), lambda outputs, batch: outputs[:, 0], block_of(5, 2))
    assert torch.equal(matrix(risk) @ block_of(3, 4), torch.zeros(3, 4, dtype=torch.float64))


def test_as_many_tangents_as_the_budget_has_room_for(monkeypatch):
    risk = cases.make("mlp").risk(memory_budget=2**20)
    assert linearisation.tangents_at_once(risk, 1) == 1  # on a CPU
    monkeypatch.setattr(risk, "device", torch.device("meta"))
    room = 2**19 // risk.footprint.example
    assert linearisation.tangents_at_once(risk, room // 3) == 3
    assert linearisation.tangents_at_once(risk, 1) == linearisation.TANGENTS_AT_ONCE
    assert linearisation.tangents_at_once(risk, 10 * room) == 1


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_graph_goes_with_its_product(kind):
    risk = cases.make("mlp").risk()
    with risk.undisturbed():
        linear = linearisation.linearise(risk, kind, next(risk.batches())[1], len(risk))
        next(linear(block_of(31, 1)))
        gone = weakref.ref(linear)
        gc.disable()
        try:
            del linear
            assert gone() is None
        finally:
            gc.enable()
