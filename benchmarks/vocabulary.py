"""A Hessian product of a language model with a large vocabulary: with all logits, and with its head left to the loss.

Each side in a process of its own. The graph is made anew for every product; the memory is the most that a product takes
beyond what the process held before it. Run: python benchmarks/vocabulary.py
"""

import time
from argparse import Namespace
from statistics import median
from typing import Any

import torch
from benchmark import Benchmark, markdown, mebibytes, page, shared
from isolated import peak_memory, run_isolated

import curvprobe as cp
from curvprobe.tasks.text import nanochat

OPTIONS = {
    "vocabulary": (32768, "words"),
    "context": (512, "tokens in a sequence"),
    "hidden_size": (128, "of the model"),
    "layers": (2, "of the model"),
    **shared(k=4, repeats=3),
}
SIDES = {"all logits": None, "head in the loss": cp.before_head}


def measure(options: Namespace) -> dict[str, Any]:
    sizes = {name: getattr(options, name) for name in OPTIONS}
    rows = {side: run_isolated(of_side, side, sizes) for side in SIDES}
    whole, chunked = rows.values()
    return {
        **sizes,
        "rows": rows,
        "memory_ratio": whole["added_bytes"] / chunked["added_bytes"],
        "seconds_ratio": whole["seconds"] / chunked["seconds"],
    }


def of_side(side: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Seconds of a product, the memory that it takes, and its inner product with the vector."""
    width = sizes["hidden_size"]
    heads = max(1, width // 64)
    model = nanochat(
        vocab_size=sizes["vocabulary"],
        max_position_embeddings=sizes["context"],
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=sizes["layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
    ).eval()
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(sizes["vocabulary"], (sizes["k"], sizes["context"]), generator=draws)
    risk = cp.EmpiricalRisk(model, cp.losses.causal_lm, tokens, forward=SIDES[side])
    vector = torch.randn(risk.num_params, generator=draws)
    cp.hessian(risk) @ vector  # with its checks
    seconds = []
    with peak_memory() as peak:
        for _ in range(sizes["repeats"]):
            start = time.perf_counter()
            product = cp.hessian(risk) @ vector
            seconds.append(time.perf_counter() - start)
    return {
        "seconds": median(seconds),
        "added_bytes": peak.added,
        "num_params": risk.num_params,
        "curvature": float(product.double() @ vector.double()),
    }


def table(result: dict[str, Any]) -> str:
    rows = [
        f"| {side} | {row['seconds']:.2f} s | {mebibytes(row['added_bytes'])} |" for side, row in result["rows"].items()
    ]
    count = result["rows"]["all logits"]["num_params"]
    note = (
        f"vocabulary {result['vocabulary']:,}, context {result['context']}, {count:,} parameters, k = {result['k']}: "
        f"{result['memory_ratio']:.1f} times less memory, {result['seconds_ratio']:.2f} times as fast"
    )
    return page(result, markdown("| | a product | memory that it takes |", rows), note=note)


BENCHMARK = Benchmark("vocabulary", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
