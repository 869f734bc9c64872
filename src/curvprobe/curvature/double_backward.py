"""What is said where autograd has no second derivative of an operation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from curvprobe.errors import CannotProbeError

LONGEST_TEXT = 500
"""Characters of PyTorch's own message that are passed on."""

_REMEDIES: tuple[tuple[str, str], ...] = (
    ("ctc", "write the CTC recursion with differentiable operations (logsumexp over a loop)"),
    ("cudnn_rnn", "run under torch.backends.cudnn.flags(enabled=False)"),
    ("attention", "use attn_implementation='eager' or torch's scaled_dot_product_attention"),
    ("compile|aot_autograd", "pass the module that was not compiled"),
    (
        "utils.checkpoint",
        "switch activation checkpointing off (gradient_checkpointing_disable() of a Hugging Face model)",
    ),
)


@contextmanager
def double_backward_errors() -> Iterator[None]:
    """Say plainly which operation lacks a second derivative, and what to do about it."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        named = re.search(r"derivative for '?([\w:]+)", text)
        twice = re.search(
            r"once_differentiable|double backward|differentiate twice|aot_autograd|utils.checkpoint", text
        )
        if not (named or twice):
            raise
        operation = named.group(1) if named else "an operation of the model or loss"
        text = text if len(text) < LONGEST_TEXT else text[:LONGEST_TEXT] + " ..."
        fallback = "replace it by operations that have one, or leave out the parameters behind it with params="
        remedy = next((cure for pattern, cure in _REMEDIES if re.search(pattern, text)), fallback)
        raise CannotProbeError(
            f"{operation} has no second derivative, which curvature needs; {remedy}. PyTorch said: {text}"
        ) from error
