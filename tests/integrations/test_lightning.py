"""The callback in Lightning's Trainer: training to the last bit as without it, and what its loggers get."""

import csv
import sys

import pytest
import torch
from torch import nn

import curvprobe as cp

lightning = pytest.importorskip("lightning.pytorch")
pytestmark = [pytest.mark.filterwarnings("ignore")]  # Lightning's own


def data(n, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=draw), torch.randint(0, 3, (n,), generator=draw)


class Classifier(lightning.LightningModule):
    """Dropout and batch normalisation."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def trained(folder, monitor=None, resume=None, compiled=False, **options):
    """The Trainer and its model after eight steps."""
    from curvprobe.integrations.lightning import CurvatureCallback

    lightning.seed_everything(0)
    model = Classifier()
    if compiled:
        model.net.compile(backend="aot_eager")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data(64, 0)), batch_size=4, shuffle=True)
    callbacks = [] if monitor is None else [CurvatureCallback(monitor)]
    callbacks.append(lightning.callbacks.ModelCheckpoint(folder / "kept", every_n_train_steps=4, save_top_k=-1))
    trainer = lightning.Trainer(
        max_steps=8,
        accelerator="cpu",
        accumulate_grad_batches=2,
        callbacks=callbacks,
        logger=[lightning.loggers.CSVLogger(folder), lightning.loggers.TensorBoardLogger(folder)],
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, loader, ckpt_path=resume)
    for logger in trainer.loggers:
        logger.finalize("success")
    return trainer, model


def monitor_of():
    return cp.Monitor(cp.losses.cross_entropy, data(16, 1), data(12, 2), every=2)


def state(trainer, model):
    held = trainer.optimizers[0].state_dict()["state"]
    parts = [part for one in held.values() for part in one.values() if isinstance(part, torch.Tensor)]
    return [*model.state_dict().values(), *parts, torch.get_rng_state()]


OPTIONS = {"plain": {}, "bf16": {"precision": "bf16-mixed"}, "compiled": {"compiled": True}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_training_is_what_it_would_be_without(tmp_path, options):
    plain = state(*trained(tmp_path / "plain", **options))
    watched = state(*trained(tmp_path / "watched", monitor_of(), **options))
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_loggers_get_the_monitors_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = monitor_of()
    trainer, _ = trained(tmp_path, monitor)
    assert [seen["step"] for seen in monitor.history] == [2.0, 4.0, 6.0, 8.0]
    events = EventAccumulator(trainer.loggers[1].log_dir)
    events.Reload()
    assert [event.step for event in events.Images("curvprobe/eigenvalues")] == [8]
    with open(f"{trainer.loggers[0].log_dir}/metrics.csv") as file:
        rows = {row["step"]: row for row in csv.DictReader(file) if row.get("curvprobe/rms")}
    for name in ("curvprobe/eigenvalue_1", "curvprobe/rms", "curvprobe/loss"):
        written = [(event.step, event.value) for event in events.Scalars(name)]
        told = [(int(seen["step"]), seen[name]) for seen in monitor.history]
        assert [step for step, _ in written] == [step for step, _ in told]
        assert [value for _, value in written] == pytest.approx([value for _, value in told], rel=1e-6)
        assert [float(rows[str(step)][name]) for step, _ in told] == pytest.approx([v for _, v in told], rel=1e-6)


def test_a_resumed_training_is_the_same_too(tmp_path):
    whole = trained(tmp_path / "whole", monitor_of())
    (kept,) = (tmp_path / "whole" / "kept").glob("*step=4.ckpt")
    resumed = trained(tmp_path / "again", monitor_of(), resume=str(kept))
    assert resumed[0].global_step == 8
    plain = trained(tmp_path / "plain", resume=str(kept))
    assert all(torch.equal(a, b) for a, b in zip(state(*plain), state(*resumed), strict=True))
    assert whole[0].global_step == 8


def test_what_is_no_monitor_is_refused():
    from curvprobe.integrations.lightning import CurvatureCallback

    with pytest.raises(TypeError, match=r"monitor is a str; expected CurvatureCallback\(monitor\)"):
        CurvatureCallback("monitor")


@pytest.mark.parametrize("how", ["diverged", "nothing draws"])
def test_a_training_ends_as_it_would_where_there_is_no_figure(tmp_path, monkeypatch, how):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if how == "diverged":
        step = Classifier.training_step
        monkeypatch.setattr(Classifier, "training_step", lambda *given: step(*given) * float("nan"))
    else:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monitor = monitor_of()
    trainer, _ = trained(tmp_path, monitor)
    assert trainer.global_step == 8
    assert len(monitor.history) == 4
    events = EventAccumulator(trainer.loggers[1].log_dir)
    events.Reload()
    assert events.Tags()["images"] == []
