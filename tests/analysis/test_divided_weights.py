"""A model whose weights are divided among processes by ``fully_shard`` gives the numbers of the whole one."""

import copy
import json
import weakref

import pytest
import torch
from torch import nn
from torch.distributed import device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

import curvprobe as cp
from curvprobe.analysis.scale import EXCHANGED
from curvprobe.analysis.stages import Job, Settings, eigenspace
from curvprobe.risk import divided
from curvprobe.runtime.plain import to_json
from curvprobe.runtime.store import Store
from tests import cases, several
from tests.analysis.test_several_processes import assert_close, assert_same, few_products, plain

NAMES = ("layer_norm", "tied", "weighted", "convolution")
CONVERGED = "convolution"
"""Whose eigenspace is sought until it is found; of the others the solver's first products are enough to compare."""

SETTINGS = Settings(1, 0.01, "algebraic", 1e-6, None, 4, 0, False)


def sharded(model):
    """The model with its weights divided, layer by layer where no two layers share some."""
    model = copy.deepcopy(model)
    layers = [layer for layer in model.children() if any(True for _ in layer.parameters())]
    tied = len(list(model.parameters())) < sum(len(list(layer.parameters())) for layer in layers)
    for layer in [] if tied else layers:
        fully_shard(layer)
    return fully_shard(model)


def risk_of(case, group, **options):
    return cp.EmpiricalRisk(
        case.model if group is None else sharded(case.model), case.loss, case.data, group=group, **options
    )


def flat(risk, vectors):
    """All coordinates of vectors that are divided as the weights are."""
    gathered = risk.probed.vectors.gathered
    return vectors if gathered is None else gathered(vectors)


def rows_of(risk, vectors):
    parts = risk.probed.vectors.part
    return vectors if parts is None else torch.cat([vectors[part] for part in parts])


def numbers(group, name, microbatch_size):
    case = cases.make(name)
    risk = risk_of(case, group, microbatch_size=microbatch_size)
    block = rows_of(risk, cases.block_of(risk.num_params, 2))
    H, few = cp.hessian(risk), risk[:1]
    space = few_products(risk, 1) if name != CONVERGED else cp.top_eigenspace(risk, dim=1, tol=1e-9)
    sample = cp.project(risk, space)
    columns = flat(risk, space.columns())
    return {
        "losses": risk.losses(),
        "weights": risk.weights,
        "gradient": flat(risk, risk.gradient()),
        "gradient of one": flat(risk, few.gradient()),
        "gradient beside": flat(risk, risk.gradient(0.01 * block[:, 0])),
        "losses beside": risk.losses(0.01 * block[:, 0]),
        "product": flat(risk, H @ block),
        "product of one": flat(risk, cp.hessian(few) @ block[:, 0]),
        "Gauss-Newton product": flat(risk, cp.ggn(risk) @ block[:, 1]),
        "eigenvalues": space.eigenvalues,
        "projector": columns @ columns.T,
        "slopes": sample.gradient.abs(),
        "curvatures": sample.hessian.diagonal(dim1=1, dim2=2),
        "gradient norms": cp.gradient_norms(risk),
        "draw": flat(risk, risk.probed.draw(torch.Generator().manual_seed(1))),
        "sizes": torch.tensor(risk.probed.sizes(), dtype=torch.float64),
        "products used": space.num_matvecs,
    }


def all_numbers(group, names, microbatch_size):
    return {name: numbers(group, name, microbatch_size) for name in names}


@pytest.mark.parametrize(("world", "names", "microbatch_size"), [(2, NAMES, None), (3, ["weighted"], 1)])
def test_every_number_is_that_of_the_whole_model(world, names, microbatch_size):
    found = several.values(world, all_numbers, names, microbatch_size)
    for name in names:
        expected = numbers(None, name, microbatch_size)
        for one in found:
            assert_close(one[name], expected)


def analysed(group, folder):
    case = cases.make("mlp")
    for layer in (case.model[0], case.model[2]):
        layer.bias = None  # every operation with a parameter is an exchange
    found = cp.analyze(risk_of(case, group), case.candidates, dim=2, tol=1e-6, num_probes=4, surface=5, out=folder)
    return json.loads(to_json(found.to_json()))


def test_a_whole_analysis_is_that_of_the_whole_model(tmp_path):
    first, second = several.values(2, analysed, str(tmp_path / "two"))
    assert json.dumps(first) == json.dumps(second)
    assert_same(plain(first), plain(analysed(None, str(tmp_path / "one"))))
    assert (tmp_path / "two" / "result.json").is_file()


