"""What a monitor costs along a real training: products with and without a warm start, and its share of the time.

Two trainings from the start, a convolutional network on images and a small transformer on text; one thread. Every so
many steps a monitor that has followed the training, and one that knows nothing of it, look at the same weights. The
share is that of a call at the default cadence of ``cp.Monitor``.
Run: python benchmarks/monitor.py
"""

import inspect
import time
from argparse import Namespace
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from benchmark import Benchmark, markdown, page, shared
from plan_models import images
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.tasks.text import help_topics, nanochat

OPTIONS = {
    **shared(models=["cnn", "transformer"], dim=[1, 5]),
    "steps": (300, "of training"),
    "looks": (12, "calls of both monitors along it"),
    "sample": (64, "examples that the monitor looks at"),
}

EVERY = inspect.signature(cp.Monitor).parameters["every"].default
"""Steps from one call to the next, of which the share is told."""

Loss = Callable[[nn.Module, Tensor], Tensor]


def cnn() -> tuple[nn.Module, Any, Any, Loss]:
    """Model, per-example loss, data, and the training loss on some rows."""
    x, y = images()
    x = x.view(-1, 1, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )
    return (
        model,
        cp.losses.cross_entropy,
        (x, y),
        lambda model, rows: nn.functional.cross_entropy(model(x[rows]), y[rows]),
    )


def transformer() -> tuple[nn.Module, Any, Any, Loss]:
    """The same of a small language model."""
    tokens = help_topics(vocabulary=512, context=64)[:2000]
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = nanochat(vocab_size=512, max_position_embeddings=64, **sizes, **heads)

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        logits = model(input_ids=tokens[rows]).logits
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[rows][:, 1:].flatten())

    return model, cp.losses.causal_lm, tokens, loss


MODELS = {"cnn": cnn, "transformer": transformer}


def measure(options: Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    rows = [of_model(name, dim, options) for name in options.models for dim in options.dim]
    return {"rows": rows}


def of_model(name: str, dim: int, options: Namespace) -> dict[str, Any]:
    """Products and seconds along one training."""
    torch.manual_seed(0)
    model, per_example, data, loss = MODELS[name]()
    first = tuple(part[: options.sample] for part in data) if isinstance(data, tuple) else data[: options.sample]
    count = len(data[0]) if isinstance(data, tuple) else len(data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draws, looked = torch.Generator().manual_seed(0), max(1, options.steps // options.looks)
    warm, steps, calls, products = cp.Monitor(per_example, first, dim=dim), [], [], []
    model.train()
    for step in range(1, options.steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss(model, torch.randint(count, (32,), generator=draws)).backward()
        optimizer.step()
        steps.append(time.perf_counter() - start)
        if step % looked:
            continue
        seen = warm(model, step=step)
        cold = cp.Monitor(per_example, first, dim=dim)(model)
        agree = abs(seen["curvprobe/eigenvalue_1"] / cold["curvprobe/eigenvalue_1"] - 1)
        products.append((seen["curvprobe/num_matvecs"], cold["curvprobe/num_matvecs"], agree))
        calls.append((seen["curvprobe/seconds"], cold["curvprobe/seconds"]))
    after = slice(1, None)  # the first call of the one that follows is a cold one
    row = {
        "model": name,
        "num_params": sum(p.numel() for p in model.parameters()),
        "dim": dim,
        "warm_products": median(one for one, _, _ in products[after]),
        "cold_products": median(other for _, other, _ in products[after]),
        "ratio": median(other / one for one, other, _ in products[after]),
        "apart": max(apart for *_, apart in products),
        "warm_seconds": median(one for one, _ in calls[after]),
        "cold_seconds": median(other for _, other in calls[after]),
        "step_seconds": median(steps),
        "first": [seen["curvprobe/eigenvalue_1"] for seen in warm.history],
    }
    print(row, flush=True)
    return row


def table(result: dict[str, Any]) -> str:
    head = (
        "| model | parameters | D | products, warm | cold | times fewer | first eigenvalues apart | a call | "
        f"a step of training | share of the time, every {EVERY} steps |"
    )
    return page(result, markdown(head, map(line, result["rows"])), note="medians over the calls of one training")


def line(row: dict[str, Any]) -> str:
    share = row["warm_seconds"] / (row["warm_seconds"] + EVERY * row["step_seconds"])
    cells = [
        row["model"],
        f"{row['num_params']:,}",
        row["dim"],
        f"{row['warm_products']:g}",
        f"{row['cold_products']:g}",
        f"**{row['ratio']:.1f}**",
        f"{100 * row['apart']:.2g} %",
        f"{row['warm_seconds']:.2g} s",
        f"{1000 * row['step_seconds']:.3g} ms",
        f"{100 * share:.2g} %",
    ]
    return f"| {' | '.join(map(str, cells))} |"


BENCHMARK = Benchmark("monitor", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
