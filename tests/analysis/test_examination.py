"""The doctor: every check can pass, and finds what it is there for."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import curvprobe as cp
from curvprobe.analysis.examination import AT_CONSTRUCTION, LATER
from tests import cases

F64 = torch.float64


def data(n: int = 40, dtype: torch.dtype = F64):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, 6, generator=draw, dtype=dtype), torch.randint(0, 2, (n,), generator=draw)


def net(*more: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *more, nn.Linear(8, 2)).double()


def found(examination: cp.Examination) -> dict[str, cp.Finding]:
    return {finding.check: finding for finding in examination.findings}


def examined(model: nn.Module, x=None, loss=cp.losses.cross_entropy, **options) -> dict[str, cp.Finding]:
    x, y = data() if x is None else (x, data()[1])
    return found(cp.examine(cp.EmpiricalRisk(model, loss, (x[:30], y[:30])), (x[30:], y[30:]), dim=2, **options))


class Opaque(torch.autograd.Function):
    """tanh, whose backward counts as constant when it is differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (1 - x.tanh() ** 2)


class Apply(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# ---- what a risk has passed --------------------------------------------------------------------------------------


def test_all_checks_pass_for_a_plain_model():
    result = examined(net())
    assert [check for check, finding in result.items() if finding.verdict != "pass"] == []
    assert sorted(result) == sorted([*AT_CONSTRUCTION, *LATER])


def test_nothing_is_left_changed():
    model, (x, y) = net(nn.BatchNorm1d(8)).eval(), data()
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x, y))
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    cp.examine(risk, dim=2)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Seeded(torch.utils.data.Dataset):
    """Augmentation that depends on the position only, by the global generator."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        torch.manual_seed(row)
        return torch.randn(6, dtype=F64), row % 2


def test_reading_a_dataset_leaves_the_generator_where_it_is():
    risk = cp.EmpiricalRisk(net(), cp.losses.cross_entropy, Seeded())
    generator = torch.get_rng_state()
    cp.examine(risk, dim=2)
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_model_that_differentiates_in_its_inputs_is_examined():
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.potential = net()

        def forward(self, x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.potential(x)[:, 0].sum(), x, create_graph=True)[0][:, :2]

    result = examined(Field())
    assert [check for check, finding in result.items() if finding.verdict != "pass"] == ["parameters reached"]
    assert "potential.2.bias" in result["parameters reached"].said  # a constant of the potential


def test_a_kink_is_a_doubt_with_what_to_make_of_it():
    model, (x, _) = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).double(), data()
    nn.init.zeros_(model[0].bias)
    x[0] = 0
    finding = examined(model, x)["second derivatives"]
    assert finding.verdict == "doubt"
    assert "kink" in finding.remedy


def test_a_kink_of_a_candidate_is_a_doubt_of_the_candidates():
    model, (x, _) = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).double(), data(600)
    nn.init.zeros_(model[0].bias)
    x[-1] = 0
    y = data(600)[1]
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x[:30], y[:30]))
    result = found(cp.examine(risk, (x[30:], y[30:]), dim=2))
    assert (result["second derivatives"].verdict, result["candidates"].verdict) == ("pass", "doubt")


def test_a_missing_second_derivative_fails_and_is_said_once():
    result = examined(net(Apply(Opaque.apply)))
    assert result["second derivatives"].verdict == "fail"
    assert "once_differentiable" in result["second derivatives"].said
    assert result["candidates"].said.startswith("not reached")
    assert "time" not in result


def test_parameters_that_no_loss_depends_on_are_named():
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(6, 2), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    finding = examined(Spare().double())["parameters reached"]
    assert finding.verdict == "doubt"
    assert "2 reach no loss of the 16 examples tried: spare.weight, spare.bias" in finding.said


@pytest.mark.parametrize(("hidden", "verdict"), [(1.0, "pass"), (1e6, "doubt")])
def test_rounding_of_products_is_measured_against_float64(hidden, verdict):
    """Two large parts of every loss cancel; what float32 leaves of their difference is known to few digits."""

    def loss(outputs, batch):
        part = outputs[:, 0].square()
        return cp.losses.cross_entropy(outputs, batch) + hidden * (part - part * (1 + 1e-7 * batch[0][:, 0]))

    model, (x, y) = net().float(), data(dtype=torch.float32)
    finding = found(cp.examine(cp.EmpiricalRisk(model, loss, (x, y)), dim=2))["precision"]
    assert finding.verdict == verdict


@pytest.mark.parametrize("apart", [0.0, 5.0], ids=["alike", "unlike"])
def test_attention_kernels_are_compared(apart):
    """Where fused kernels are allowed, the model's queries may be others."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.into(x)[:, None, None].expand(-1, 1, 3, -1) * torch.tensor([1.0, 2.0, 3.0], dtype=F64)[:, None]
            q = h * (1 + apart * torch.backends.cuda.flash_sdp_enabled())
            return self.out(functional.scaled_dot_product_attention(q, h, h, is_causal=True)[:, 0].mean(1))

    finding = examined(Attends().double())["attention"]
    assert "math kernel" in finding.said
    assert finding.verdict == ("doubt" if apart else "pass")


