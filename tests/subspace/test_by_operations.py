"""Examples projected operation by operation: which way they go, and what is found out on the way."""

import pytest
import torch
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.curvature.nodewise import operations
from curvprobe.curvature.nodewise.examples import BRANCHES, NODEWISE, Sweeps
from curvprobe.curvature.nodewise.operations import RULES
from tests import cases
from tests.cases import block_of
from tests.subspace.projected import given, naive_projection, same, taken


def exact(risk: cp.EmpiricalRisk, model: nn.Module, data) -> bool:
    """Whether the projection is that of double backward."""
    case = cases.Case(model, cp.losses.cross_entropy, data, None)
    subspace = given(risk)
    return same(cp.project(risk, subspace), cp.ProjectedSample(*naive_projection(case, subspace.basis)))


class Forking(nn.Module):
    """Takes one of several branches by what an example holds."""

    def __init__(self, ways: int) -> None:
        super().__init__()
        self.inner, self.ways = nn.Linear(3, 3), ways

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        return torch.cat(
            [row.tanh() * (1 + int(value) % self.ways) for row, value in zip(z.split(1), x[:, 0], strict=True)]
        )


@pytest.mark.parametrize(("ways", "recordings"), [(1, 1), (2, 2), (BRANCHES, BRANCHES), (BRANCHES + 1, None)])
def test_examples_that_take_another_branch_are_recorded_anew(ways, recordings, monkeypatch):
    made = []

    def watched(self, examples, row, record=Sweeps._record):
        made.append(examples.rows)
        return record(self, examples, row)

    monkeypatch.setattr(Sweeps, "_record", watched)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Forking(ways).double()
    x, y = block_of(10, 3), torch.arange(10) % 3
    x[:, 0] = torch.arange(10) + 0.5
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x, y))
    assert exact(risk, model, (x, y))
    assert taken(risk) == "by operations"
    assert recordings is None or len(made) == recordings  # of more branches, each example goes by itself


def test_shapes_that_depend_on_the_values():
    """Batching does not take them: the examples go one by one, and are recorded where the shapes are others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cases.Gate().double()
    x, y = block_of(8, 3), torch.arange(8) % 3
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x, y))
    assert exact(risk, model, (x, y))
    assert taken(risk) == "by operations"


def wrong_where_positive(monkeypatch) -> nn.Module:
    """A model whose tanh has a wrong rule, which shows for examples of positive inputs, and not in their loss."""
    right = RULES["tanh"]

    def push(at):
        tangents, pairs = right(at)
        return tangents, [(left * torch.where(at.args[0].flatten()[0] > 0, 1.001, 1.0), other) for left, other in pairs]

    monkeypatch.setitem(operations.RULES, "tanh", push)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 3)).double()
    nn.init.constant_(model[0].weight, 0.5)
    return model


@pytest.mark.parametrize("wrong", [0, 4, 11])
def test_a_rule_that_is_wrong_for_one_example_of_many_is_found_out(wrong, monkeypatch):
    model, x, y = wrong_where_positive(monkeypatch), -block_of(12, 2).abs(), torch.arange(12) % 3
    x[wrong] *= -1
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x, y))
    assert exact(risk, model, (x, y))
    assert risk.probed.fast_paths.verdicts[NODEWISE] is False
    assert taken(risk) == "together"


@pytest.mark.parametrize("row", [0, 8])
def test_a_rule_that_is_wrong_is_found_out_among_examples_that_go_one_by_one(row, monkeypatch):
    """The first is compared, and one in eight: here every example from ``row`` on is wrong."""
    model, x, y = wrong_where_positive(monkeypatch), -block_of(12, 2).abs(), torch.arange(12) % 3
    x[row:] *= -1
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x, y), microbatch_size=1)
    assert exact(risk, model, (x, y))
    assert risk.probed.fast_paths.verdicts[NODEWISE] is False


def test_an_operation_without_a_rule_goes_another_way():
    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Parameter(0.1 * block_of(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.matrix_exp(self.turn - self.turn.T)

    model, data = Rotated(), (block_of(6, 3), torch.arange(6) % 3)
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, data)
    assert exact(risk, model, data)
    assert risk.probed.fast_paths.verdicts[NODEWISE] is False


@pytest.mark.parametrize(("dim", "way"), [(2, "one by one"), (3, "by operations")])
def test_large_examples_go_by_operations_where_it_pays(dim, way, monkeypatch):
    monkeypatch.setattr("curvprobe.risk.budget.SMALL_EXAMPLE", 1)
    risk = cases.make("mlp").risk()
    cp.project(risk, given(risk, dim))
    assert taken(risk) == way


def test_an_example_that_does_not_fit_goes_another_way(monkeypatch):
    risk = cases.make("mlp").risk()
    monkeypatch.setattr("curvprobe.risk.budget.Budget.examples_swept", lambda self, each: 0)
    found = cp.project(risk, given(risk))
    assert NODEWISE not in risk.probed.fast_paths.verdicts or not risk.probed.fast_paths.verdicts[NODEWISE]
    assert same(found, cp.project(cases.make("mlp").risk(), given(risk)))


def test_examples_that_pass_the_parameters_by():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.inner(row) if row[0, 0] > 0 else row for row in x.split(1)])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Half().double()
    x, y = block_of(6, 3), torch.arange(6) % 3
    x[:, 0] = torch.tensor([1.0, -1, 1, -1, -1, 1])
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x, y))
    sample = cp.project(risk, given(risk))
    assert taken(risk) == "by operations"
    assert float(sample.hessian[1].abs().max()) == float(sample.gradient[1].abs().max()) == 0.0
    assert float(sample.hessian[0].abs().max()) > 0
