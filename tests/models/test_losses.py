"""What a loss may depend on, and what it returns."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import curvprobe as cp
from tests.models.hand import agrees, first_product, refused, rows

CE = cp.losses.cross_entropy
DOUBLE = torch.float64


def classifier() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def vectors(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, dtype=DOUBLE), torch.randint(3, (count,))


def risk_of(loss, data: tuple[Tensor, ...] | None = None) -> cp.EmpiricalRisk:
    return cp.EmpiricalRisk(classifier(), loss, vectors() if data is None else data)


# ---- terms beside the data's


def test_weight_decay():
    model, (x, y) = classifier(), vectors()

    def decay() -> Tensor:
        return 0.1 * sum(p.square().sum() for p in model.parameters())

    risk = cp.EmpiricalRisk(model, lambda out, batch: CE(out, batch) + decay(), (x, y))
    agrees(risk, model, lambda a, b: functional.cross_entropy(model(a), b) + decay(), rows(x, y))


def test_weight_decay_of_tensors_held_elsewhere():
    model = classifier()
    held = list(model.parameters())
    with refused("reach them through the model"):
        cp.EmpiricalRisk(model, lambda out, batch: CE(out, batch) + held[0].square().sum(), vectors())


class Variational(nn.Module):
    """A Gaussian for each weight; the draw is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_spread = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3, 3) - 1)
        self.register_buffer("draw", torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.mean + self.log_spread.exp() * self.draw)

    def divergence(self) -> Tensor:
        """From the standard Gaussian."""
        return (self.mean.square() + (2 * self.log_spread).exp() - 1 - 2 * self.log_spread).sum() / 2


def test_variational_term():
    model, (x, y) = Variational().double(), vectors()
    risk = cp.EmpiricalRisk(model, lambda out, batch: CE(out, batch) + model.divergence() / 6, (x, y))
    agrees(risk, model, lambda a, b: functional.cross_entropy(model(a), b) + model.divergence() / 6, rows(x, y))


class Prototypes(nn.Module):
    """A loss with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(3, 3, dtype=DOUBLE))

    def forward(self, out: Tensor, batch) -> Tensor:
        return functional.cross_entropy(out @ self.prototypes, batch[1], reduction="none")


def test_loss_with_parameters_of_its_own():
    model, loss, (x, y) = classifier(), Prototypes(), vectors()
    risk = cp.EmpiricalRisk(model, loss, (x, y))
    assert risk.num_params == sum(p.numel() for p in model.parameters())
    agrees(risk, model, lambda a, b: loss(model(a), (a, b)), rows(x, y))


def test_noise_in_the_loss():
    with refused("expected a deterministic model"):
        risk_of(lambda out, batch: (out - torch.randn_like(out)).square().mean(1))


# ---- losses of a whole batch


def test_scalar_loss():
    with refused("use reduction='none'"):
        risk_of(lambda out, batch: functional.cross_entropy(out, batch[1]))


def segmentation(loss) -> tuple[cp.EmpiricalRisk, nn.Module, tuple[Tensor, Tensor]]:
    """Of tiny images, pixel by pixel."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 3, 1)).double()
    data = torch.randn(4, 1, 5, 5, dtype=DOUBLE), torch.randint(3, (4, 5, 5))
    return cp.EmpiricalRisk(model, loss, data), model, data


def test_segmentation_by_a_ready_loss():
    with refused("average over an example's own terms"):
        segmentation(CE)


def test_segmentation():
    risk, model, data = segmentation(lambda out, batch: CE(out, batch).mean((1, 2)))
    agrees(risk, model, lambda a, b: functional.cross_entropy(model(a), b), rows(*data))


def test_loss_module_of_torch():
    with refused("use curvprobe.losses"):
        risk_of(nn.CrossEntropyLoss())


def test_loss_normalised_over_the_batch():
    with refused("Reduce over the example's own terms only"):
        risk_of(lambda out, batch: CE(out, batch) / CE(out, batch).sum())


CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 2.0], dtype=DOUBLE)


