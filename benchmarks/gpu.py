"""curvprobe against the paper's procedure at the paper's size: a NanoChat of depth 6 on one GPU.

Hidden size 384, heads of 128, vocabulary 32768, context 512, k = 8, D = 45, S = 64, float32: the settings of the
paper's table of timings. transformers' NanoChat has no value embeddings, hence fewer parameters than the paper's 107
million. It is trained briefly on Python's help topics, whose byte-pair encoding may use fewer tokens than the
vocabulary has. The comparison is that of paper.py. Run: python benchmarks/gpu.py [--device cuda]
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from machine import place, write
from paper import STAGES, stage_rows
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.experiments.comparison import compare
from curvprobe.experiments.machine import describe
from curvprobe.tasks.text import help_topics, nanochat

RESULT = Path(__file__).parent / "results" / "gpu.json"
HEAD = 128


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


def make_task(options: argparse.Namespace) -> tuple[cp.Task, float]:
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


def table(result: dict[str, Any]) -> str:
    model, peak = result["model"], result["peak_bytes"]
    memory = "" if peak is None else f", peak memory {peak / 2**30:.1f} GiB"
    foot = (
        f"(hidden size {model['hidden_size']}, {model['layers']} layers, vocabulary {model['vocabulary']}, context "
        f"{model['context']}: {result['num_params']} parameters, k = {result['k']}{memory}, the whole run "
        f"{result['total_seconds']:.0f} s. {place(result['machine'])}.)"
    )
    return "\n".join([*STAGES, *stage_rows(result), "", foot])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--dim", type=int, default=45)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--num-probes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(argv)
    start = time.perf_counter()
    task, training_loss = make_task(options)
    comparison = compare(task, options.dim, num_probes=options.num_probes, repeats=options.repeats)
    on_gpu = torch.device(options.device).type == "cuda"
    result = {
        "machine": describe(),
        "device": options.device,
        "model": {name: getattr(options, name) for name in ("hidden_size", "layers", "vocabulary", "context", "steps")},
        "training_loss": training_loss,
        **comparison,
        "peak_bytes": torch.cuda.max_memory_allocated(options.device) if on_gpu else None,
        "total_seconds": time.perf_counter() - start,
    }
    write(options.out, result)


if __name__ == "__main__":
    main()
