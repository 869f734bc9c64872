"""The callback in Hugging Face's Trainer: training to the last bit as without it, and what is logged."""

import sys

import pytest
import torch
from torch import nn

import curvprobe as cp

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


class Rows(torch.utils.data.Dataset):
    """Sequences of tokens, each its own label."""

    def __init__(self, n, seed):
        self.tokens = torch.randint(0, 32, (n, 12), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return {"input_ids": self.tokens[i], "labels": self.tokens[i]}


def trained(folder, steps=6, monitor=None, resume=None, logged=False, **options):
    """The Trainer after some steps, with dropout and gradient accumulation."""
    from curvprobe.integrations.transformers import CurvatureCallback

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=12, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.2, embd_pdrop=0.1, use_cache=False
    )
    model = transformers.GPT2LMHeadModel(config)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        logging_steps=2,
        save_steps=3,
        report_to=["tensorboard"] if logged else [],
        seed=3,
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Rows(40, 0))
    if monitor is not None:
        trainer.add_callback(CurvatureCallback(trainer, monitor))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def monitor_of(**options):
    return cp.Monitor(cp.losses.causal_lm, Rows(8, 1).tokens, Rows(6, 2).tokens, every=2, tol=1e-2, **options)


def state(trainer):
    """Weights, what the optimizer holds, and the generator, as one list of tensors."""
    held = [part for one in trainer.optimizer.state.values() for part in one.values() if isinstance(part, torch.Tensor)]
    return [*trainer.model.state_dict().values(), *held, torch.get_rng_state()]


def logged(trainer, name):
    return [(entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry]


OPTIONS = {
    "plain": {},
    "bf16": {"bf16": True},
    "checkpointing": {"activation_checkpointing": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's compiler
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_training_is_what_it_would_be_without(tmp_path, options):
    plain = trained(tmp_path / "plain", **options)
    monitor = monitor_of(negative=True)
    watched = trained(tmp_path / "watched", monitor=monitor, **options)
    assert all(torch.equal(a, b) for a, b in zip(state(plain), state(watched), strict=True))
    assert logged(plain, "loss") == logged(watched, "loss")
    values = logged(watched, "curvprobe/eigenvalue_1")
    assert [step for step, _ in values] == [2, 4, 6]
    assert [value for _, value in values] == [seen["curvprobe/eigenvalue_1"] for seen in monitor.history]
    assert watched.model.training == plain.model.training


def test_a_resumed_training_is_the_same_too(tmp_path):
    whole = trained(tmp_path / "whole", monitor=monitor_of())
    resumed = trained(tmp_path / "again", monitor=monitor_of(), resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert all(torch.equal(a, b) for a, b in zip(state(whole)[:-1], state(resumed)[:-1], strict=True))
    assert [step for step, _ in logged(resumed, "curvprobe/eigenvalue_1")][-2:] == [4, 6]


def test_the_value_is_that_of_the_model_as_it_was(tmp_path):
    monitor = monitor_of()
    trainer = trained(tmp_path, monitor=monitor)
    model = trainer.model.eval()
    risk = cp.EmpiricalRisk(model, cp.losses.causal_lm, Rows(8, 1).tokens)
    last = monitor.history[-1]
    assert last["curvprobe/loss"] == pytest.approx(risk.value(), rel=1e-6)
    assert last["curvprobe/eigenvalue_1"] == pytest.approx(
        float(cp.top_eigenspace(risk, dim=1).eigenvalues[0]), rel=2e-2
    )
    assert isinstance(model, nn.Module)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard
def test_tensorboard_has_what_the_monitor_has_seen(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    monitor = monitor_of()
    trained(tmp_path, monitor=monitor, logged=True)
    files = [path for path in tmp_path.rglob("*tfevents*") if path.stat().st_size]
    events = EventAccumulator(str(files[0].parent))
    events.Reload()
    assert [event.step for event in events.Images("curvprobe/eigenvalues")] == [6]
    for name in ("curvprobe/eigenvalue_1", "curvprobe/rms"):
        tag = next(tag for tag in events.Tags()["scalars"] if tag.endswith(name))
        written = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in written] == [seen["step"] for seen in monitor.history] == [2, 4, 6]
        assert [value for _, value in written] == pytest.approx([s[name] for s in monitor.history], rel=1e-6)


def test_a_monitor_in_the_place_of_the_trainer_is_refused():
    from curvprobe.integrations.transformers import CurvatureCallback

    with pytest.raises(TypeError, match=r"given Monitor, NoneType; expected CurvatureCallback\(trainer, monitor\)"):
        CurvatureCallback(monitor_of(), None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard
def test_a_training_ends_as_it_would_where_nothing_draws(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monitor = monitor_of()
    assert trained(tmp_path, monitor=monitor, logged=True).state.global_step == 6
    assert len(monitor.history) == 3