def test_class_weights_normalised_over_the_batch():
    def loss(out: Tensor, batch) -> Tensor:
        weight = CLASS_WEIGHTS[batch[1]]
        return CE(out, batch) * weight / weight.mean()

    data = (torch.randn(60, 3, dtype=DOUBLE), torch.arange(60) // 20)  # sorted: neighbours are alike
    with refused("Reduce over the example's own terms only"):
        risk_of(loss, data)


def test_class_weights():
    model, (x, y) = classifier(), vectors()

    def loss(out: Tensor, batch) -> tuple[Tensor, Tensor]:
        weight = CLASS_WEIGHTS[batch[1]]
        return CE(out, batch) * weight, weight

    risk = cp.EmpiricalRisk(model, loss, (x, y))
    exact = functional.cross_entropy(model(x), y, weight=CLASS_WEIGHTS)
    assert abs(risk.value() - exact.item()) < 1e-12
    weight = CLASS_WEIGHTS.long()
    agrees(risk, model, lambda a, b: (functional.cross_entropy(model(a), b) * weight[b], weight[b]), rows(x, y))


def test_contrastive_loss():
    def loss(out: Tensor, batch) -> Tensor:
        similarity = out @ functional.normalize(batch[1], dim=1).T
        return functional.cross_entropy(similarity, torch.arange(len(out)), reduction="none")

    with refused("do not depend on the rest of the batch"):
        risk_of(loss, (torch.randn(8, 3, dtype=DOUBLE), torch.randn(8, 3, dtype=DOUBLE)))


def test_contrastive_loss_with_fixed_negatives():
    model, (x, other) = classifier(), (torch.randn(6, 3, dtype=DOUBLE) for _ in range(2))
    others = torch.randn(6, 4, 3, dtype=DOUBLE)

    def loss(out: Tensor, batch) -> Tensor:
        compared = torch.cat([batch[1][:, None], batch[2]], 1)
        similarity = (compared @ out[:, :, None])[:, :, 0]
        return functional.cross_entropy(similarity, torch.zeros(len(out)).long(), reduction="none")

    risk = cp.EmpiricalRisk(model, loss, (x, other, others))
    agrees(risk, model, lambda a, b, c: loss(model(a), (a, b, c)), rows(x, other, others))


# ---- what is returned


def test_loss_with_a_dict_of_logs():
    with refused("return the losses alone, or (loss_sum, weight)"):
        risk_of(lambda out, batch: (CE(out, batch), {"accuracy": 0.5}))


def test_weight_that_depends_on_the_model():
    def loss(out: Tensor, batch) -> tuple[Tensor, Tensor]:
        confidence = out.softmax(1).amax(1)
        return CE(out, batch) * confidence, confidence

    with refused("multiply the losses by such a factor and return them alone"):
        risk_of(loss)


def test_detached_loss():
    with refused("neither the model nor the loss may detach"):
        risk_of(lambda out, batch: CE(out.detach(), batch))


def test_ctc_loss():
    model, x = nn.Linear(3, 12).double(), torch.randn(4, 3, dtype=DOUBLE)
    lengths = torch.full((1,), 4)

    def loss(out: Tensor, batch) -> Tensor:
        logs = out.view(len(out), 4, 3).log_softmax(-1).transpose(0, 1)
        steps = lengths.expand(len(out))
        return functional.ctc_loss(logs, 1 + batch[1][:, None] % 2, steps, steps // 4, reduction="none")

    with refused("logsumexp over a loop"):
        first_product(cp.EmpiricalRisk(model, loss, (x, torch.arange(4))))


# ---- labels


def test_ignored_label():
    x, y = vectors()
    with refused("an ignored label, -100, must be left out"):
        risk_of(CE, (x, y.index_fill(0, torch.tensor([4]), -100)))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).cumsum(1).tanh())


def tagged(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tokens and labels of four texts; beyond a text's end the labels do not count."""
    ended = torch.arange(5) >= torch.tensor([5, 1, 3, 4])[:, None]
    return torch.randint(7, (4, 5)).to(dtype), torch.randint(7, (4, 5)).masked_fill(ended, -100).to(dtype)


def check_tagger(dtype: torch.dtype) -> None:
    model, (x, y) = Tagger().double(), tagged(dtype)

    def loss(tokens: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        kept = labels != -100
        return functional.cross_entropy(model(tokens)[kept], labels[kept].long(), reduction="sum"), int(kept.sum())

    agrees(cp.EmpiricalRisk(model, cp.losses.masked_lm, (x, y)), model, loss, rows(x, y))


def test_token_losses_with_padding():
    check_tagger(torch.long)


def test_text_without_labels():
    x, y = tagged(torch.long)
    y[2] = -100
    with refused("leave out examples without any"):
        cp.EmpiricalRisk(Tagger(), cp.losses.masked_lm, (x, y))


def test_int32_labels():
    check_tagger(torch.int32)
