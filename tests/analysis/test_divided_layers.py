"""Products of divided weights through layers that use them in their own ways: as a list, whole, by rows, by name."""

import copy

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

import curvprobe as cp
from tests import cases, several


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.head(self.layer(self.first(x)).mean(1))


class Padded(nn.Module):
    """An embedding with a padding row, a number that stays whole in every process, and shapes that are asked for."""

    def __init__(self):
        super().__init__()
        self.table, self.head, self.scale = (
            nn.Embedding(5, 3, padding_idx=0),
            nn.Linear(3, 2),
            nn.Parameter(torch.tensor(1.5)),
        )

    def forward(self, tokens):
        assert self.head.weight.shape == (2, 3) == self.head.weight.size()
        assert len(self.table.weight) == 5
        assert self.table.weight.ndim == self.table.weight.dim() == 2
        return self.scale * self.head(self.table(tokens).tanh().mean(1)) / self.head.weight.numel()


def normalised():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(18, 4))
    return nn.Sequential(nn.Flatten(), layer, nn.Tanh(), nn.Linear(4, 2))


def apart(group):
    """Relative distance of products from those of the whole model."""
    torch.manual_seed(0)
    x, tokens, y = torch.randn(5, 6, 3).double(), torch.randint(0, 5, (5, 6)), torch.randint(0, 2, (5,))
    found = {}
    for model, data in ((Recurrent(), x), (Attending(), x), (Padded(), tokens), (normalised(), x)):
        model = model.double().eval()
        whole = cp.EmpiricalRisk(copy.deepcopy(model), cp.losses.cross_entropy, (data, y))
        left_whole = {model.scale} if isinstance(model, Padded) else None  # a single number cannot be divided
        fully_shard(model, ignored_params=left_whole)
        risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (data, y), group=group)
        v = cases.block_of(risk.num_params, 1)
        rows = torch.cat([v[part] for part in risk.space.part])
        product, expected = risk.space.gathered(cp.hessian(risk) @ rows), cp.hessian(whole) @ v
        found[type(model).__name__] = float((product - expected).norm() / expected.norm())
    return found


def test_products_are_those_of_the_whole_model():
    for found in several.values(2, apart):
        assert len(found) == 4
        assert all(distance < 1e-10 for distance in found.values()), found