def found_in(group, folder):
    """Whether an eigenspace was found there, all its coordinates, and the rows that are held."""
    case = cases.make("convolution")
    risk = risk_of(case, group)
    store = Store.at(folder, risk.ranks)
    space = store.result(eigenspace(Job(risk, risk.on(case.candidates), SETTINGS), None))
    return store.finished["eigenspace"].found, flat(risk, space.columns()), len(space.basis) == risk.probed.held


def test_a_stage_is_found_by_another_number_of_processes(tmp_path):
    folder = str(tmp_path / "run")
    first, then = (several.values(world, found_in, folder) for world in (2, 3))
    for rows, found in ((first, False), (then, True)):
        for row in rows:
            assert row[0] is found
            assert torch.equal(row[1], first[0][1])
            assert row[2]


# ---- memory ----------------------------------------------------------------------------------------------------------


def most_alive(group):
    """The largest number of whole weight matrices at one time, while products are made; and the shape of the model."""
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(40, 40, bias=False), nn.Tanh())]).double()
    x = torch.randn(4, 40, dtype=torch.float64)
    risk = cp.EmpiricalRisk(sharded(model), cp.losses.mse, (x, x), group=group)
    H, v = cp.hessian(risk), risk.probed.draw(torch.Generator().manual_seed(0))
    H @ v  # with its checks
    alive, most, usual = weakref.WeakSet(), [0], divided.Divided.whole

    def whole(self, shard, name):
        found = usual(self, shard, name)
        alive.add(found.untyped_storage())
        most.append(len(alive))
        return found

    divided.Divided.whole = whole
    H @ v
    kept = len(alive)
    cp.hessian(risk) @ v
    return max(most), kept, len(alive)


def test_a_parameter_is_whole_while_it_is_used_only():
    for most, kept, left in several.values(2, most_alive):
        assert 1 <= most <= 4  # of six; one in use, its tangent, and what autograd is about to let go
        assert kept == left == 0


def exchanged(group):
    """How often the weights of six layers are gathered or summed in a product whose graph is kept, and in one anew."""
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(8, 8, bias=False), nn.Tanh())]).double()
    x, counts = torch.randn(4, 8, dtype=torch.float64), []

    def counted(usual):
        def exchange(self, part, name):
            counts[-1] += 1
            return usual(self, part, name)

        return exchange

    divided.Divided.whole, divided.Divided.shard = map(counted, (divided.Divided.whole, divided.Divided.shard))
    for size in (None, 1):
        counts.append(0)
        risk = cp.EmpiricalRisk(sharded(model), cp.losses.mse, (x, x), group=group, microbatch_size=size)
        H, v = cp.hessian(risk), risk.probed.draw(torch.Generator().manual_seed(0))
        H @ v
        counts[-1] = 0
        H @ v
    return counts


def test_a_product_gathers_each_parameter_as_often_as_is_said():
    for kept, anew in several.values(2, exchanged):
        assert kept <= 6 * 4
        assert anew <= 6 * EXCHANGED * 2  # two microbatches of one example


# ---- what is not taken, and what goes wrong --------------------------------------------------------------------------


