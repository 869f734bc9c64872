"""An analysis leaves a sigma at four draws where these settle the verdict: how often sixteen say otherwise."""

import math

import pytest
import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from torch.func import functional_call, vmap

import curvprobe as cp
from curvprobe.criteria.draws import mirrored_normal
from curvprobe.criteria.verdicts import is_clear, verdict_of
from curvprobe.probing.validity import subspace_validity
from tests import cases

GRID = [10 ** (exponent / 2) for exponent in range(-8, 2)]
SETS, DRAWS, FIRST, DIM = 200, 16, 4, 3


def fitted(activation: type[nn.Module], freedom: float | None) -> tuple[nn.Module, Tensor, Tensor]:
    """A regression on 100 examples and 16 candidates; its noise is Student's where degrees of freedom are given."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Linear(4, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 1))
        model = nn.Sequential(*layers).double()
        x = torch.randn(116, 4, dtype=torch.float64)
        noise = torch.randn(116, 1) if freedom is None else torch.distributions.StudentT(freedom).sample((116, 1))
    y = x[:, :1].sin() + x[:, 1:2] * x[:, 2:3] + 0.3 * noise.double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[:100]), y[:100]).backward()
        optimizer.step()
    return model, x, y


def squares(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squares (S, 2, sets, draws) of the quadratic model's error and of the increments, over the candidates."""
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[:100], y[:100]))
    new = risk.on((x[100:], y[100:]))
    space = cp.top_eigenspace(risk, dim=DIM)
    mean, fresh = cp.mean_projection(risk, space), cp.project(new, space)
    z = torch.cat([mirrored_normal(DRAWS, DIM, seed) for seed in range(SETS)])
    slope, bend = fresh.gradient - mean.gradient, fresh.hessian - mean.hessian
    names, params = zip(*model.named_parameters(), strict=True)

    def losses(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in params])
        at = {name: part.view(p.shape) for name, part, p in zip(names, parts, params, strict=True)}
        return (functional_call(model, at, (x,)) - y).square().mean(1)

    start, rows = torch.cat([p.detach().flatten() for p in params]), []
    for sigma in GRID:
        moved = torch.cat([vmap(losses)(start + sigma * some @ space.basis.T) for some in z.split(600)]) - losses(start)
        true = moved[:, 100:] - moved[:, :100].mean(1, keepdim=True)
        guess = sigma * z @ slope.T + sigma**2 / 2 * torch.einsum("sd,nde,se->sn", z, bend, z)
        rows.append(torch.stack([(true - guess).square().mean(1), true.square().mean(1)]))
    return torch.stack(rows).detach().view(len(GRID), 2, SETS, DRAWS)


def errors(found: Tensor, draws: int) -> Tensor:
    """Relative errors (S, sets) from the first draws of every set."""
    off, size = found[..., :draws].mean(-1).unbind(1)
    return (off / size).sqrt()


def student_ends(found: Tensor) -> tuple[Tensor, Tensor]:
    """Of the 95 % interval of the first draws' error, on a logarithmic scale, with the pairs' one degree of freedom."""
    off, size = found[..., :FIRST].unflatten(-1, (FIRST // 2, 2)).mean(-1).unbind(1)
    relative = (off / off.mean(-1, keepdim=True) - size / size.mean(-1, keepdim=True)) / 2
    reach = stdtrit(1, 0.975) * relative.std(-1) / math.sqrt(FIRST // 2)
    return errors(found, FIRST) * (-reach).exp(), errors(found, FIRST) * reach.exp()


def verdicts(error: Tensor) -> list[str]:
    return [verdict_of(one, 0.05) for one in error.flatten().tolist()]


@pytest.mark.parametrize(
    ("activation", "freedom"),
    [(nn.Tanh, None), (nn.ReLU, None), (nn.Tanh, 1.2), (nn.ReLU, 1.2)],
    ids=["smooth", "kinked", "heavy-tailed", "kinked and heavy-tailed"],
)
def test_four_draws_differ_from_sixteen_no_more_often_than_sixteen_others(activation, freedom):
    found = squares(*fitted(activation, freedom))
    few, many = errors(found, FIRST), errors(found, DRAWS)
    first, all_draws, others = (verdicts(part) for part in (few, many, many.roll(1, dims=1)))
    clear = [is_clear(error, 0.05) for error in few.flatten().tolist()]
    differ = sum(c and a != b for c, a, b in zip(clear, first, all_draws, strict=True))
    sets_differ = sum(a != b for a, b in zip(all_draws, others, strict=True))
    assert differ <= 0.25 * sets_differ
    assert differ <= 0.02 * sum(clear)
    assert sum(clear) >= 0.5 * len(clear)
    # Student's interval from two pairs settles fewer, and more of these otherwise than all draws do.
    low, high = (verdicts(end) for end in student_ends(found))
    settled = [a == b for a, b in zip(low, high, strict=True)]
    student_differs = sum(s and a != b for s, a, b in zip(settled, first, all_draws, strict=True))
    assert sum(settled) < sum(clear)
    assert student_differs > differ


def arguments(name: str) -> dict:
    case = cases.make(name)
    risk = case.risk()
    new, space = risk.on(case.candidates), cp.random_subspace(risk, 3)
    mean, fresh = cp.mean_projection(risk, space), cp.project(new, space)
    return {"risk": risk, "sigmas": GRID, "subspace": space, "mean": mean, "new": new, "fresh": fresh}


@pytest.mark.parametrize("wanted", ["auto", GRID[3], GRID[-1]])
@pytest.mark.parametrize("name", ["layer_norm", "convolution"])
def test_what_is_told_and_what_is_open_has_all_draws(name, wanted):
    given = arguments(name)
    for seed in range(3):
        z = mirrored_normal(DRAWS, 3, seed)
        found = subspace_validity(**given, z=z, wanted=wanted)
        few, many = (subspace_validity(**given, z=part) for part in (z[:FIRST], z))
        draws = found.num_probes
        assert set(draws.tolist()) == {FIRST, DRAWS}
        chosen = found.validated_sigma if wanted == "auto" else wanted
        at = int((found.sigmas - chosen).abs().argmin())
        assert draws[at : at + 2].tolist() == [DRAWS] * len(draws[at : at + 2])
        assert all(is_clear(error, 0.05) for error in found.error[draws == FIRST].tolist())
        for part in ("loss_error", "increment_error", "stderr", "change"):
            expected = torch.where(draws == FIRST, getattr(few, part), getattr(many, part))
            assert torch.allclose(getattr(found, part), expected, rtol=1e-9, atol=1e-13), part
        settled = [is_clear(error, 0.05) for error in few.error.tolist()]
        told = {i for i, count in enumerate(draws.tolist()) if count == DRAWS and settled[i]}
        assert len(told) <= 4  # the one that is told and its neighbour, also where more draws have moved it
        if wanted == "auto":
            assert found.validated_sigma == many.validated_sigma


def test_without_a_validated_sigma_the_best_one_has_all_draws():
    given = arguments("layer_norm") | {"sigmas": [1.0, 3.0, 10.0, 30.0]}
    found = subspace_validity(**given, z=mirrored_normal(DRAWS, 3, 0), wanted="auto")
    assert found.validated_sigma is None
    assert found.num_probes[found.error.argmin()] == DRAWS


def test_fewer_draws_than_the_first_are_all_taken():
    found = subspace_validity(**arguments("layer_norm"), z=mirrored_normal(3, 3, 0), wanted="auto")
    assert found.num_probes.tolist() == [3] * len(GRID)
