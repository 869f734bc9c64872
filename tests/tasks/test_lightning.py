"""A module of Lightning with its datamodule as a task."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import curvprobe as cp

lightning = pytest.importorskip("lightning.pytorch")
torchmetrics = pytest.importorskip("torchmetrics")
pytestmark = [pytest.mark.filterwarnings("ignore")]  # Lightning's own


def examples(n, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=draw), torch.randint(2, (n,), generator=draw)


class Classifier(lightning.LightningModule):
    """Logs, counts a metric, and returns its loss in a mapping."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 2))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        logits = self(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1], label_smoothing=0.1)
        self.accuracy(logits, batch[1])
        self.log("accuracy", self.accuracy)
        self.log_dict({"loss": loss, "at": batch_idx})
        return {"loss": loss, "logits": logits}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(lightning.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.calls = []

    def prepare_data(self):
        self.calls.append("prepare")

    def setup(self, stage):
        self.calls.append(stage)
        self.training, self.validation = TensorDataset(*examples(9, 0)), TensorDataset(*examples(4, 1))

    def train_dataloader(self):
        return DataLoader(self.training, batch_size=4, shuffle=True)

    def val_dataloader(self):
        return [DataLoader(self.validation, batch_size=4)]


def expected(module, x, y):
    loss = nn.functional.cross_entropy(module.net(x), y, label_smoothing=0.1, reduction="none")
    return loss.detach().double()


def test_the_training_step_is_the_loss():
    torch.manual_seed(0)
    module, data = Classifier(), Data()
    task = cp.Task.from_lightning(module, data)
    risk = task.risk()
    assert data.calls == ["prepare", "fit"]
    assert torch.allclose(risk.losses(), expected(module, *examples(9, 0)), rtol=1e-5)
    assert torch.allclose(risk.on(task.candidates).losses(), expected(module, *examples(4, 1)), rtol=1e-5)
    x, y = examples(9, 0)
    loss = nn.functional.cross_entropy(module.net(x), y, label_smoothing=0.1)
    found = torch.autograd.grad(loss, list(module.net.parameters()))
    assert torch.allclose(risk.gradient(), torch.cat([g.flatten() for g in found]), rtol=1e-4, atol=1e-6)
    assert task.description == (
        "Classifier of Lightning, by its own training step, an example at a time; 9 training examples, 4 of validation "
        "as candidates"
    )
    assert not {"log", "log_dict"} & set(vars(module))


def test_the_same_by_a_loss_that_is_given_and_after_a_fit(tmp_path):
    torch.manual_seed(0)
    module, data = Classifier(), Data()
    options = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
    lightning.Trainer(**options, **quiet).fit(module, DataLoader(_training(), batch_size=4))

    def smoothed(outputs, batch):
        return cp.losses.cross_entropy(outputs, batch, label_smoothing=0.1)

    own = cp.Task.from_lightning(module, data, candidates=False)
    given = cp.Task.from_lightning(module, data, loss=smoothed, params=["net.4.*"])
    assert own.candidates is None
    assert torch.allclose(own.risk().losses(), given.risk().losses(), rtol=1e-5)
    assert given.risk().num_params == 12


def _training():
    return TensorDataset(*examples(8, 0))


def test_a_whole_analysis():
    torch.manual_seed(0)
    task = cp.Task.from_lightning(Classifier(), Data())
    risk = task.risk()
    analysis = cp.analyze(risk, risk.on(task.candidates), dim=2, num_probes=8, stages="quick")
    assert str(analysis.answer).startswith("42 parameters (float32), k = 9, 4 candidates")


class Bare(Classifier):
    def training_step(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Unnamed(Classifier):
    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Open(Classifier):
    def training_step(self, *args):
        batch, position = args
        return nn.functional.cross_entropy(self(batch[0]), batch[1]) + position


@pytest.mark.parametrize("kind", [Bare, Unnamed, Open])
def test_a_step_is_called_as_lightning_calls_it(kind):
    module = kind()
    risk = cp.Task.from_lightning(module, Data()).risk()
    x, y = examples(9, 0)
    assert torch.allclose(risk.losses(), cp.losses.cross_entropy(module(x), (x, y)).detach().double(), rtol=1e-5)


def test_a_datamodule_of_data_sets():
    training, validation = TensorDataset(*examples(9, 0)), TensorDataset(*examples(4, 1))
    data = lightning.LightningDataModule.from_datasets(training, validation, batch_size=4)
    task = cp.Task.from_lightning(Classifier(), data)
    assert (len(task.risk()), len(task.candidates)) == (9, 4)


class ByHand(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Silent(Classifier):
    def training_step(self, batch, batch_idx):
        return None


class Asking(Classifier):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1]) * (self.trainer.current_epoch + 1)


class Stream(Data):
    def train_dataloader(self):
        class Endless(IterableDataset):
            def __iter__(self):
                return iter(())

        return DataLoader(Endless())


class Several(Data):
    def train_dataloader(self):
        return [DataLoader(self.training), DataLoader(self.training)]


class OtherCollate(Data):
    def val_dataloader(self):
        return DataLoader(self.validation, collate_fn=lambda items: items)


REFUSED = {
    "by hand": (ByHand, Data, "optimizes by hand.*give one: loss="),
    "asking": (Asking, Data, "asks for the Trainer: give loss="),
    "no loss": (Silent, Data, "training_step returned NoneType; expected a loss"),
    "no step": (lambda: nn.Linear(3, 2), Data, "a Linear without training_step; expected a LightningModule, or loss="),
    "no data": (Classifier, lightning.LightningDataModule, "without train_dataloader; expected a LightningDataModule"),
    "stream": (Classifier, Stream, "a stream of examples; expected a data set"),
    "several": (Classifier, Several, "returned a list; expected one torch DataLoader"),
    "collate": (Classifier, OtherCollate, "in ways of their own; pass candidates=False"),
}


@pytest.mark.parametrize(("module", "data", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(module, data, message):
    with pytest.raises((ValueError, TypeError), match=message):
        cp.Task.from_lightning(module(), data()).risk()
