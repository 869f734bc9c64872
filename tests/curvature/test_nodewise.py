"""Each operation's rule against double backward, in float64: alone, and for many examples at once."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvprobe.curvature.nodewise.operations import FLAT, RULES
from curvprobe.curvature.nodewise.recording import UnknownOperationError, record
from curvprobe.curvature.nodewise.sweep import Sweep, gram
from tests.curvature.operations import DECOMPOSED, EXPRESSIONS, curved

DIM, COUNT, PIECE = 4, 3, 1 << 14


def weights(*shapes: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return {f"p{i}": value for i, value in enumerate(draw)}


def along(params: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {n: torch.randn(DIM, *p.shape, generator=generator, dtype=p.dtype) for n, p in params.items()}


def by_double_backward(loss, params: dict[str, Tensor], example: list[Tensor], directions) -> tuple[Tensor, Tensor]:
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    gradients = torch.autograd.grad(loss(leaves, example), list(leaves.values()), create_graph=True, allow_unused=True)
    kept = [(g, leaf, name) for g, (name, leaf) in zip(gradients, leaves.items(), strict=True) if g is not None]
    slopes = sum((directions[name] * g.detach()).flatten(1).sum(1) for g, _, name in kept)
    rows = []
    for a in range(DIM):
        slope = sum((g * directions[name][a]).sum() for g, _, name in kept)
        bent = (
            torch.autograd.grad(slope, list(leaves.values()), allow_unused=True, retain_graph=True)
            if slope.requires_grad
            else [None] * len(leaves)
        )
        total = torch.zeros(DIM, dtype=torch.float64)
        for h, name in zip(bent, leaves, strict=True):
            if h is not None:
                total = total + (directions[name] * h).flatten(1).sum(1)
        rows.append(total)
    return slopes, torch.stack(rows)


ROUNDED = {"_to_copy": {"rtol": 1e-5, "atol": 1e-6}, "celu": {"rtol": 1e-6, "atol": 1e-6}}
"""Of what goes by float32: as autograd's own derivative of celu does, whose 1 / alpha does."""


