"""Models that are called in all ways."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import curvprobe as cp
from tests.models.hand import agrees, entries, refused, rows

CE = cp.losses.cross_entropy
DOUBLE = torch.float64


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

    agrees(risk, model, loss, list(zip(data["image"], targets, strict=True)))


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
    agrees(risk, model, lambda one: functional.cross_entropy(model(one), one["labels"]), entries(data))


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
