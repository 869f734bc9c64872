"""What a monitor has seen, read back from MLflow's file store and W&B's offline files, by either Trainer.

Everything stays in temporary folders; nothing is sent. Run: make acceptance, or python acceptance/loggers.py where the
packages of requirements-loggers.txt are installed
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import curvprobe as cp

NAMES = ("curvprobe/eigenvalue_1", "curvprobe/gradient_norm", "curvprobe/rms")

PATIENCE = 120
"""Seconds that a process beside is waited for, which writes W&B's file."""

Numbers = dict[tuple[str, int], float]
"""By name and step."""


def tokens(n: int, seed: int) -> Tensor:
    """Sequences of twelve tokens."""
    return torch.randint(0, 32, (n, 12), generator=torch.Generator().manual_seed(seed))


def points(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points and the sign of a product."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] * x[:, 1] > 0).long()


def by_trainer(report_to: str, folder: Path) -> cp.Monitor:
    """Six steps of a small GPT-2 in Hugging Face's Trainer."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from curvprobe.integrations.transformers import CurvatureCallback

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=12, n_embd=16, n_layer=1, n_head=2, use_cache=False)
    arguments = TrainingArguments(
        str(folder),
        max_steps=6,
        logging_steps=2,
        report_to=[report_to],
        use_cpu=True,
        disable_tqdm=True,
        run_name="one",
    )
    rows = [{"input_ids": row, "labels": row} for row in tokens(40, 0)]
    trainer = Trainer(model=GPT2LMHeadModel(config), args=arguments, train_dataset=rows)
    monitor = cp.Monitor(cp.losses.causal_lm, tokens(8, 1), tokens(6, 2), every=2)
    trainer.add_callback(CurvatureCallback(trainer, monitor))
    trainer.train()
    return monitor


def by_lightning(logger: Any, folder: Path) -> cp.Monitor:
    """Six steps of a small classifier in Lightning's Trainer."""
    import lightning

    from curvprobe.integrations.lightning import CurvatureCallback

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    monitor = cp.Monitor(cp.losses.cross_entropy, points(16, 1), points(12, 2), every=2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*points(24, 0)), batch_size=4)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        max_steps=6,
        accelerator="cpu",
        logger=logger,
        callbacks=[CurvatureCallback(monitor)],
        default_root_dir=folder,
        **options,
    )
    trainer.fit(Classifier(), loader)
    logger.finalize("success")
    return monitor


def in_mlflow(place: str) -> Numbers:
    """The numbers of the one run in a store."""
    from mlflow import MlflowClient

    client = MlflowClient(place)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len(runs) == 1
    return {
        (name, metric.step): metric.value
        for name in runs[0].data.metrics
        for metric in client.get_metric_history(runs[0].info.run_id, name)
    }


def in_wandb(folder: Path) -> Numbers:
    """The numbers of the one offline run in a folder, once its own process has written the end of it."""
    (file,) = folder.rglob("run-*.wandb")
    for _ in range(PATIENCE):
        records = list(_records(file))
        if any(record.HasField("exit") for record in records):
            break
        time.sleep(1)
    found: Numbers = {}
    for record in records:
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        step = row.get("train/global_step", row.get("trainer/global_step"))
        if step is not None:
            found |= {(name, int(step)): value for name, value in row.items() if isinstance(value, int | float)}
    return found


def _records(file: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        yield record


def mlflow_of_trainer(folder: Path) -> tuple[cp.Monitor, Numbers]:
    """Hugging Face to MLflow."""
    place = folder.as_uri() + "/runs"
    os.environ["MLFLOW_TRACKING_URI"] = place
    return by_trainer("mlflow", folder), in_mlflow(place)


def mlflow_of_lightning(folder: Path) -> tuple[cp.Monitor, Numbers]:
    """Lightning to MLflow."""
    from lightning.pytorch.loggers import MLFlowLogger

    place = folder.as_uri() + "/runs"
    return by_lightning(MLFlowLogger(tracking_uri=place), folder), in_mlflow(place)


def wandb_of_trainer(folder: Path) -> tuple[cp.Monitor, Numbers]:
    """Hugging Face to W&B."""
    import wandb

    os.environ |= {"WANDB_MODE": "offline", "WANDB_DIR": str(folder)}
    monitor = by_trainer("wandb", folder)
    wandb.finish()
    return monitor, in_wandb(folder)


def wandb_of_lightning(folder: Path) -> tuple[cp.Monitor, Numbers]:
    """Lightning to W&B."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    monitor = by_lightning(WandbLogger(save_dir=folder, offline=True), folder)
    wandb.finish()
    return monitor, in_wandb(folder)


WAYS: dict[str, Callable[[Path], tuple[cp.Monitor, Numbers]]] = {
    "MLflow, Trainer of Hugging Face": mlflow_of_trainer,
    "MLflow, Trainer of Lightning": mlflow_of_lightning,
    "W&B offline, Trainer of Hugging Face": wandb_of_trainer,
    "W&B offline, Trainer of Lightning": wandb_of_lightning,
}


def compared(monitor: cp.Monitor, written: Numbers) -> int:
    """How many of the monitor's numbers were found again, all of those that it told."""
    count = 0
    for seen in monitor.history:
        for name in NAMES:
            step = int(seen["step"])
            values = [value for (tag, at), value in written.items() if at == step and tag.endswith(name)]
            assert values, f"{name} of step {step} is not among {sorted(written)[:20]}"
            assert abs(values[0] - seen[name]) <= 1e-6 * abs(seen[name]), (name, step, values[0], seen[name])
            count += 1
    return count


def main() -> None:
    """Each way in a folder of its own."""
    warnings.simplefilter("ignore")
    os.environ |= {"MLFLOW_ALLOW_FILE_STORE": "true", "WANDB_SILENT": "true"}
    for name, way in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}: {compared(*way(Path(folder)))} numbers found again", flush=True)


if __name__ == "__main__":
    main()
