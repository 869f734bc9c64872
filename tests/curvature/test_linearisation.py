"""Tangents that go through a graph together give what they give one by one, or go one by one."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.curvature.linearisation import Linearisation, kind_of, linearise
from tests import cases
from tests.cases import EXACT, Gate, block_of


def together(risk: cp.EmpiricalRisk, count: int = 3) -> cp.EmpiricalRisk:
    """The same risk as if it were on an accelerator with room for so many tangents of a whole microbatch."""
    rows = min(len(risk), risk.microbatch_size)
    total = 2 * count * rows * risk.footprint.example
    budget = replace(risk.budget, total=total, device=torch.device("meta"))
    assert budget.tangents_at_once(rows) == count
    return cp.EmpiricalRisk.of(risk.probed, risk.sample, budget, given_microbatch_size=risk.microbatch_size)


def verdicts(risk: cp.EmpiricalRisk) -> list[bool]:
    return list(risk.probed.fast_paths.verdicts.values())


@pytest.fixture
def passes(monkeypatch):
    """Sizes of the batches of vectors that autograd is asked to take through a graph."""
    sizes, grad = [], torch.autograd.grad

    def counted(outputs, inputs, grad_outputs=None, *arguments, is_grads_batched=False, **options):
        if is_grads_batched:
            sizes.append(len(grad_outputs[0]))
        return grad(outputs, inputs, grad_outputs, *arguments, is_grads_batched=is_grads_batched, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    return sizes


STEPS = {cp.hessian: 1, cp.ggn: 3}
"""Times that a tangent goes through a graph: the Gauss-Newton matrix is a product of three."""


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
@pytest.mark.parametrize("microbatch_size", [2, None])
def test_together_is_one_by_one(case, matrix, microbatch_size, passes):
    risk = case.risk(microbatch_size=microbatch_size)
    V = block_of(risk.num_params, 7)
    alone = matrix(risk) @ V
    assert passes == []
    fast = together(risk)
    assert torch.allclose(matrix(fast) @ V, alone, **EXACT)
    assert verdicts(risk) == [True]
    expected, shapes = [], set()  # a comparison for every microbatch
    for microbatch in fast.microbatches():
        shapes.add(microbatch.shapes)
        expected.append(2)
        at_once = fast.budget.tangents_at_once(len(microbatch))
        expected += [len(chunk) for chunk in torch.arange(7).split(at_once) if len(chunk) > 1]
    assert len(shapes) == (1 if len(risk) % min(len(risk), risk.microbatch_size) == 0 else 2)
    assert passes == [size for size in expected for _ in range(STEPS[matrix])]
    assert torch.allclose(matrix(fast) @ V[:, 0], alone[:, 0], **EXACT)
    assert len(passes) == len(expected) * STEPS[matrix]


A = cases.symmetric([3.0, -2.0, 1.0, 0.5, 0.1, 0.0, -0.3, 5.0])


def linear_in(wrong: str) -> tuple[Linearisation, list[int]]:
    """Products with A, whose batched passes are wrong in some way, and the sizes of these passes; 0 is a single one."""
    sizes = []
    model = cp.EmpiricalRisk(
        nn.Linear(4, 2, bias=False).double(), cp.losses.mse, (block_of(3, 4), block_of(3, 2))
    ).probed

    def derivative(tangents: list[Tensor], batched: bool) -> list[Tensor]:
        sizes.append(len(tangents[0]) if batched else 0)
        count = sum(size > 0 for size in sizes)
        if batched and (wrong == "raises" or (wrong == "raises later" and count == 3)):
            raise RuntimeError("Batching rule not implemented")
        scale = {"is wrong": 1.001, "is not finite": float("nan")}.get(wrong, 1.0) if batched else 1.0
        return [scale * (tangents[0].reshape(-1, 8) @ A).reshape(tangents[0].shape)]

    return Linearisation(model, "of A", (torch.float64, ((3, 4),)), derivative), sizes


@pytest.mark.parametrize(
    ("wrong", "passed"),
    {
        "nothing": [2, 0, 3, 3, 2],
        "raises": [2, *[0] * 8],
        "raises later": [2, 0, 3, 3, *[0] * 5],
        "is wrong": [2, 0, *[0] * 8],
        "is not finite": [2, 0, *[0] * 8],
    }.items(),
)
def test_batching_that_fails_is_not_used(wrong, passed):
    """The first chunk, if it holds, is compared in one direction; what was begun together goes on one by one."""
    linear, sizes = linear_in(wrong)
    V = block_of(8, 8)
    for _ in range(2):
        assert torch.allclose(torch.stack(list(linear.products(V, 3)), dim=1), A @ V, **EXACT)
    used = [0] * 8 if wrong != "nothing" else [3, 3, 2]
    assert sizes == passed + used
    assert linear.model.fast_paths.verdicts == {"tangents together, of A": wrong == "nothing"}


def test_a_last_smaller_microbatch_is_compared_too():
    """Batching that is right at one shape and wrong at the next is found out there, and is not used again."""
    right, before = linear_in("nothing")
    wrong, after = linear_in("is wrong")
    last = replace(wrong, model=right.model, kind=(torch.float64, ((1, 4),)))
    V = block_of(8, 4)
    for linear in (right, last, right, last):
        assert torch.allclose(torch.stack(list(linear.products(V, 2)), dim=1), A @ V, **EXACT)
    assert before == [2, 0, 2, 2, *[0] * 4]
    assert after == [2, 0, *[0] * 4, *[0] * 4]
    assert right.model.fast_paths.verdicts == {"tangents together, of A": False}


def test_the_kind_is_of_the_type_the_shapes_and_the_place():
    risk = cases.make("weighted").risk(microbatch_size=2)
    first, second, last = risk.microbatches()
    each = ((torch.int64, (6,)), (torch.int64, (6,)))
    assert [kind_of(risk.probed, one) for one in (first, second)] == [(torch.float64, 2, each, row) for row in (0, 2)]
    assert kind_of(risk.probed, last) == (torch.float64, 1, each, 4)
    assert kind_of(cases.make("weighted").risk().probed, last) == kind_of(risk.probed, last)
    for matrix in ("hessian", "ggn"):
        with risk.undisturbed():
            assert linearise(risk.probed, matrix, last).kind == kind_of(risk.probed, last)


def test_products_come_in_the_order_of_their_vectors_whatever_goes_together():
    linear, _ = linear_in("nothing")
    V = block_of(8, 7)
    for at_once in (1, 2, 3, 7, 100):
        assert torch.allclose(torch.stack(list(linear.products(V, at_once)), dim=1), A @ V, **EXACT)
    assert list(linear.products(V[:, :0], 3)) == []


class Doubled(nn.Linear):
    """Its second derivative asks for the value of a tensor, which no batch of them has."""

    def forward(self, x):
        return Asking.apply(super().forward(x))


class Asking(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, slope):
        return slope * Twice.apply(ctx.saved_tensors[0])


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope if float(slope.abs().sum()) < 1e9 else slope


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_a_model_that_cannot_be_batched_goes_one_by_one(matrix):
    torch.manual_seed(0)
    model = Doubled(3, 2).double()
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (block_of(6, 3), block_of(6, 2)))
    V = block_of(8, 5)
    alone = matrix(risk) @ V
    assert torch.allclose(matrix(together(risk)) @ V, alone, **EXACT)
    assert verdicts(risk) == [matrix is cp.ggn]  # which takes first derivatives of the model only


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
@pytest.mark.parametrize("microbatch_size", [1, None])
@pytest.mark.parametrize("expert", ["first.*", "second.*"])
def test_microbatches_that_do_not_touch_the_parameters(matrix, microbatch_size, expert):
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
    assert torch.allclose(matrix(together(risk)) @ V, alone, **EXACT)


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_no_curvature_together(matrix):
    risk = cp.EmpiricalRisk(nn.Linear(2, 1).double(), lambda outputs, batch: outputs[:, 0], block_of(5, 2))
    assert torch.equal(matrix(together(risk)) @ block_of(3, 4), torch.zeros(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_graph_goes_with_its_product(kind):
    risk = cases.make("mlp").risk()
    with risk.undisturbed():
        linear = linearise(risk.probed, kind, risk.sample.read(0, len(risk)))
        next(linear.products(block_of(31, 1)))
        gone = weakref.ref(linear)
        gc.disable()
        try:
            del linear
            assert gone() is None
        finally:
            gc.enable()
