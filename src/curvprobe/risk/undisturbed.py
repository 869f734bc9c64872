"""A model is left as it was: its modules' state, the settings of torch and the random generators."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvprobe.errors import CannotProbeError
from curvprobe.risk.divided import without_hooks

_STANDARD = frozenset(vars(nn.Module()))
"""Attributes that every module has; the containers among them are torch's own."""

_LARGEST_COPY = 1 << 20
"""Numbers of a tensor in a plain attribute that is copied, so that it can be put back; a larger one must stay."""

_DEPTH = 3
"""How deep containers within containers are looked into."""

_without_autocast: set[int] = set()
"""Threads in which autocast is off whatever the model says."""

_lock = threading.Lock()


@contextmanager
def undisturbed(
    model: nn.Module,
    modes: Sequence[tuple[nn.Module, bool]],
    device: torch.device,
    tied_embeddings: Sequence[nn.Embedding] = (),
) -> Iterator[None]:
    """Evaluate in the given train/eval modes, under the math attention kernel; put everything back at the end.

    Put back: what modules keep in their attributes (a cached mask, a stored activation, the mode; also what lies in
    lists, dicts and plain tensors there), attention kernels, MHA fast path, autocast, and the random generators of
    torch, NumPy and Python. Autocast is off within the model too, and embeddings hand out the derivative, whatever they
    are set to.
    """
    found = [(module, dict(vars(module)), _kept_within(module)) for module, _ in modes]
    torch_state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    numpy_state, python_state = numpy.random.get_state(), random.getstate()  # noqa: NPY002 - a dataset may use it
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(_autocast_kept_off())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(getattr(module, "_compiled_call_impl", None) for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # taken without gradients only, and treats padding otherwise
            for module, training in modes:
                module.training = training
                without_hooks(module)
                if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                    module.scale_grad_by_freq = module.sparse = False  # both change what backward hands out
            for embedding in tied_embeddings:
                embedding.padding_idx = None  # a row that trains through another layer has a derivative here too
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            torch.set_rng_state(torch_state)
            if cuda_state is not None:
                torch.cuda.set_rng_state(cuda_state, device)
            numpy.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
            for module, attributes, _ in found:
                _restore(vars(module), attributes)
            left = [label for _, _, kept in found for put_back in kept if (label := put_back())]
        _refuse(left)  # once all else is back, and not in the place of an error on the way


def _refuse(left: list[str]) -> None:
    if left:
        raise CannotProbeError(
            f"the model changes {', '.join(left)}; make it a buffer, or take the change out of forward"
        )


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    for name in now.keys() - before.keys():
        del now[name]
    for name, value in before.items():
        if now.get(name, now) is not value:
            now[name] = value


# ---- what attributes hold within

PutBack = Callable[[], str | None]
"""Puts one container or tensor back; where that cannot be done, names it."""


def _kept_within(module: nn.Module) -> list[PutBack]:
    """What puts back the contents of a module's containers and plain tensors."""
    kept: list[PutBack] = []
    for name, value in vars(module).items():
        if name not in _STANDARD:
            _keep(f"{type(module).__name__}.{name}", value, kept, _DEPTH)
    return kept


def _keep(label: str, value: Any, kept: list[PutBack], depth: int) -> None:
    if isinstance(value, Tensor):
        _keep_tensor(label, value, kept)
    elif isinstance(value, list | deque):
        items = list(value)
        kept.append(lambda: _refill(value, items, value.clear, value.extend))
        parts: Sequence[Any] = items
    elif isinstance(value, dict):
        entries = dict(value)
        kept.append(lambda: _refill(value.items(), entries.items(), value.clear, lambda _: value.update(entries)))
        parts = list(entries.values())
    elif isinstance(value, set):
        members = set(value)
        kept.append(lambda: _refill(value, members, value.clear, value.update))
        parts = ()
    else:
        parts = value if isinstance(value, tuple) else ()
    if depth and not isinstance(value, Tensor):
        for part in parts:
            if isinstance(part, Tensor | list | deque | dict | set | tuple):
                _keep(label, part, kept, depth - 1)


def _refill(now: Any, before: Any, clear: Callable[[], None], fill: Callable[[Any], object]) -> None:
    """Make a container hold what it held, if it does not; a comparison of identities, since tensors do not compare."""
    if len(now) != len(before) or any(a is not b for a, b in zip(_flat(now), _flat(before), strict=False)):
        held = list(before)
        clear()
        fill(held)


def _flat(items: Any) -> Iterator[Any]:
    for item in items:
        if isinstance(item, tuple):
            yield from item
        else:
            yield item


def _keep_tensor(label: str, tensor: Tensor, kept: list[PutBack]) -> None:
    if tensor.is_inference() or isinstance(tensor, nn.Parameter) or tensor.is_meta:
        return
    version = tensor._version
    copy = tensor.detach().clone() if tensor.numel() <= _LARGEST_COPY else None

    def put_back() -> str | None:
        if tensor._version == version:
            return None
        if copy is None:
            return f"{label} in place, a plain tensor of {tensor.numel()} numbers"
        with torch.no_grad():
            tensor.copy_(copy)
        return None

    kept.append(put_back)


# ---- autocast


@contextmanager
def _autocast_kept_off() -> Iterator[None]:
    """Have autocast do nothing in this thread, also where a model turns it on by itself."""
    thread = threading.get_ident()
    with _lock:
        first = thread not in _without_autocast
        if first and not _without_autocast:
            _Autocast.__enter__, _Autocast.__exit__ = _enter, _exit
        _without_autocast.add(thread)
    try:
        yield
    finally:
        if first:
            with _lock:
                _without_autocast.discard(thread)
                if not _without_autocast:
                    _Autocast.__enter__, _Autocast.__exit__ = _real_enter, _real_exit


_Autocast: Any = torch.amp.autocast_mode.autocast
_real_enter, _real_exit = _Autocast.__enter__, _Autocast.__exit__
_skipped: list[int] = []
"""Contexts that were entered where autocast is off, by identity: they are left the same way."""


def _enter(self: Any) -> Any:
    if threading.get_ident() in _without_autocast:
        _skipped.append(id(self))
        return self
    return _real_enter(self)


def _exit(self: Any, *error: Any) -> Any:
    if id(self) in _skipped:
        _skipped.remove(id(self))
        return None
    return _real_exit(self, *error)
