"""Passes in which memory runs out."""

import resource
import warnings

import pytest
import torch

import curvprobe as cp
from curvprobe.curvature.covariance import covariance_product
from curvprobe.risk.probed import ProbedModel
from tests import cases, several


def short_of_memory(monkeypatch, most, error=torch.OutOfMemoryError):
    """From now on no more than so many examples go through a model together."""
    usual = ProbedModel.batch_losses

    def batch_losses(self, params, microbatch):
        if len(microbatch) > most:
            raise error("can't allocate memory: you tried to allocate 99 bytes")
        return usual(self, params, microbatch)

    monkeypatch.setattr(ProbedModel, "batch_losses", batch_losses)


def numbers(risk):
    block = cases.block_of(risk.num_params, 2)
    H = cp.hessian(risk)
    return [
        risk.losses(0.01 * block[:, 0]),
        risk.gradient(0.01 * block[:, 0]),
        H @ block,
        H @ block,
        covariance_product(risk, block[:, 0]),
        cp.project(risk, cp.Subspace.from_basis(torch.linalg.qr(block).Q)).hessian,
    ]


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_fewer_examples_at_once_give_the_same_numbers(monkeypatch, most, error):
    case = cases.make("mlp")
    expected, risk = numbers(case.risk()), case.risk()
    short_of_memory(monkeypatch, most, error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = numbers(risk)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, **cases.EXACT)
    assert str(caught[0].message) == ("memory ran out with 6 examples in one pass; 3 at a time were taken from then on")
    assert risk.microbatch_size == most
    assert len(caught) == (1 if most == 3 else 2)


def test_a_graph_that_was_kept_is_let_go(monkeypatch):
    """Where memory runs out in a later product only."""
    case = cases.make("mlp")
    risk, block = case.risk(), cases.block_of(case.risk().num_params, 1)
    H = cp.hessian(risk)
    expected, products = H @ block, type(H)._products

    def short(self, linear, block, rows):
        if rows > 3:
            raise torch.OutOfMemoryError("no room")
        return products(self, linear, block, rows)

    monkeypatch.setattr(type(H), "_products", short)
    with pytest.warns(UserWarning, match="memory ran out"):
        found = H @ block
    assert torch.allclose(found, expected, **cases.EXACT)
    assert H._kept == []


def test_one_example_that_does_not_fit_and_other_errors_are_raised(monkeypatch):
    risk = cases.make("mlp").risk(microbatch_size=1)
    short_of_memory(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        risk.gradient(torch.zeros(risk.num_params, dtype=torch.float64))
    monkeypatch.undo()
    risk = cases.make("mlp").risk()
    monkeypatch.setattr(ProbedModel, "batch_losses", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        risk.losses(torch.zeros(risk.num_params, dtype=torch.float64))
    assert risk.microbatch_size > 6


def test_an_analysis_goes_on_and_says_so(monkeypatch, tmp_path):
    case = cases.make("mlp")
    options = {"dim": 2, "num_probes": 4, "surface": 0, "tol": 1e-8}
    expected = cp.analyze(case.risk(), case.candidates, **options)
    risk = case.risk()
    short_of_memory(monkeypatch, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cp.analyze(risk, case.candidates, **options)
    assert found.expected.value == pytest.approx(expected.expected.value, rel=1e-9)
    assert found.controlled.value == pytest.approx(expected.controlled.value, rel=1e-9)
    said = [note for note in found.notes if note.startswith("Memory ran out with 6 examples in one pass; 3 at a time")]
    assert len(said) == 1
    assert "a smaller memory_budget avoids it" in said[0]


def in_a_small_room(group):
    """A pass whose activations do not fit into what this process may take: 512 examples of 8 MiB each, saved twice."""
    layers = (torch.nn.Linear(8, 1 << 20, bias=False), torch.nn.Tanh(), torch.nn.Linear(1 << 20, 1, bias=False))
    model = torch.nn.Sequential(*layers)
    data = torch.randn(512, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(512, 1)
    risk = cp.EmpiricalRisk(model, cp.losses.mse, data, params=["0.*"], microbatch_size=512)
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30), resource.RLIM_INFINITY))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return risk.value(), risk.microbatch_size


def test_a_real_limit_on_memory():
    value, size = several.values(1, in_a_small_room)[0]
    assert 1 <= size <= 256
    assert value > 0
