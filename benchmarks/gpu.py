"""curvprobe against the paper's procedure at the paper's size: a NanoChat of depth 6 on one GPU.

Hidden size 384, heads of 128, vocabulary 32768, context 512, k = 8, D = 45, S = 64, float32: the settings of the
paper's table of timings. transformers' NanoChat has no value embeddings, hence fewer parameters than the paper's 107
million. It is trained briefly on Python's help topics, whose byte-pair encoding may use fewer tokens than the
vocabulary has. The comparison is that of paper.py. Run: python benchmarks/gpu.py [--device cuda]
"""

import math
import time
from argparse import Namespace
from typing import Any

import torch
from benchmark import Benchmark, markdown, page, shared
from paper import STAGES, stage_rows
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.experiments.comparison import compare
from curvprobe.tasks.text import help_topics, nanochat

HEAD = 128
OPTIONS = {
    "device": ("cuda" if torch.cuda.is_available() else "cpu", "where both run"),
    "hidden_size": (384, "of the model"),
    "layers": (6, "of the model"),
    "vocabulary": (32768, "of the byte-pair encoding"),
    "context": (512, "tokens in a sequence"),
    "steps": (300, "of training"),
    "repeats_stage1": (1, "of stage I"),
    **shared(dim=45, k=8, num_probes=64, repeats=3),
}


def train(model: nn.Module, training: Tensor, steps: int, batch: int = 8) -> float:
    """A few hundred steps of Adam; the loss of the last."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    value = math.nan
    for step in range(steps):
        tokens = training[torch.arange(step * batch, (step + 1) * batch, device=training.device) % len(training)]
        loss_sum, weight = cp.losses.causal_lm(model(tokens), tokens)
        loss = loss_sum.sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        value = float(loss.detach())
    optimizer.zero_grad()
    return value


def make_task(options: Namespace) -> tuple[cp.Task, float]:
    """The trained model with its first k training sequences and a held-out one; and its training loss."""
    tokens = help_topics(options.vocabulary, options.context)
    tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))].to(options.device)
    training, held_out = tokens[:-1], tokens[-1:]
    heads = max(1, options.hidden_size // HEAD)
    model = nanochat(
        vocab_size=options.vocabulary,
        max_position_embeddings=options.context,
        hidden_size=options.hidden_size,
        intermediate_size=4 * options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    ).to(options.device)
    loss = train(model, training, options.steps)
    return cp.Task(model.eval(), cp.losses.causal_lm, training[: options.k], held_out), loss


def measure(options: Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    task, training_loss = make_task(options)
    sizes = {name: getattr(options, name) for name in ("num_probes", "repeats", "repeats_stage1")}
    comparison = compare(task, options.dim, **sizes)
    return {
        "device": options.device,
        "model": {name: getattr(options, name) for name in ("hidden_size", "layers", "vocabulary", "context", "steps")},
        "training_loss": training_loss,
        **comparison,
        "total_seconds": time.perf_counter() - start,
    }


def table(result: dict[str, Any]) -> str:
    model = result["model"]
    note = (
        f"hidden size {model['hidden_size']}, {model['layers']} layers, vocabulary {model['vocabulary']}, context "
        f"{model['context']}: {result['num_params']} parameters, k = {result['k']}, the whole run "
        f"{result['total_seconds']:.0f} s"
    )
    return page(result, markdown(STAGES, stage_rows(result)), note=note)


BENCHMARK = Benchmark("gpu", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
