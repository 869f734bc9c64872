"""Single examples' derivatives in a subspace where weights are divided: right, and with as few exchanges as is said."""

import torch
from torch import nn

import curvprobe as cp
from curvprobe.curvature import per_example
from curvprobe.curvature.per_example import project_divided
from curvprobe.risk.fast_paths import DIRECTIONS_TOGETHER
from curvprobe.runtime import ranks
from tests import cases, several
from tests.analysis.test_divided_weights import risk_of, rows_of

DIM = 3


def made(name):
    """A model with a parameter of two rows, or one with frozen weights of low precision beside."""
    if name != "mixed":
        return cases.make(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        low = nn.Linear(5, 4).to(torch.bfloat16).requires_grad_(False)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), low, nn.Tanh(), nn.Linear(4, 2))
        return cases.Case(model, cp.losses.mse, (torch.randn(6, 3), torch.randn(6, 2)), None)


def directions(risk):
    return torch.linalg.qr(cases.block_of(risk.num_params, DIM)).Q.to(risk.dtype)


def traded(of):
    """What ``of()`` gives, and the numbers that this process trades meanwhile: of every exchange."""
    sent, usual = [], ranks.Ranks._traded

    def counted(self, rows, what):
        sent.append(rows.numel())
        return usual(self, rows, what)

    ranks.Ranks._traded = counted
    try:
        return of(), sent
    finally:
        ranks.Ranks._traded = usual


def projected(group, name):
    """Of this process's first example, along one direction at a time, two, and all together, and what is traded."""
    case = made(name)
    risk = risk_of(case, group)
    own, rows = risk.own, rows_of(risk, directions(risk))
    with risk.undisturbed():
        found = [
            traded(lambda at_once=at_once: project_divided(own.probed, own.sample.read(1, 2), rows, at_once))
            for at_once in (1, 2, DIM)
        ]
        compared = traded(lambda: project_divided(own.probed, own.sample.read(0, 1), rows, DIM))
    shapes = risk.probed.divided.shapes
    sizes = [group.size() * -(-shapes[n][0] // group.size()) * shapes[n][1:].numel() for n in risk.param_names]
    return found, compared, own.probed.fast_paths.verdicts, sizes, risk.ranks.share(len(risk)).start


def assert_right(found, expected, row, tolerance=cases.EXACT):
    (slope, curved), loss = found
    assert torch.allclose(loss, expected.loss[row : row + 1], **tolerance)
    assert torch.allclose(slope, expected.gradient[row : row + 1], **tolerance)
    assert torch.allclose(curved, expected.hessian[row : row + 1], **tolerance)


def test_directions_alone_or_together_and_what_they_exchange():
    for world, name in ((3, "convolution"), (2, "mixed")):
        risk = made(name).risk()
        expected = cp.project(risk, cp.Subspace.from_basis(directions(risk)))
        tolerance = cases.EXACT if risk.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
        for found, compared, verdicts, sizes, first in several.values(world, projected, name):
            for (one, sent), at_once in zip(found, (1, 2, DIM), strict=True):
                assert_right(one, expected, first + 1, tolerance)
                passes = -(-DIM // at_once)
                assert len(sent) == len(sizes) * (1 + 2 * passes)  # there and back, and the slopes
                assert sum(sent) == sum(sizes) * (1 + 2 * DIM)
            assert_right(compared[0], expected, first, tolerance)
            assert len(compared[1]) == len(sizes) * (1 + 2 + 2)
            assert verdicts == {DIRECTIONS_TOGETHER: True}


def given_up(group, how):
    """The same where the way along all directions fails in all processes, or is wrong in the second."""
    usual = per_example.vmap

    def vmap(function):
        def wrong(block):
            if how == "fails":
                raise RuntimeError("no batching rule")
            return usual(function)(block) * (1.001 if group.rank() else 1)

        return wrong

    per_example.vmap = vmap
    return projected(group, "convolution")


def test_what_fails_or_is_wrong_in_one_process_is_given_up_by_all():
    risk = made("convolution").risk()
    expected = cp.project(risk, cp.Subspace.from_basis(directions(risk)))
    for how in ("fails", "wrong"):
        for _, compared, verdicts, _, first in several.values(2, given_up, how):
            assert_right(compared[0], expected, first)
            assert verdicts == {DIRECTIONS_TOGETHER: False}


def moved(group):
    """Parameters that each process moves by coordinates of its own, and what comes back of a derivative of its own."""
    risk = risk_of(made("convolution"), group)
    basis, generator = directions(risk), torch.Generator().manual_seed(group.rank())
    z = torch.randn(DIM, generator=generator, dtype=torch.float64, requires_grad=True)
    divided = risk.probed.moved(z, rows_of(risk, basis)).divided
    found = [divided.used(p, name) for name, p in risk.probed.state.probed.items()]
    slopes = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in found]
    total = sum((slope * part).sum() for slope, part in zip(slopes, found, strict=True))
    (back,) = torch.autograd.grad(total, z)
    center, flat = (
        risk.probed.vectors.gathered(torch.cat([p.flatten() for p in risk.probed.state.probed.values()])),
        basis,
    )
    apart = torch.cat([part.flatten() for part in found]) - center - flat @ z
    return float(apart.detach().norm()), float((back - flat.T @ torch.cat([s.flatten() for s in slopes])).norm())


def test_each_process_has_coordinates_of_its_own():
    for world in (2, 3):
        for there, back in several.values(world, moved):
            assert there < 1e-12
            assert back < 1e-12
