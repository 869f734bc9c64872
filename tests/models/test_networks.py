"""Networks of all kinds."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

import curvprobe as cp
from tests.models.hand import agrees, entries, refused, rows

CE = cp.losses.cross_entropy
DOUBLE = torch.float64


# ---- images


class Residual(nn.Module):
    """Two convolutions beside a shortcut, which drops rows and columns and pads channels where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.more = stride, outputs - inputs
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return functional.relu(self.second(functional.relu(self.first(x))) + shortcut)


def resnet20() -> nn.Sequential:
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [Residual(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    stem = (nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def trained_on_images(model: nn.Module, steps: int = 8) -> tuple[Tensor, Tensor]:
    """A few images of the kind that it has been trained on: a pattern for each class, and noise."""
    patterns = torch.randn(10, 3, 32, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        y = torch.randint(10, (16,))
        optimizer.zero_grad()
        functional.cross_entropy(model(patterns[y] + torch.randn(16, 3, 32, 32)), y).backward()
        optimizer.step()
    return (patterns + torch.randn(10, 3, 32, 32))[:2].double(), torch.arange(2)


def test_residual_network():
    model = resnet20()
    assert sum(p.numel() for p in model.parameters()) > 250_000
    x, y = trained_on_images(model)
    model.eval().double()
    risk = cp.EmpiricalRisk(model, CE, (x, y))
    agrees(risk, model, lambda a, b: functional.cross_entropy(model(a), b), rows(x, y))


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.start, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.start.expand(len(images), -1, -1), patches], 1) + self.positions
        return self.head(self.encoder(tokens)[:, 0])


def test_vision_transformer():
    model = VisionTransformer().double().eval()
    x, y = torch.randn(4, 1, 8, 8, dtype=DOUBLE), torch.randint(3, (4,))
    risk = cp.EmpiricalRisk(model, CE, (x, y))
    agrees(risk, model, lambda a, b: functional.cross_entropy(model(a), b), rows(x, y))


# ---- sequences


class Recurrent(nn.Module):
    def __init__(self, recurrent: nn.RNNBase, classes: int = 3) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(recurrent.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


def test_lstm():
    model = Recurrent(nn.LSTM(2, 4, num_layers=2, batch_first=True)).double()
    x, y = torch.randn(5, 6, 2, dtype=DOUBLE), torch.randint(3, (5,))
    risk = cp.EmpiricalRisk(model, CE, (x, y))
    agrees(risk, model, lambda a, b: functional.cross_entropy(model(a), b), rows(x, y))


class PackedGRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 3, batch_first=True, bidirectional=True)
        self.head = nn.Linear(6, 2)

    def forward(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(sequences, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(torch.cat(list(self.gru(packed)[1]), dim=1))


def test_packed_gru():
    model = PackedGRU().double()
    x, y, lengths = torch.randn(5, 6, 2, dtype=DOUBLE), torch.randint(2, (5,)), torch.tensor([6, 2, 4, 1, 5])
    risk = cp.EmpiricalRisk(model, CE, {"sequences": x, "lengths": lengths, "labels": y})
    alone = list(zip(x, y, lengths.tolist(), strict=True))

    def loss(a: Tensor, b: Tensor, n: int) -> Tensor:
        return functional.cross_entropy(model(a[None, :n], torch.tensor([n])), b[None])

    agrees(risk, model, loss, alone)


def test_time_first_by_mistake():
    model = Recurrent(nn.LSTM(2, 4)).double()
    with refused("take out layers that mix examples"):
        cp.EmpiricalRisk(model, CE, (torch.randn(5, 6, 2, dtype=DOUBLE), torch.randint(3, (5,))))


class Remembering(nn.Module):
    """Starts from the state that it has left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head, self.state = nn.GRUCell(2, 3), nn.Linear(3, 3), None

    def forward(self, x: Tensor) -> Tensor:
        last = x.new_zeros(1, 3) if self.state is None else self.state
        state = self.cell(x, last.expand(len(x), -1))
        self.state = state[-1:].detach()
        return self.head(state)


def test_state_kept_for_the_next_batch():
    with refused("expected a deterministic model"):
        cp.EmpiricalRisk(Remembering(), CE, (torch.randn(6, 2), torch.arange(6) % 3))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def forward(self, x: Tensor, draw: Tensor | None = None) -> Tensor:
        mean, log_spread = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mean + log_spread.exp() * (torch.randn_like(mean) if draw is None else draw))


def test_variational_autoencoder():
    with refused("expected a deterministic model"):
        cp.EmpiricalRisk(Autoencoder(), lambda out, x: (out - x).square().mean(1), torch.randn(6, 3))


def test_variational_autoencoder_with_given_draws():
    model, x, draw = Autoencoder().double(), torch.randn(6, 3, dtype=DOUBLE), torch.randn(6, 2, dtype=DOUBLE)
    risk = cp.EmpiricalRisk(model, lambda out, batch: (out - batch["x"]).square().mean(1), {"x": x, "draw": draw})
    agrees(risk, model, lambda a, z: (model(a, z) - a).square().mean(), rows(x, draw))


# ---- routing


class Experts(nn.Module):
    """Two experts, chosen by the data; the third is never asked."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.gate = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.gate(x).softmax(1), (x[:, 0] > 0).long()
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            asked = chosen == i
            if asked.any():
                out = out.index_put((asked,), expert(x[asked]).tanh() * share[asked, i, None])
        return out


def test_mixture_of_experts():
    model, x, y = Experts().double(), torch.randn(6, 3, dtype=DOUBLE), torch.randint(3, (6,))
    x[0, 0], x[1, 0] = 1, -1
    risk = cp.EmpiricalRisk(model, CE, (x, y))
    agrees(risk, model, lambda a, b: functional.cross_entropy(model(a), b), rows(x, y))


# ---- graphs


class Graph:
    """Nodes (n, 2), edges (2, e) and a number to predict; or several graphs side by side."""

    def __init__(self, nodes: Tensor, edges: Tensor, target: Tensor, graph_of_node: Tensor) -> None:
        self.nodes, self.edges, self.target, self.graph_of_node = nodes, edges, target, graph_of_node


def random_graph(size: int) -> Graph:
    edges = torch.randint(size, (2, 2 * size))
    return Graph(torch.randn(size, 2, dtype=DOUBLE), edges, torch.randn(1, dtype=DOUBLE), torch.zeros(size).long())


def side_by_side(graphs: list[Graph]) -> Graph:
    starts = torch.tensor([0, *(len(g.nodes) for g in graphs)]).cumsum(0).tolist()
    return Graph(
        torch.cat([g.nodes for g in graphs]),
        torch.cat([g.edges + start for g, start in zip(graphs, starts, strict=False)], dim=1),
        torch.cat([g.target for g in graphs]),
        torch.cat([g.graph_of_node + i for i, g in enumerate(graphs)]),
    )


class MessagePassing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message, self.update, self.head = nn.Linear(4, 4), nn.Linear(6, 4), nn.Linear(4, 1)

    def forward(self, graph: Graph) -> Tensor:
        source, goal = graph.edges
        messages = self.message(torch.cat([graph.nodes[source], graph.nodes[goal]], 1)).tanh()
        received = messages.new_zeros(len(graph.nodes), 4).index_add(0, goal, messages)
        hidden = self.update(torch.cat([graph.nodes, received], 1)).tanh()
        pooled = hidden.new_zeros(len(graph.target), 4).index_add(0, graph.graph_of_node, hidden)
        return self.head(pooled)[:, 0]


def test_graph_network():
    model, graphs = MessagePassing().double(), [random_graph(size) for size in (3, 6, 4, 5)]
    risk = cp.EmpiricalRisk(model, lambda out, graph: (out - graph.target).square(), graphs, collate_fn=side_by_side)
    agrees(risk, model, lambda graph: (model(graph) - graph.target).square(), [(graph,) for graph in graphs])


class Convolved(nn.Module):
    """Of the nodes of one graph, by a sparse matrix of its edges."""

    def __init__(self, edges: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 3)
        self.register_buffer("edges", edges)

    def forward(self, nodes: Tensor) -> Tensor:
        hidden = torch.sparse.mm(self.edges, self.first(nodes)).tanh()
        return self.second(torch.sparse.mm(self.edges, hidden))


def test_nodes_of_one_graph():
    edges = torch.sparse_coo_tensor(torch.randint(7, (2, 20)), torch.rand(20), (7, 7), check_invariants=True)
    edges = edges.coalesce()
    model, nodes, labels = Convolved(edges).double(), torch.randn(7, 2, dtype=DOUBLE), torch.arange(7) % 3
    data = (torch.arange(7), labels)
    risk = cp.EmpiricalRisk(model, CE, data, forward=lambda model, batch: model(nodes)[batch[0]])
    agrees(risk, model, lambda i, label: functional.cross_entropy(model(nodes)[i], label), rows(*data))


# ---- derivatives inside


class Oscillator(nn.Module):
    """Time -> position x and residual of x'' + x = 0, by derivatives in the input."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, time: Tensor) -> Tensor:
        time = time.detach().requires_grad_()
        x = self.position(time)
        (velocity,) = torch.autograd.grad(x.sum(), time, create_graph=True)
        (acceleration,) = torch.autograd.grad(velocity.sum(), time, create_graph=True)
        return acceleration + x


def test_physics_informed_network():
    model, times = Oscillator().double(), torch.rand(6, 1, dtype=DOUBLE)
    risk = cp.EmpiricalRisk(model, lambda residual, _: residual.square().mean(1), times)
    risk.value(torch.zeros(risk.num_params))  # without derivatives in the weights, those in the input are still there
    agrees(risk, model, lambda time: model(time).square().mean(), rows(times))


def energy_and_force(model: nn.Module, batch) -> tuple[Tensor, Tensor]:
    places = batch["places"].detach().requires_grad_()
    energy = model(places)[:, 0]
    (slope,) = torch.autograd.grad(energy.sum(), places, create_graph=True)
    return energy, -slope


def test_force_field():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    batch = {name: torch.randn(5, *shape, dtype=DOUBLE) for name, shape in (("places", (3,)), ("energy", ()))}
    batch["force"] = torch.randn(5, 3, dtype=DOUBLE)

    def loss(outputs, batch):
        return (outputs[0] - batch["energy"]).square() + (outputs[1] - batch["force"]).square().mean(1)

    risk = cp.EmpiricalRisk(model, loss, batch, forward=energy_and_force)
    agrees(risk, model, lambda one: loss(energy_and_force(model, one), one), entries(batch))


class Sensitivity(nn.Module):
    """Outputs beside the Jacobian in the inputs, by torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        jacobian = torch.func.vmap(torch.func.jacrev(self.net))(x)
        return torch.cat([self.net(x), jacobian.flatten(1)], dim=1)


def test_torch_func_inside():
    model, x, y = Sensitivity().double(), torch.randn(5, 3, dtype=DOUBLE), torch.randn(5, 8, dtype=DOUBLE)
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, y))
    agrees(risk, model, lambda a, b: functional.mse_loss(model(a), b), rows(x, y))
