"""Second derivatives that do not exist, or are wrong, are refused; those that are right are not."""

import pytest
import torch
from torch import nn

import curvprobe as cp
from curvprobe.curvature.second_derivatives import check_second_derivatives
from tests import cases, reference
from tests.cases import EXACT, block_of


class _Squared(nn.Linear):
    def forward(self, x):
        return cases.SquareOnce.apply(super().forward(x))


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_an_operation_without_a_second_derivative_is_refused(matrix):
    """Not passed over: ``autograd.grad`` does not visit the node that would raise, and gives zero."""
    risk = cp.EmpiricalRisk(_Squared(2, 1).double(), cp.losses.mse, (block_of(3, 2), block_of(3, 1)))
    with pytest.raises(ValueError, match="missing or wrong second derivative"):
        _ = matrix(risk) @ block_of(3, 1)


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_a_first_example_that_does_not_touch_the_parameters(matrix):
    """There second derivatives are zero, and right."""
    x, y = cases.make("mlp").data
    order = (x[:, 0] > 0).to(torch.int8).argsort()
    torch.manual_seed(0)
    risk = cp.EmpiricalRisk(cases.Gate().double(), cp.losses.cross_entropy, (x[order], y[order]), params=["first.*"])
    product = matrix(risk) @ block_of(12, 1)
    assert torch.allclose(product, matrix(risk[::-1]) @ block_of(12, 1), **EXACT)
    assert float(product.norm()) > 0


def test_a_float32_constant_in_the_loss_does_not_stop_the_check():
    """Class weights: the float64 evaluation fails, and the check goes on in the model's own precision."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    weight = torch.tensor([1.0, 3.0])
    data = (block_of(5, 3).float(), torch.tensor([0, 1, 1, 0, 1]))

    def loss(outputs, batch):
        return nn.functional.cross_entropy(outputs, batch[1], weight=weight, reduction="none")

    risk = cp.EmpiricalRisk(model, loss, data)
    vector = block_of(risk.num_params, 1)[:, 0]
    product = cp.hessian(risk) @ vector
    model.double()
    weight = weight.double()
    exact = cp.hessian(cp.EmpiricalRisk(model, loss, data)) @ vector
    assert torch.allclose(product.double(), exact, rtol=1e-4, atol=1e-6)


class _Applied(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.forward = function


# ---- what is right is not refused


def relu_network(seed: int, width: int = 8, side: int = 16, layers: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    blocks, channels = [], 1
    for _ in range(layers):
        blocks += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


def doubt(risk: cp.EmpiricalRisk) -> str | None:
    return risk.probed.doubts.get("second derivatives")


@pytest.mark.parametrize("microbatch_size", [None, 1])
@pytest.mark.parametrize("seed", range(3))
def test_a_relu_network_of_ordinary_size_is_right(seed, microbatch_size):
    """With 100,000 units some cross their kinks within the first steps, and none within the last."""
    model = relu_network(seed, width=32, side=32)
    data = (torch.randn(6, 1, 32, 32), torch.arange(6) % 3)
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, data, microbatch_size=microbatch_size)
    check_second_derivatives(risk, "hessian")
    check_second_derivatives(risk, "ggn")
    assert doubt(risk) is None


def test_a_network_with_so_many_units_that_only_the_last_steps_cross_no_kink():
    torch.manual_seed(1)
    data = (torch.randn(1, 1, 96, 96), torch.zeros(1, dtype=torch.long))
    risk = cp.EmpiricalRisk(relu_network(0, width=24, side=96, layers=5), cp.losses.cross_entropy, data)
    check_second_derivatives(risk, "hessian")
    assert doubt(risk) is None


def blank_first() -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    nn.init.zeros_(model[0].bias)
    x = block_of(10, 4)
    x[0] = 0
    return model, (x, torch.arange(10) % 2)


def test_units_exactly_on_their_kinks_are_a_doubt():
    """A blank image where biases are zero: autograd's convention is taken, and the model says that nothing shows it."""
    model, data = blank_first()
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, data)
    found = cp.top_eigenspace(risk, 2, tol=1e-12).eigenvalues
    losses = nn.functional.cross_entropy(model(data[0]), data[1])
    exact = torch.linalg.eigvalsh(reference.dense_hessian(losses, reference.trainable(model))).flip(0)[:2]
    assert torch.allclose(found, exact, rtol=1e-8)
    assert "examples tried (0)" in doubt(risk)
    assert "0.bias" in doubt(risk)


def test_a_doubt_of_one_product_leaves_that_of_another():
    risk = cp.EmpiricalRisk(blank_first()[0], cp.losses.cross_entropy, blank_first()[1])
    risk.probed.doubts["second derivatives"] = "whether a ggn product is right; whether a hessian product is right"
    check_second_derivatives(risk, "hessian")
    assert doubt(risk).startswith("whether a ggn product is right; whether a hessian product is right could not")
    assert doubt(risk).count("hessian") == 1