@pytest.mark.parametrize("name", sorted(EXPRESSIONS))
def test_an_operation_adds_what_double_backward_finds(name):
    params, (expression, wanted) = weights((6,), (6,)), (EXPRESSIONS[name], name.split(",")[0])
    examples = torch.randn(COUNT, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    directions = along(params)

    def loss(at: dict[str, Tensor], example: list[Tensor]) -> Tensor:
        return expression(at, example[0])

    program = record(loss, params, [examples[0]])
    assert wanted in {step.name for step in program.steps}
    sweep = Sweep.along(program, params, directions, DIM)
    exact = ROUNDED.get(name, {"rtol": 1e-10, "atol": 1e-11})
    together = sweep([examples])
    for i, x in enumerate(examples):
        slopes, bends = by_double_backward(loss, params, [x], directions)
        alone = sweep([x[None]])
        for found, row in ((together, i), (alone, 0)):
            assert torch.allclose(found[0][row], loss(params, [x]), **exact)
            assert torch.allclose(found[1][row], slopes, **exact)
            assert torch.allclose(found[2][row], bends, **exact)


@pytest.mark.parametrize("name", sorted(DECOMPOSED))
def test_operations_that_are_made_of_others(name):
    params, expression = weights((6,), (6,)), DECOMPOSED[name]
    x = torch.linspace(-1.3, 1.1, 6, dtype=torch.float64)
    directions = along(params)
    with sdpa_kernel(SDPBackend.MATH):
        program = record(lambda p, e: expression(p, e[0]), params, [x])
        found = Sweep.along(program, params, directions, DIM)([x[None]])
        slopes, bends = by_double_backward(lambda p, e: expression(p, e[0]), params, [x], directions)
    assert torch.allclose(found[1][0], slopes, rtol=1e-9, atol=1e-10)
    assert torch.allclose(found[2][0], bends, rtol=1e-9, atol=1e-10)


def test_every_rule_has_a_test():
    tried = {name.split(",")[0] for name in EXPRESSIONS}
    assert set(RULES) - tried == set()


@pytest.mark.parametrize("name", sorted(FLAT))
def test_flat_operations_do_not_move(name):
    assert name not in RULES


# ---- what cannot be recorded --------------------------------------------------------------------------------------


def recorded(function, *shapes: tuple[int, ...]):
    params = weights(*shapes)
    return record(lambda p, x: function(p, x[0]), params, [torch.ones(6, dtype=torch.float64)])


def test_an_operation_without_a_rule_is_named():
    with pytest.raises(UnknownOperationError, match=r"^linalg_matrix_exp$"):
        recorded(lambda p, x: torch.matrix_exp(p["p0"] * x[0]).sum(), (2, 2))


def test_a_rule_that_fits_only_some_uses_says_so():
    for function, words in (
        (lambda p, x: (p["p0"] ** p["p0"]).sum(), "exponent is a tensor"),
        (lambda p, x: torch.div(p["p0"], x, rounding_mode="floor").sum(), "rounded"),
        (lambda p, x: x.masked_fill(x > 0, p["p0"].sum()).sum(), "a value that moves"),
    ):
        params = {"p0": torch.ones(6, dtype=torch.float64)}
        program = record(lambda p, x, f=function: f(p, x[0]), params, [torch.ones(6, dtype=torch.float64)])
        with pytest.raises(NotImplementedError, match=words):
            Sweep.along(program, params, along(params), DIM)([torch.ones(1, 6, dtype=torch.float64)])


def test_complex_numbers_go_another_way():
    with pytest.raises(UnknownOperationError, match=r"^_fft_r2c$"):
        recorded(lambda p, x: torch.fft.rfft(p["p0"] * x[:6]).abs().sum(), (6,))


def test_a_loss_of_nothing_that_is_given():
    with pytest.raises(UnknownOperationError, match="neither on the parameters nor on the example"):
        recorded(lambda p, x: torch.ones(()), (2,))


# ---- what is recorded otherwise than it runs ----------------------------------------------------------------------


def filled_in(p: dict[str, Tensor], x: Tensor) -> Tensor:
    out = torch.zeros(2, 3, dtype=torch.float64)
    out[1, 1:] = p["p0"][:2] * x[:2]  # a part of a part of what was a constant
    out.mul_(p["p1"][0])
    out[0] += p["p1"][:3] ** 2
    return curved(out)


def changed_in_place(p: dict[str, Tensor], x: Tensor) -> Tensor:
    z = p["p0"] * x
    z.sin_().add_(p["p1"], alpha=2).mul_(p["p0"]).copy_(p["p1"][:1])
    return curved(z)


def column_filled_in(p: dict[str, Tensor], x: Tensor) -> Tensor:
    out = torch.zeros(4, 4, 1, dtype=torch.float64)
    out[..., 0] = (p["p0"][:4] * x[:4])[:, None] * p["p1"][:4]
    flat = torch.zeros(4, 4, dtype=torch.float64)
    flat.diagonal(1).add_(p["p0"][:3])
    return curved(out) + curved(flat + 1)


@pytest.mark.parametrize("function", [filled_in, changed_in_place, column_filled_in])
def test_operations_in_place_are_written_as_what_they_make(function):
    params = weights((6,), (6,))
    x = torch.linspace(-1, 1, 6, dtype=torch.float64)
    directions = along(params)
    program = record(lambda p, e: function(p, e[0]), params, [x])
    _, slopes, bends = Sweep.along(program, params, directions, DIM)([x[None]])
    expected = by_double_backward(
        lambda p, e: function({n: t.clone() for n, t in p.items()}, e[0]), params, [x], directions
    )
    assert torch.allclose(slopes[0], expected[0], rtol=1e-10)
    assert torch.allclose(bends[0], expected[1], rtol=1e-10)


def test_conditions_that_were_asked_for_are_kept():
    """Where the loss would not tell: it is the same on both sides at this point."""

    def loss(p: dict[str, Tensor], e: list[Tensor]) -> Tensor:
        z = (p["p0"] * 0 + 1) * e[0]
        return curved(z**2) if (e[0] > 0).all() else curved(z.abs() ** 3)

    params, ones = weights((6,)), torch.ones(6, dtype=torch.float64)
    sweep = Sweep.along(record(loss, params, [ones]), params, along(params), DIM)
    found = sweep([torch.stack([ones, -ones, ones])])[0]
    assert found.isnan().tolist() == [False, True, False]
    assert float(found[0]) == float(loss(params, [ones])) == float(loss(params, [-ones]))


def test_detached_parts_do_not_move_and_unused_ones_are_left_out():
    program = recorded(lambda p, x: (p["p0"] * (p["p0"] * x).detach() + 0 * (p["p0"].exp() > 1)).sum(), (6,))
    assert [step.bends for step in program.steps if step.name == "mul"] == [False] * 3
    used = recorded(lambda p, x: (p["p0"].exp(), (p["p0"] * x).sum())[1], (6,))
    assert [step.name for step in used.steps] == ["mul", "sum"]


def test_what_depends_on_parameters_alone_is_found_once():
    params = weights((6, 6))
    program = record(lambda p, x: (x[0] @ p["p0"].t()).tanh().sum(), params, [torch.ones(1, 6, dtype=torch.float64)])
    sweep = Sweep.along(program, params, along(params), DIM)
    assert program.steps[0].name == "t"
    assert set(sweep.values) == set(sweep.tangents) == {program.params["p0"], program.steps[0].outputs[0]}


# ---- inner products -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [1, PIECE, PIECE + 1, 3 * PIECE + 5])
def test_inner_products_in_pieces(terms):
    left, right = (torch.randn(3, terms, generator=torch.Generator().manual_seed(i)) for i in range(2))
    exact = left.double() @ right.double().T
    assert gram(left, right).dtype == torch.float64
    assert float((gram(left, right) - exact).abs().max()) < 1e-7 * terms


@pytest.mark.parametrize(
    ("first", "second"), [((1, 4), (5, 4)), ((5, 1), (5, 4)), ((1, 1), (5, 4)), ((5, 4), (1, 4)), ((), ())]
)
def test_inner_products_of_tensors_that_are_spread_over_one_another(first, second):
    left, right = (torch.randn(3, *s, dtype=torch.float64) for s in (first, second))
    shape = torch.broadcast_shapes(first, second)
    spread = [t.expand(3, *shape).reshape(3, -1) for t in (left, right)]
    assert torch.allclose(gram(left, right), spread[0] @ spread[1].T)
