"""Weights from a file, put into a model that is made for them."""

import pickle

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

import curvprobe as cp
from tests import cases


def net(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return net()


DATA = (torch.randn(5, 3), torch.randint(2, (5,)))


def loaded(path, model=None, **rest):
    return cp.Task.from_checkpoint(path, model or net(), cp.losses.cross_entropy, DATA, **rest)


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPED = {
    "plain": lambda state: state,
    "lightning": lambda state: {"state_dict": prefixed(state, "model."), "epoch": 3, "global_step": 10},
    "training loop": lambda state: {"step": torch.tensor(5), "model_state_dict": state, "optimizer": {"lr": 0.1}},
    "parallel": lambda state: prefixed(state, "module."),
    "parallel and compiled": lambda state: {"model": prefixed(state, "module._orig_mod.")},
    "beside a metric": lambda state: {"state_dict": {**prefixed(state, "net."), "metric.total": torch.ones(1)}},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_weights_are_found_where_training_loops_leave_them(trained, tmp_path, wrap):
    torch.save(wrap(trained.state_dict()), tmp_path / "a.pt")
    task = loaded(tmp_path / "a.pt")
    assert not task.model.training
    assert task.description == "Sequential with the weights of a.pt"
    for name, tensor in trained.state_dict().items():
        assert torch.equal(task.model.state_dict()[name], tensor)
    assert task.risk().num_params == sum(p.numel() for p in trained.parameters())


def test_safetensors_of_a_folder_come_first(trained, tmp_path):
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    torch.save(net().state_dict(), tmp_path / "last.pt")
    task = loaded(tmp_path, description="mine", candidates=DATA)
    assert torch.equal(task.model[0].weight, trained[0].weight)
    assert task.description == "mine"
    assert task.candidates is DATA


def test_tied_weights_that_are_saved_once(tmp_path):
    model = cases.Attention(tied=True)
    save_model(model, tmp_path / "a.safetensors")
    other = cases.Attention(tied=True)
    cp.Task.from_checkpoint(tmp_path / "a.safetensors", other, cp.losses.causal_lm, torch.ones(2, 3).long())
    assert other.head.weight is other.embed.weight
    assert torch.equal(other.embed.weight, model.embed.weight)


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("the file was run",))


def test_what_is_not_tensors_is_never_run(tmp_path):
    torch.save({"state_dict": Harmful()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Harmful()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match=r"no state dictionary could be read.*only tensors are read, no objects"):
            loaded(tmp_path / name)


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


WRONG = {
    "missing": (lambda s: without(s, "2.bias"), r"lacks 2\.bias; expected the weights of a Sequential"),
    "unknown": (lambda s: {**s, "3.bias": torch.ones(1)}, r"has unknown 3\.bias"),
    "shape": (lambda _: net(5).state_dict(), r"has other shapes: 0\.bias \(5,\) for \(4,\), .* \(7 in all\)"),
    "nothing": (lambda _: {"epoch": 3, "lr": 0.1}, "holds epoch, lr; expected a state dictionary, there or under"),
    "another": (lambda s: prefixed(s, "left."), r"lacks 0\.bias"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_other_weights_than_the_models_are_refused(trained, tmp_path, change, message):
    torch.save(change(trained.state_dict()), tmp_path / "a.pt")
    model = net()
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path / "a.pt", model)
    assert torch.equal(model[0].weight, before)


def test_no_such_file(tmp_path):
    for path in (tmp_path, tmp_path / "a.pt"):
        with pytest.raises(ValueError, match="does not exist"):
            loaded(path)
