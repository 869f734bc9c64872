"""How a model is called, and what it must be."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm

from curvprobe.errors import CannotProbeError, CannotProbeTypeError

_FOR_THE_LOSS = frozenset({"labels", "targets", "target", "label", "weight", "weights"})
"""Entries of a batch that a model which takes any keyword is not given."""

Forward = Callable[[nn.Module, Any], Any]
"""``forward(model, batch)``: a call of one's own, which returns the model's outputs."""


class Scope(nn.Module):
    """Runs a function of a module while its parameters and buffers are others; so everything that reaches them through
    the module sees these, a loss with a term over ``model.parameters()`` too."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        # Every place that holds a tensor, once: left to find by itself what is tied, torch's functional_call leaves a
        # module that a model uses twice changed.
        first: dict[int, str] = {}
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            first.setdefault(id(tensor), name)
        self._places = {
            f"{prefix}.{name}" if prefix else name: first[id(tensor)]
            for prefix, part in module.named_modules()
            for name, tensor in [
                *part.named_parameters(recurse=False, remove_duplicate=False),
                *part.named_buffers(recurse=False, remove_duplicate=False),
            ]
        }

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        """What ``function(module)`` returns."""
        return function(self.module)

    def run(self, state: Mapping[str, Tensor], function: Callable[[nn.Module], Any]) -> Any:
        """What ``function(module)`` returns with these parameters and buffers, by name."""
        swapped = {f"module.{place}": state[name] for place, name in self._places.items() if name in state}
        return functional_call(self, swapped, (function,), tie_weights=False)


def call(model: nn.Module, batch: Any) -> Any:
    """What the model returns for a batch; see EmpiricalRisk for the conventions."""
    accepted = accepted_arguments(model)
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    defaults = {"use_cache": False} if "use_cache" in (accepted or ()) else {}
    if not isinstance(inputs, Mapping):
        return model(inputs, **defaults)
    named = {key: inputs[key] for key in passed_entries(model, inputs)}
    if not named:
        raise CannotProbeError(
            f"the batch has keys {sorted(inputs)}, none of which the model's forward accepts; "
            f"expected some of {sorted(accepted or ())}, or forward=: a function forward(model, batch)"
        )
    return model(**defaults, **named)


def passed_entries(model: nn.Module, inputs: Mapping[str, Any]) -> list[str]:
    """The entries of a mapping that the model is given: those that its forward asks for.

    Where it takes any keyword, all but those for the loss.
    """
    accepted = accepted_arguments(model)
    if accepted is None:
        return [key for key in inputs if key not in _FOR_THE_LOSS]
    # A decoder or encoder of Hugging Face would only make a loss of its own from labels, on all logits once more; an
    # encoder-decoder makes its decoder's inputs from them.
    config = getattr(model, "config", None)
    spared = {"labels"} if getattr(config, "is_encoder_decoder", None) is False else set()
    return [key for key in inputs if key in accepted - spared]


def accepted_arguments(model: nn.Module) -> frozenset[str] | None:
    """Names that the model's forward accepts; None when it takes any keyword."""
    forward = model.forward
    return _accepted_by(getattr(forward, "__func__", forward), hasattr(forward, "__func__"))


@functools.lru_cache(maxsize=256)
def _accepted_by(function: Callable[..., Any], bound: bool) -> frozenset[str] | None:
    """The same of a function, whose first argument is the module itself if it is bound to one."""
    parameters = list(inspect.signature(function).parameters.values())[int(bound) :]
    names = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
    return None if takes_any and "use_cache" not in names else names


def check_mode(model: nn.Module) -> None:
    """Refuse modules that, in their present mode, draw random numbers or mix the examples of a batch."""
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise CannotProbeTypeError(
                f"{label} is a TorchScript module, whose parameters cannot be exchanged; pass the Python module that "
                "it was made from"
            )
        if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise CannotProbeError(
                f"{label} is lazy and has not met any data, so its parameters have no shape yet; run the model on a "
                "dummy batch first"
            )
        if module.training and _moves_its_vectors(module):
            raise CannotProbeError(
                f"{label} has spectral norm in train mode, whose vectors move in every pass, so that its gradient is "
                "that of no function; call model.eval()"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is None:
                raise CannotProbeError(
                    f"{label} keeps no running statistics, so a loss depends on the rest of its batch; "
                    "expected batch-norm with track_running_stats=True in eval mode"
                )
            if module.training:
                raise CannotProbeError(
                    f"{label} is in train mode, so a loss depends on the rest of its batch; call model.eval()"
                )
        elif module.training and _is_noisy(module):
            raise CannotProbeError(f"{label} is in train mode, so the loss is random; call model.eval()")


def check_gradients(model: nn.Module, probed: Sequence[str]) -> None:
    """Refuse probed parameters to which a module hands out a gradient that is not the derivative."""
    tensors = {id(parameter) for name, parameter in model.named_parameters() if name in set(probed)}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag) or id(module.weight) not in tensors:
            continue
        if module.max_norm is not None:
            raise CannotProbeError(
                f"{name or 'the model'} ({type(module).__name__}) has max_norm={module.max_norm:g}: its forward alters "
                "its weights, and its gradient does not know; set its .max_norm = None, or leave it out by params="
            )


def _moves_its_vectors(module: nn.Module) -> bool:
    """Whether a module is spectral norm, or is under the older kind."""
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, parametrizations._SpectralNorm) or any(isinstance(h, SpectralNorm) for h in hooks)


def _is_noisy(module: nn.Module) -> bool:
    """Whether a module draws random numbers in train mode."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.RReLU) or (
        isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside wrappers of torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model