class _Kinked(nn.Module):
    """Of class C1 with a jump in the second derivative at w*, where both sides and their mean settle, apart."""

    def __init__(self, signs: tuple[float, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(signs), dtype=torch.float64))
        self.signs = torch.tensor(signs, dtype=torch.float64)

    def forward(self, x):
        return (x * torch.relu(self.weight * self.signs).square()).sum(1, keepdim=True) + self.weight.sum()


@pytest.mark.parametrize(("signs", "doubtful"), [((1.0,), False), ((1.0, -1.0, 1.0, -1.0, 1.0, -1.0), True)])
def test_one_side_of_a_kink_is_enough(signs, doubtful):
    x = torch.ones(1, len(signs), dtype=torch.float64)
    risk = cp.EmpiricalRisk(_Kinked(signs), lambda outputs, batch: outputs[:, 0], x)
    check_second_derivatives(risk, "hessian")
    assert (doubt(risk) is not None) == doubtful


class _Corner(nn.Module):
    """``|a|`` at 0, where quotients of both sides are equal and grow without end; and, perhaps, ``b^2`` in two halves,
    where autograd's convention makes the second derivative 0 and differences settle at 2."""

    def __init__(self, halves: bool) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
        self.halves = halves

    def forward(self, x):
        square = self.b.relu().square() + (-self.b).relu().square() if self.halves else self.b.square()
        return (x * (self.a.abs() + square)).sum(1)


@pytest.mark.parametrize("halves", [False, True])
def test_a_corner_is_a_doubt_of_its_whole_example(halves):
    risk = cp.EmpiricalRisk(_Corner(halves), lambda outputs, batch: outputs, torch.ones(1, 2, dtype=torch.float64))
    check_second_derivatives(risk, "hessian")
    assert ("settle there in a, b," in doubt(risk)) == halves
    assert "settle there in a" in doubt(risk)


