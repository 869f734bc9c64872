"""``torch.set_default_device``: what is computed here does not land on it.

"meta" stands for an accelerator: a tensor that is made there by mistake has no numbers to go on with.
"""

import ast
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

import curvprobe as cp
from curvprobe.tasks.digits import digits
from tests import cases

SOURCES = [
    path for path in sorted((Path(__file__).parents[1] / "src").rglob("*.py")) if "experiments" not in path.parts
]
"""All but the experiments, which run by the command alone, in a process of its own."""

FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand"),
    *("randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"),
}


class Numbers(Dataset):
    """Items that hold Python numbers, which torch's collation makes tensors of."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.linspace(-1, row, 3, dtype=torch.float64, device="cpu"), row % 2


@pytest.fixture
def elsewhere():
    """A default device that is not the CPU, between what is set up and the end of the test."""

    def begin() -> None:
        torch.set_default_device("meta")

    yield begin
    left = torch.get_default_device().type
    torch.set_default_device(None)
    assert left == "meta"


def everything(case: cases.Case, out: Path) -> list[object]:
    risk = case.risk()
    analysis = cp.analyze(risk, case.candidates, dim=2, num_probes=8, laws=True, concentration=True, out=out)
    loaded = cp.load(out)
    assert str(loaded) == str(analysis)
    assert loaded.table() == analysis.table()
    return [
        risk.gradient(),
        risk[[1, 0]].losses(),
        analysis.subspace.basis,
        cp.rank_candidates(analysis.sample, analysis.fresh, analysis.sigma).order,
        str({name: part for name, part in analysis.to_json().items() if name != "seconds"}),
        cp.ggn(risk) @ torch.ones(risk.num_params, dtype=risk.dtype, device="cpu"),
    ]


def test_an_analysis_is_the_same_under_another_default_device(elsewhere, tmp_path):
    case = cases.make("mlp")
    expected = everything(case, tmp_path / "before")
    elsewhere()
    for found, before in zip(everything(case, tmp_path / "after"), expected, strict=True):
        assert torch.equal(found, before) if isinstance(found, torch.Tensor) else found == before


def test_numbers_of_a_dataset_are_collated_on_the_cpu(elsewhere):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2, dtype=torch.float64)
    expected = cp.EmpiricalRisk(model, cp.losses.cross_entropy, Numbers()).gradient()
    elsewhere()
    assert torch.equal(cp.EmpiricalRisk(model, cp.losses.cross_entropy, Numbers()).gradient(), expected)


def test_built_in_tasks_train_on_the_cpu(elsewhere):
    elsewhere()
    task = digits(k=20, hidden=(4,), rounds=1)
    assert {p.device.type for p in task.model.parameters()} == {task.data[0].device.type} == {"cpu"}


def test_a_model_makes_its_own_tensors_where_it_would_without_us(elsewhere):
    seen = []

    class Looks(torch.nn.Linear):
        def forward(self, x):
            seen.append(torch.get_default_device().type)
            return super().forward(x)

    model, x = Looks(2, 1), torch.ones(3, 2)
    elsewhere()
    cp.EmpiricalRisk(model, cp.losses.mse, (x, x[:, :1])).gradient()
    assert set(seen) == {"meta"}


def test_every_new_tensor_says_where_it_is_to_be():
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                makes = node.func.attr in FACTORIES and ast.unparse(node.func.value) == "torch"
                if makes and not any(word.arg == "device" for word in node.keywords):
                    found.append(f"{path.name}:{node.lineno}")
    assert found == []