def test_overlap_and_candidates_that_are_not_finite():
    (x, y), model = data(), net()
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x[:30], y[:30]))
    assert found(cp.examine(risk, (x[28:], y[28:]), dim=2))["overlap"].said.startswith("2 of 12 candidates are in")
    verdicts = [
        found(cp.examine(risk, (x[28:], y[28:]), dim=2, allow_overlap=allowed))["overlap"].verdict
        for allowed in (False, True)
    ]
    assert verdicts == ["fail", "doubt"]  # an analysis refuses the one, and takes the other
    bad = x[30:].clone()
    bad[7] = torch.nan
    finding = found(cp.examine(risk, (bad, y[30:]), dim=2))["candidates"]
    assert (finding.verdict, "example 7 of 10 is nan" in finding.said) == ("fail", True)


def test_too_little_memory_for_the_basis_fails():
    risk = cases.make("mlp").risk()
    narrow = cp.EmpiricalRisk(
        net(), cp.losses.cross_entropy, data(), memory_budget=4 * risk.footprint.least + 200 * risk.footprint.vector
    )
    assert found(cp.examine(narrow, dim=70))["memory"].verdict == "fail"


@pytest.mark.parametrize("dim", [0, 75])
def test_a_dimension_that_an_analysis_would_refuse_fails(dim):
    risk = cp.EmpiricalRisk(net(), cp.losses.cross_entropy, data())
    finding = found(cp.examine(risk, dim=dim))["memory"]
    assert (finding.verdict, "expected 1 to the number of parameters, 74" in finding.said) == ("fail", True)


def test_an_error_of_the_users_code_on_a_later_example_is_a_finding_and_leaves_all_as_it_was():
    model, (x, y) = net(), data(400)
    x[321] = 1e6
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    def loss(outputs, batch):
        if bool((batch[0] > 1e5).any()):
            raise RuntimeError("out of range")
        return cp.losses.cross_entropy(outputs, batch)

    finding = found(cp.examine(cp.EmpiricalRisk(model, loss, (x, y)), dim=2))["first pass"]
    assert (finding.verdict, "RuntimeError: out of range" in finding.said) == ("fail", True)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---- what is refused before there is a risk ------------------------------------------------------------------------


def noise(outputs, batch):
    return cp.losses.cross_entropy(outputs, batch) * (1 + 0.1 * torch.rand(len(outputs)))


REFUSED = {
    "data": lambda: cp.EmpiricalRisk(net(), cp.losses.cross_entropy, (torch.ones(3, 6), torch.ones(2))),
    "modes": lambda: cp.EmpiricalRisk(net(nn.Dropout()), cp.losses.cross_entropy, data()),
    "first pass": lambda: cp.EmpiricalRisk(net(), cp.losses.cross_entropy, (data()[0].float()[:, :5], data()[1])),
    "entries": lambda: cp.EmpiricalRisk(net(), cp.losses.cross_entropy, (*data(), torch.ones(40))),
    "parameters reached": lambda: held(net()),
    "memory": lambda: cp.EmpiricalRisk(net(), cp.losses.cross_entropy, data(), memory_budget=100),
    "determinism": lambda: cp.EmpiricalRisk(net(), noise, data()),
    "independence": lambda: cp.EmpiricalRisk(net(), lambda o, b: cp.losses.cross_entropy(o, b) / len(o), data()),
}


def held(model: nn.Module) -> cp.EmpiricalRisk:
    weight = model[0].weight
    return cp.EmpiricalRisk(model, lambda o, b: cp.losses.cross_entropy(o, b) + weight.square().sum(), data())


@pytest.mark.parametrize("check", AT_CONSTRUCTION)
def test_a_refusal_names_its_check_and_what_was_not_reached(check):
    with pytest.raises(cp.CurvprobeError) as caught:
        REFUSED[check]()
    examination = cp.Examination.refused(caught.value)
    assert [finding.check for finding in examination.findings] == [*AT_CONSTRUCTION[: AT_CONSTRUCTION.index(check) + 1]]
    assert [finding.check for finding in examination.named("fail")] == [check]
    assert "second derivatives" in examination.not_checked[0]
    assert str(caught.value) in str(examination)


# ---- the record and the result --------------------------------------------------------------------------------------


def test_the_analysis_keeps_what_was_examined(tmp_path):
    case = cases.make("mlp")
    risk = case.risk()
    analysis = cp.analyze(risk, case.candidates, dim=2, out=tmp_path)
    separate = cp.examine(risk, case.candidates, dim=2)
    of_the_machine = {"memory", "time"}
    assert analysis.examination.findings == tuple(f for f in separate.findings if f.check not in of_the_machine)
    assert cp.load(tmp_path).examination == analysis.examination
    assert f"checks {analysis.examination.summary()}" in " ".join(analysis.table().split())


def test_the_worst_finding_is_the_verdict():
    verdicts = ("pass", "doubt", "fail")
    for at in range(3):
        findings = tuple(cp.Finding(name, name, "so") for name in verdicts[: at + 1])
        assert cp.Examination(findings).verdict == verdicts[at]
    assert cp.Examination(findings).summary() == "1 passed, 1 in doubt (doubt), 1 failed (fail)"
