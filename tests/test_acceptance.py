"""What make acceptance holds analyses against, on networks that need no package; and its tables in the docs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import curvprobe as cp

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    """The scripts import one another as neighbours."""
    for folder in ("acceptance", "benchmarks"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


class Narrowing(nn.Module):
    """Goes through float32 on its way, as many a network does by ``.float()``, and makes zeros of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.first(x.float()).tanh()
        return self.second(hidden + torch.zeros(4, dtype=torch.float32))


@pytest.fixture
def task():
    torch.manual_seed(0)
    x, y = torch.randn(30, 3), torch.randint(2, (30,))
    return cp.Task(Narrowing(), cp.losses.cross_entropy, (x[:20], y[:20]), (x[20:], y[20:]))


def dense_hessian(task):
    """In float64, by ``torch.autograd.functional``, of a network without what narrows it."""
    first, second = (nn.Linear(3, 4).double(), nn.Linear(4, 2).double())
    first.load_state_dict(task.model.first.state_dict())
    second.load_state_dict(task.model.second.state_dict())
    shapes = [p for layer in (first, second) for p in layer.parameters()]

    def loss(flat):
        parts = flat.split([p.numel() for p in shapes])
        w, b, v, c = (part.view_as(p) for part, p in zip(parts, shapes, strict=True))
        return nn.functional.cross_entropy((task.data[0].double() @ w.T + b).tanh() @ v.T + c, task.data[1])

    return torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in shapes]))


def test_plain_autograd_is_in_float64_though_the_network_narrows(task):
    from checks import PlainRisk

    risk, exact = task.risk(), dense_hessian(task)
    plain = PlainRisk.of(task, risk.param_names)
    vector = torch.randn(risk.num_params, dtype=torch.float64)
    torch.testing.assert_close(plain.product(vector), exact @ vector, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(plain.difference(vector, 1e-4), exact @ vector, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(plain.gradient(), risk.gradient().double(), rtol=1e-4, atol=1e-6)
    assert all(p.grad is None and p.requires_grad for p in task.model.parameters())
    assert torch.get_default_dtype() == torch.float32


def test_wrong_products_and_eigenpairs_are_told(task):
    from checks import PlainRisk, product_error, residual

    risk, exact = task.risk(), dense_hessian(task)
    plain = PlainRisk.of(task, risk.param_names)
    vector = torch.randn(risk.num_params, dtype=torch.float64)
    assert product_error(plain, vector, exact @ vector) < 1e-7
    assert product_error(plain, vector, 1.01 * exact @ vector) == pytest.approx(0.01, rel=1e-3)
    values, vectors = torch.linalg.eigh(exact)
    assert residual(plain, vectors[:, -1], float(values[-1])) < 1e-12
    assert residual(plain, vectors[:, -1], 1.02 * float(values[-1])) == pytest.approx(0.02 / 1.02, rel=1e-6)


def test_a_subset_of_the_parameters_in_lists_and_dicts(task):
    from checks import PlainRisk

    items = [{"x": x, "labels": y} for x, y in zip(*task.data, strict=True)]
    stacked = {"x": task.data[0], "labels": task.data[1]}
    vector = torch.randn(10, dtype=torch.float64)
    found = []
    for data, collate in ((items, torch.utils.data.default_collate), (stacked, None)):
        part = cp.Task(task.model, task.loss, data, params=["second.*"], collate_fn=collate)
        found.append(PlainRisk.of(part, part.risk().param_names).product(vector))
    exact = dense_hessian(task)[16:, 16:] @ vector
    torch.testing.assert_close(found, [exact, exact], rtol=1e-12, atol=1e-14)


def test_modules_of_a_package_without_its_init(tmp_path, monkeypatch):
    from packages import bare, folder, stand_in

    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy" / "__init__.py").write_text("import what_nobody_has")
    (tmp_path / "heavy" / "light.py").write_text("import what_nobody_has\nfrom heavy import ANSWER\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        bare("heavy", ANSWER=42)
        stand_in("what_nobody_has")
        from heavy.light import ANSWER

        assert ANSWER == 42
        assert folder("heavy") == tmp_path / "heavy"
    finally:
        for name in ("heavy", "heavy.light", "what_nobody_has"):
            sys.modules.pop(name, None)
    with pytest.raises(ModuleNotFoundError, match="make acceptance"):
        folder("nothing_of_that_name")


def test_an_item_of_a_package_s_own_class_is_copied_in_float64():
    from checks import doubled

    class Graph:
        def __init__(self):
            self.places, self.numbers, self.name = torch.ones(2, 3, requires_grad=True), torch.arange(2), "salt"

    graph = Graph()
    (made,) = doubled([graph])
    assert made.places.dtype == torch.float64
    assert made.places.requires_grad
    assert made.places.is_leaf
    assert (made.numbers.dtype, made.name) == (torch.int64, "salt")
    assert graph.places.dtype == torch.float32


def test_the_tables_are_in_the_docs():
    import table

    text = (ROOT / "docs" / "acceptance.md").read_text()
    assert table.fill(text) == text
    told = table.acceptance_table.table(json.loads(table.ACCEPTANCE.read_text()))
    assert f"<!-- table acceptance -->\n{told}\n<!-- end -->" in text
