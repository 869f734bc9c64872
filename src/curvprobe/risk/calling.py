"""How a model is called, what it must be, and how it is left as it was."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvprobe.errors import CannotProbeError

_FOR_THE_LOSS = frozenset({"labels", "targets", "target", "label", "weight", "weights"})


def call(model: nn.Module, state: Mapping[str, Tensor], batch: Any) -> Any:
    """What the model returns for a batch with these parameters and buffers; see EmpiricalRisk for the conventions."""
    accepted = _accepted_arguments(model)
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    defaults = {"use_cache": False} if "use_cache" in (accepted or ()) else {}
    if not isinstance(inputs, Mapping):
        return functional_call(model, dict(state), (inputs,), defaults)
    named = {k: v for k, v in inputs.items() if k not in _FOR_THE_LOSS and (accepted is None or k in accepted)}
    if not named:
        raise CannotProbeError(
            f"the batch has keys {sorted(inputs)}, none of which the model's forward accepts; "
            f"expected some of {sorted(accepted or ())}"
        )
    return functional_call(model, dict(state), (), {**defaults, **named})


def _accepted_arguments(model: nn.Module) -> frozenset[str] | None:
    """Names that the model's forward accepts; None when it takes any keyword."""
    parameters = inspect.signature(model.forward).parameters.values()
    names = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
    return None if takes_any and "use_cache" not in names else names


@contextmanager
def undisturbed(model: nn.Module, modes: Sequence[tuple[nn.Module, bool]], device: torch.device) -> Iterator[None]:
    """Evaluate in the given train/eval modes, under the math attention kernel; put everything back at the end.

    Put back: what modules keep in their attributes (a cached mask, a stored activation, the mode), attention kernels,
    MHA fast path, autocast, and the random generators of torch, NumPy and Python.
    """
    found = [(module, dict(vars(module))) for module, _ in modes]
    torch_state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    numpy_state, python_state = numpy.random.get_state(), random.getstate()  # noqa: NPY002 - a dataset may use it
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(getattr(module, "_compiled_call_impl", None) for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # taken without gradients only, and treats padding otherwise
            for module, training in modes:
                module.training = training
            yield
        finally:
            for module, attributes in found:
                _restore(vars(module), attributes)
            torch.backends.mha.set_fastpath_enabled(fast_path)
            torch.set_rng_state(torch_state)
            if cuda_state is not None:
                torch.cuda.set_rng_state(cuda_state, device)
            numpy.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    for name in now.keys() - before.keys():
        del now[name]
    for name, value in before.items():
        if now.get(name, now) is not value:
            now[name] = value


def check_mode(model: nn.Module) -> None:
    """Refuse layers that, in their present mode, draw random numbers or mix the examples of a batch."""
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise CannotProbeError(
                f"{label} has sparse gradients, which have no second derivative; set its .sparse = False"
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
        elif module.training:
            noisy = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
            noisy = noisy or (isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0)
            if noisy:
                raise CannotProbeError(f"{label} is in train mode, so the loss is random; call model.eval()")


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside wrappers of torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model
