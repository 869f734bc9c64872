"""How examples are recognised in an analysis: the same by mistake, natural duplicates, time stamps and graphs."""

import json
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

import curvprobe as cp
from curvprobe.runtime.digest import overlap
from tests import reference

SIGMA = 1e-2


@pytest.fixture(scope="module")
def rows():
    """Three binary features and a class: 16 kinds of rows, so that most of the candidates equal some of the sample."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(0, 2, (50, 3), generator=draw).double()
    return x, torch.randint(0, 2, (50,), generator=draw)


@pytest.fixture(scope="module")
def risk(rows):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = rows
    return cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x[:30], y[:30]))


@pytest.fixture(scope="module")
def candidates(rows):
    x, y = rows
    return x[30:], y[30:]


def shared(rows) -> int:
    """Candidates that equal some example of the sample, by comparing all pairs."""
    x, y = rows
    table = torch.cat([x, y[:, None].double()], dim=1)
    return int((table[30:, None] == table[None, :30]).all(2).any(1).sum())


def test_natural_duplicates_are_refused_with_the_option_for_them(rows, risk, candidates):
    with pytest.raises(
        ValueError, match=rf"{shared(rows)} of 20 candidates .*natural duplicates\), pass allow_overlap="
    ):
        cp.analyze(risk, candidates, dim=2)


def test_natural_duplicates_can_be_analysed_and_are_counted(rows, risk, candidates, tmp_path):
    analysis = cp.analyze(risk, candidates, dim=2, sigma=SIGMA, tolerance=1e-2, out=tmp_path, allow_overlap=True)
    assert 0 < shared(rows) < 20
    assert analysis.num_candidates == 20
    noted = [note for note in analysis.notes if f"{shared(rows)} of 20 candidates are in the sample too" in note]
    assert len(noted) == 1
    assert noted[0].endswith("(taken for different examples, as was asked for).")  # not: pass allow_overlap=True
    assert noted[0] in " ".join(analysis.table().split())
    space = cp.top_eigenspace(risk, dim=2)
    sample, fresh = cp.project(risk, space), cp.project(risk.on(candidates), space)
    expected = cp.expected_criterion(sample, fresh, SIGMA, allow_overlap=True)
    assert analysis.expected.value == pytest.approx(expected.value, rel=1e-6)
    assert analysis.doubling.value == pytest.approx(
        cp.expected_criterion(sample, fresh, SIGMA, "double", allow_overlap=True).value, rel=1e-6
    )
    judged = {"validity": analysis.validity, "stationarity": analysis.stationarity}
    size = cp.required_sample_size(sample, fresh, SIGMA, 1e-2, **judged, allow_overlap=True)
    assert (analysis.required.value, analysis.required.verdict) == (size.value, size.verdict)
    assert json.loads((tmp_path / "result.json").read_text())["config"]["allow_overlap"] is True


def test_where_nothing_overlaps_the_option_changes_nothing(case):
    plain, allowed = (
        cp.analyze(case.risk(), case.candidates, dim=2, sigma=SIGMA, allow_overlap=allow) for allow in (False, True)
    )
    assert plain.notes == allowed.notes
    assert plain.metrics() == allowed.metrics()


def test_a_trajectory_takes_natural_duplicates_where_that_is_said(risk, candidates):
    solutions, options = [risk[:20], risk], {"candidates": candidates, "dim": 2, "sigma": SIGMA}
    with pytest.raises(ValueError, match="allow_overlap=True"):
        cp.trajectory(solutions, **options)
    path = cp.trajectory(solutions, **options, allow_overlap=True)
    assert [expected.num_candidates for expected in path.expected] == [20, 20]


class Clock(nn.Module):
    """Reads seconds since 1970."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, seconds):
        return self.net((seconds - 1.7e9) / 40)


def test_time_stamps_in_float64_are_different_examples():
    torch.manual_seed(0)
    seconds, y = 1.7e9 + torch.arange(40, dtype=torch.float64)[:, None], (torch.arange(40) // 5) % 2
    risk = cp.EmpiricalRisk(Clock().double(), cp.losses.cross_entropy, (seconds[::2], y[::2]))
    analysis = cp.analyze(risk, (seconds[1::2], y[1::2]), dim=2, sigma=SIGMA)
    assert analysis.num_candidates == 20
    with pytest.raises(ValueError, match="1 of 2 candidates"):
        cp.analyze(risk, (seconds[1:3], y[1:3]), dim=2)


class Store:
    def __init__(self, graph, **values):
        self.graph, self.values, self.lock = weakref.ref(graph), values, threading.Lock()


class Graph:
    """As graph libraries keep them: an object whose store refers back to it."""

    def __init__(self, nodes, label):
        self.kind, self.store = type(self), Store(self, nodes=nodes, label=label)


class Graphs:
    """A batch of graphs: their nodes one after another."""

    def __init__(self, graphs):
        nodes = [graph.store.values["nodes"] for graph in graphs]
        self.nodes, self.sizes = torch.cat(nodes), [len(part) for part in nodes]
        self.labels = torch.tensor([graph.store.values["label"] for graph in graphs])


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.node, self.out = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, batch):
        hidden = torch.tanh(self.node(batch.nodes)).split(batch.sizes)
        return self.out(torch.stack([part.sum(0) for part in hidden]))


def test_graphs_are_examples():
    torch.manual_seed(0)
    model = Pooled().double()
    graphs = [Graph(torch.randn(2 + i % 3, 2, dtype=torch.float64), i % 2) for i in range(8)]

    def loss(outputs, batch):
        return functional.cross_entropy(outputs, batch.labels, reduction="none")

    risk = cp.EmpiricalRisk(model, loss, graphs, collate_fn=Graphs)
    value = sum(loss(model(Graphs([graph])), Graphs([graph])).sum() for graph in graphs) / 8
    dense = reference.dense_hessian(value, list(model.parameters()))
    assert risk.value() == pytest.approx(float(value.detach()), rel=1e-12)
    spectrum = torch.linalg.eigvalsh(dense).flip(0)[:3]
    assert torch.allclose(cp.top_eigenspace(risk, 3, tol=1e-8).eigenvalues.double(), spectrum, rtol=1e-8)
    again = [Graph(graph.store.values["nodes"].clone(), i % 2) for i, graph in enumerate(graphs)]
    assert overlap(risk.digests(), risk.on([*again, Graph(torch.zeros(2, 2), 1)]).digests()) == list(range(8))
    assert cp.analyze(risk[:5], risk[5:], dim=2, sigma=1e-2).num_candidates == 3
    graphs[1].store.values["nodes"] += 1
    with pytest.raises(ValueError, match="example 1 is not what it was"):
        risk[1:].gradient()
