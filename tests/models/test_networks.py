"""Networks of all kinds, and ways in which they are called."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

import curvprobe as cp
from tests.models.hand import agrees, refused

CE = cp.losses.cross_entropy
DOUBLE = torch.float64


def rows(*tensors: Tensor):
    """One example at a time, each as a batch of one."""
    return zip(*(tensor.split(1) for tensor in tensors), strict=True)


def one_by_one(batch: dict[str, Tensor]):
    """The same of a batch by name."""
    return [({name: part[i : i + 1] for name, part in batch.items()},) for i in range(len(next(iter(batch.values()))))]


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


def trained_on_images(model: nn.Module, steps: int = 12) -> tuple[Tensor, Tensor]:
    """A few images of the kind that it has been trained on: a pattern for each class, and noise."""
    patterns = torch.randn(10, 3, 32, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        y = torch.randint(10, (16,))
        optimizer.zero_grad()
        functional.cross_entropy(model(patterns[y] + torch.randn(16, 3, 32, 32)), y).backward()
        optimizer.step()
    return (patterns + torch.randn(10, 3, 32, 32))[:3].double(), torch.arange(3)


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
    alone = zip(x, y, lengths.tolist(), strict=True)

    def loss(a: Tensor, b: Tensor, n: int) -> Tensor:
        return functional.cross_entropy(model(a[None, :n], torch.tensor([n])), b[None])

    agrees(risk, model, loss, alone)


def test_time_first_by_mistake():
    model = Recurrent(nn.LSTM(2, 4)).double()
    with refused("take out layers that mix examples"):
        cp.EmpiricalRisk(model, CE, (torch.randn(5, 6, 2, dtype=DOUBLE), torch.randint(3, (5,))))


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
    agrees(risk, model, lambda graph: (model(graph) - graph.target).square(), zip(graphs, strict=True))


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
    agrees(risk, model, lambda one: loss(energy_and_force(model, one), one), one_by_one(batch))


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


# ---- called another way


class Detector(nn.Module):
    """Given images and targets it returns a dict of losses, each a mean over its images, as torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.kind, self.box = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 4)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        features = self.backbone(torch.stack(images)).tanh()
        kinds, boxes = (torch.stack([target[key] for target in targets]) for key in ("label", "box"))
        return {
            "kind": functional.cross_entropy(self.kind(features), kinds),
            "box": functional.smooth_l1_loss(self.box(features), boxes),
        }


def losses_of_each(model: nn.Module, batch) -> Tensor:
    each = zip(batch["image"], batch["label"], batch["box"], strict=True)
    losses = [model([image], [{"label": label, "box": box}]) for image, label, box in each]
    return torch.stack([sum(parts.values()) for parts in losses])


def test_detector():
    model = Detector().double()
    data = {"image": torch.randn(5, 6, dtype=DOUBLE), "label": torch.randint(3, (5,))}
    data["box"] = 3 * torch.randn(5, 4, dtype=DOUBLE)
    risk = cp.EmpiricalRisk(model, lambda losses, batch: losses, data, forward=losses_of_each)
    targets = [{"label": data["label"][i], "box": data["box"][i]} for i in range(5)]

    def loss(image: Tensor, target: dict[str, Tensor]) -> Tensor:
        losses = model([image], [target])
        return losses["kind"] + losses["box"]

    agrees(risk, model, loss, zip(data["image"], targets, strict=True))


class TakesTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.layer(batch["x"] * batch["scale"][:, None]).tanh()


def test_model_of_the_whole_batch():
    model = TakesTheBatch().double()
    data = {"x": torch.randn(5, 3, dtype=DOUBLE), "scale": torch.rand(5, dtype=DOUBLE), "labels": torch.arange(5) % 2}
    risk = cp.EmpiricalRisk(model, CE, data, forward=lambda model, batch: model(batch))
    agrees(risk, model, lambda one: functional.cross_entropy(model(one), one["labels"]), one_by_one(data))


def test_model_of_the_whole_batch_by_convention():
    data = {"x": torch.randn(5, 3), "scale": torch.rand(5), "labels": torch.arange(5) % 2}
    with refused("forward=: a function forward(model, batch)"):
        cp.EmpiricalRisk(TakesTheBatch(), CE, data)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, time: Tensor) -> dict[str, Tensor]:
        return {"mean": self.layer(torch.cat([x, time], 1)), "spread": self.layer(x.repeat(1, 2)[:, :4])}


def likelihood(outputs, batch):
    spread = outputs["spread"]
    return (((batch["targets"] - outputs["mean"]) / spread.exp()).square() / 2 + spread).mean(1)


def test_several_inputs_and_outputs():
    model = TwoInputs().double()
    x, time, y = (torch.randn(5, width, dtype=DOUBLE) for width in (3, 1, 2))
    risk = cp.EmpiricalRisk(model, likelihood, {"x": x, "time": time, "targets": y})
    agrees(risk, model, lambda a, t, b: likelihood(model(a, t), {"targets": b}), rows(x, time, y))


def test_several_inputs_in_a_tuple():
    data = tuple(torch.randn(5, width) for width in (3, 1, 2))
    with refused("give the data as a dict, whose entries go to forward by name"):
        cp.EmpiricalRisk(TwoInputs(), cp.losses.mse, data)