class Gate(nn.Module):
    """Two experts: each process's examples may go another way."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.first(x) if bool((x[:, 0] > 0).all()) else self.second(x)


def refusals(group):
    """What is said of models and calls that are not taken, and the error of each."""
    case, mesh = cases.make("mlp"), device_mesh.DeviceMesh.from_group(group, "cpu")

    def by_columns():
        model = copy.deepcopy(case.model)
        for name, parameter in list(model[0].named_parameters()):
            placed = distribute_tensor(parameter.detach(), mesh, [Shard(parameter.dim() - 1)])
            setattr(model[0], name, nn.Parameter(placed))
        return cp.EmpiricalRisk(model, case.loss, case.data, group=group)

    def two_ways():
        x = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [-1.0, 0, 0], [-2.0, 0, 0]])
        model = sharded(Gate())
        hooks, before = [list(part._forward_pre_hooks) for part in model.modules()], torch.get_rng_state()
        try:
            return cp.EmpiricalRisk(model, cp.losses.mse, (x, x), group=group, microbatch_size=1).losses()
        finally:
            assert [list(part._forward_pre_hooks) for part in model.modules()] == hooks
            assert any(hooks)
            assert torch.equal(torch.get_rng_state(), before)

    risk = risk_of(case, group)
    tries = {
        "columns": by_columns,
        "no group": lambda: cp.EmpiricalRisk(sharded(case.model), case.loss, case.data),
        "two ways": two_ways,
        "checkpoint": lambda: cp.checkpoint_directions(risk, [case.model]),
        "whole subspace": lambda: cp.project(risk, cp.Subspace.from_basis(torch.eye(risk.num_params).double()[:, :1])),
        "doctor": lambda: cp.examine(risk, case.candidates),
        "plan": lambda: cp.plan(risk, case.candidates, dim=1),
        "compiled": lambda: cp.hessian(risk, compile=True),
    }
    said = {}
    for name, attempt in tries.items():
        try:
            attempt()
        except Exception as error:
            said[name] = type(error).__name__, str(error)
    return said


def test_what_is_not_taken_is_refused_by_all():
    for said in several.values(2, refusals):
        assert len(said) == 8
        assert said["columns"][0] == "CannotProbeError"
        assert "expected rows over one, as fully_shard(module) makes them" in said["columns"][1]
        assert said["no group"][0] == "ArgumentError"
        assert "among the processes [0, 1], and group= has none" in said["no group"][1]
        assert said["two ways"][0] == "RankError"
        assert "the model to go the same way on all examples" in said["two ways"][1]
        for name in sorted(said.keys() - {"columns", "no group", "two ways"}):
            assert said[name][0] == "CannotProbeError", name
            assert "is not there for these yet" in said[name][1]


def fails(group, how):
    case, calls = cases.make("mlp"), [0]

    def loss(outputs, batch):
        calls[0] += 1
        if how == "raises" and calls[0] > 60 and group.rank() == 1:
            raise ZeroDivisionError("in the second process")
        return case.loss(outputs, batch)

    data = case.data
    if how == "nan":
        x, y = (torch.cat([part] * 12) for part in data)
        x[-1] = torch.nan
        data = (x, y)
    risk = cp.EmpiricalRisk(sharded(case.model), loss, data, group=group, microbatch_size=2)
    return cp.top_eigenspace(risk, dim=2)


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_what_fails_in_one_process_ends_all(how):
    first, second = several.run(2, fails, how)
    assert max(first.seconds, second.seconds) < 30
    if how == "raises":
        assert type(second.error) is ZeroDivisionError
        assert str(first.error) == "rank 1 stopped with ZeroDivisionError: in the second process"
    for outcome in (first, second) if how == "nan" else ():
        assert type(outcome.error) is cp.NotFiniteError
        assert "the loss of example 71 of 72 is nan" in str(outcome.error)


# ---- others' wrappers ------------------------------------------------------------------------------------------------


def trained(group, analysed):
    """Losses of a training before and after an analysis, or none; with frozen bfloat16 weights beside."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    model[2].to(torch.bfloat16).requires_grad_(False)

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            x = self.parts[1](self.parts[0](x))
            return self.parts[4](self.parts[3](nn.functional.linear(x, self.parts[2].weight.float())))

    whole = Wide()
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    plain_risk = cp.EmpiricalRisk(copy.deepcopy(whole), cp.losses.mse, (x, y))
    fully_shard(whole.parts[0])
    fully_shard(whole)
    optimizer, losses, found = torch.optim.SGD(whole.parameters(), 0.1), [], None
    for step in range(4):
        if step == 2 and analysed:
            risk = cp.EmpiricalRisk(whole, cp.losses.mse, (x, y), group=group)
            found = few_products(risk, 1).eigenvalues
        if step == 0:
            risk = cp.EmpiricalRisk(whole, cp.losses.mse, (x, y), group=group)
            v = cases.block_of(risk.num_params, 1).float()
            apart = flat(risk, cp.hessian(risk) @ rows_of(risk, v)) - cp.hessian(plain_risk) @ v
            assert float(apart.norm()) < 1e-5 * float(v.norm())
        loss = (whole(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses, found


def trained_twice(group):
    return trained(group, True), trained(group, False)


def test_a_training_goes_on_as_if_nothing_had_been():
    (with_it, without), (other, _) = several.values(2, trained_twice)
    assert with_it[0] == without[0]
    assert with_it[1] is not None
    assert torch.equal(with_it[1], other[1])