class _Noise(torch.autograd.Function):
    """The square, with noise in its first derivative that differentiates to nothing."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return slope * (2 * x + 0.1 * torch.sin(1e12 * x.detach()))


def test_a_right_but_noisy_second_derivative_is_a_doubt():
    model = nn.Sequential(nn.Linear(2, 3), _Applied(_Noise.apply)).double()
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (block_of(3, 2), block_of(3, 3)))
    _ = cp.hessian(risk) @ block_of(9, 1)
    assert "3 of 3 examples tried" in doubt(risk)


def test_a_part_in_single_precision_is_no_doubt():
    """Noise of float32 inside a float64 model, beside a tensor whose derivatives vanish (a shift before a softmax)."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shift = nn.Linear(3, 4), nn.Parameter(torch.ones(1))

        def forward(self, x):
            return (self.first(x).tanh() + self.shift).float().log_softmax(1).to(x)

    torch.manual_seed(0)
    data = (block_of(6, 3), torch.arange(6) % 4)
    risk = cp.EmpiricalRisk(Shifted().double(), cp.losses.cross_entropy, data)
    check_second_derivatives(risk, "hessian")
    assert doubt(risk) is None


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("inside", [False, True])
def test_examples_whose_loss_rounds_to_zero_are_right(kind, inside):
    """Of sure classes the first derivative has lost all digits, steadily, and double backward has not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), *[nn.LogSoftmax(1)] * inside).double()
    model[2].weight.data *= 60
    x = block_of(400, 3)
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x, model(x).argmax(1)))
    sure = risk.losses() < 1e-15
    assert sure.sum() > 3
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x[sure], model(x[sure]).argmax(1)))
    check_second_derivatives(risk, kind)
    assert doubt(risk) is None


# ---- what is wrong is refused, wherever it is


class _Late(nn.Module):
    """Examples marked in their last feature go through an operation of their own; the rest do not."""

    def __init__(self, operation) -> None:
        super().__init__()
        self.first, self.last, self.operation = nn.Linear(3, 4), nn.Linear(4, 2), operation

    def forward(self, x):
        hidden = self.first(x[:, :3])
        marked = (x[:, 3:] > 0).expand_as(hidden)
        return self.last(torch.where(marked, self.operation(hidden), hidden.tanh()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("microbatch_size", [None, 2])
@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_an_operation_that_only_a_later_example_uses_is_refused(matrix, microbatch_size, dtype):
    torch.manual_seed(0)
    x = torch.cat([block_of(12, 3), -torch.ones(12, 1)], dim=1)
    x[7, 3] = 1
    data = (x, torch.arange(12) % 2)
    model = _Late(cases.SquareOnce.apply).to(dtype)
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, data, microbatch_size=microbatch_size)
    before = cases.state_of(model)
    where = r".*first\.weight.*" if matrix is cp.hessian else "output tensor 0"
    with pytest.raises(ValueError, match=rf"off central differences in {where}, on example 7: an operation"):
        _ = matrix(risk) @ block_of(risk.num_params, 1)
    assert cases.state_of(model) == before
    right = cp.EmpiricalRisk(_Late(torch.square).to(dtype), cp.losses.cross_entropy, data)
    check_second_derivatives(right, "hessian")
    assert doubt(right) is None


class _Gain(torch.autograd.Function):
    """``x + gain^2`` with a backward in the gain that autograd does not differentiate again."""

    @staticmethod
    def forward(ctx, x, gain):
        ctx.twice = 2 * gain.detach()
        return x + gain.square()

    @staticmethod
    def backward(ctx, slope):
        return slope, (slope.detach() * ctx.twice).sum_to_size(ctx.twice.shape)


class _SmallPart(nn.Module):
    def __init__(self, operation) -> None:
        super().__init__()
        self.large, self.head, self.operation = nn.Linear(60, 60), nn.Linear(60, 3), operation
        self.gain = nn.Parameter(torch.full((3,), 1e-2))

    def forward(self, x):
        return self.operation(self.head(self.large(x).tanh()), self.gain)


@pytest.mark.parametrize("matrix", [cp.hessian, cp.ggn])
def test_a_fault_in_a_small_part_of_the_model_is_refused(matrix):
    """It is less than a thousandth of the whole product, whose relative error would not show it."""
    torch.manual_seed(0)
    data = (block_of(5, 60), torch.arange(5) % 3)
    right = cp.EmpiricalRisk(_SmallPart(lambda x, gain: x + gain**2).double(), cp.losses.cross_entropy, data)
    _ = matrix(right) @ block_of(right.num_params, 1)
    assert doubt(right) is None
    wrong = cp.EmpiricalRisk(_SmallPart(_Gain.apply).double(), cp.losses.cross_entropy, data)
    where = "gain" if matrix is cp.hessian else "output tensor 0"
    with pytest.raises(ValueError, match=f"off central differences in {where}, on example 0"):
        _ = matrix(wrong) @ block_of(wrong.num_params, 1)


def single_loss(outputs, batch):
    weight = torch.tensor([1.0, 3.0])
    return nn.functional.cross_entropy(outputs, batch[1], weight=weight, reduction="none")


@pytest.mark.parametrize("operation", [torch.square, cases.SquareOnce.apply])
def test_a_model_that_stays_in_single_precision(operation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), _Applied(operation), nn.Linear(4, 2))
    risk = cp.EmpiricalRisk(model, single_loss, (block_of(5, 3).float(), torch.tensor([0, 1, 1, 0, 1])))
    if operation is torch.square:
        check_second_derivatives(risk, "hessian")
        assert doubt(risk) is None
        return
    with pytest.raises(ValueError, match="missing or wrong second derivative"):
        check_second_derivatives(risk, "hessian")


def test_a_model_on_a_kink_in_single_precision_is_not_refused():
    model, (x, y) = blank_first()
    risk = cp.EmpiricalRisk(model.float(), single_loss, (x.float(), y))
    check_second_derivatives(risk, "hessian")
    assert "examples tried (0" in doubt(risk)


# ---- when it is made


def test_a_part_of_the_sample_does_not_speak_for_all_of_it():
    torch.manual_seed(0)
    x = torch.cat([block_of(12, 3), -torch.ones(12, 1)], dim=1)
    x[6:, 3] = 1
    risk = cp.EmpiricalRisk(_Late(cases.SquareOnce.apply).double(), cp.losses.cross_entropy, (x, torch.arange(12) % 2))
    check_second_derivatives(risk[:6], "hessian")
    with pytest.raises(ValueError, match="missing or wrong second derivative"):
        check_second_derivatives(risk, "hessian")


def test_examples_of_unlike_shapes_are_all_candidates():
    """One at a time, where only sequences of one length go through the wrong operation."""

    class Lengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, x):
            hidden = self.embed(x).mean(1)
            return self.out(cases.SquareOnce.apply(hidden) if x.shape[1] == 5 else hidden.tanh())

    torch.manual_seed(0)
    items = [(block_of(5 if i == 9 else 4, 2, seed=i), i % 2) for i in range(20)]
    risk = cp.EmpiricalRisk(Lengths().double(), cp.losses.cross_entropy, items, microbatch_size=1)
    with pytest.raises(ValueError, match="on example 9: an operation"):
        check_second_derivatives(risk, "hessian")
