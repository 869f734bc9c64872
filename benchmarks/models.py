"""The trained models that the benchmarks measure on; weights are kept under .cache/ and trained where absent."""

from collections.abc import Callable
from pathlib import Path

from curvprobe.tasks import Task
from curvprobe.tasks.digits import digits
from curvprobe.tasks.text import text

CACHE = Path(__file__).parent.parent / ".cache"

TASKS: dict[str, Callable[..., Task]] = {"digits": digits, "text": text}
"""The built-in tasks as they are."""


def mlp(k: int = 1000) -> Task:
    """A tanh MLP of 17 thousand parameters trained on scikit-learn's digits to a gradient norm of about 1e-6."""
    return digits(k, cache=CACHE / "digits.safetensors")


def nanochat(k: int = 8, candidates: int = 8) -> Task:
    """A NanoChat of 3.4 million parameters, context 128, trained for 400 steps on Python's help topics."""
    return text(
        k,
        candidates=candidates,
        steps=400,
        hidden_size=256,
        intermediate_size=768,
        num_layers=4,
        cache=CACHE / "nanochat.safetensors",
    )


MODELS: dict[str, Callable[..., Task]] = {"mlp": mlp, "nanochat": nanochat}
"""The larger of the language models, and the digits MLP."""
