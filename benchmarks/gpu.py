"""curvprobe against the paper's procedure at the paper's size: a NanoChat of depth 6 on one GPU.

Hidden size 384, heads of 128, vocabulary 32768, context 512, k = 8, D = 45, S = 64, float32: the settings of the
paper's table of timings. transformers' NanoChat has no value embeddings, hence fewer parameters than the paper's 107
million. It is trained briefly on Python's help topics, whose byte-pair encoding may use fewer tokens than the
vocabulary has. The comparison is that of paper.py. Run: python benchmarks/gpu.py [--device cuda]
"""

import argparse
import json
import math
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from machine import describe, place
from paper import STAGES, compare, stage_rows
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from transformers import NanoChatConfig, NanoChatForCausalLM

import curvprobe as cp

RESULT = Path(__file__).parent / "results" / "gpu.json"
HEAD = 128


def sequences(vocabulary: int, context: int) -> Tensor:
    """Python's help topics as shuffled token sequences (n, context)."""
    documents = [topics[name] for name in sorted(topics)]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(documents, vocab_size=vocabulary, show_progress=False)
    tokens = torch.tensor(tokenizer.encode("\n\n".join(documents)).ids)
    count = len(tokens) // context
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return tokens[: count * context].view(count, context)[order]


def nanochat(hidden_size: int, layers: int, vocabulary: int, context: int) -> nn.Module:
    heads = max(1, hidden_size // HEAD)
    config = NanoChatConfig(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        attn_implementation="eager",
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NanoChatForCausalLM(config)


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
    tokens = sequences(options.vocabulary, options.context).to(options.device)
    training, held_out = tokens[:-1], tokens[-1:]
    model = nanochat(options.hidden_size, options.layers, options.vocabulary, options.context).to(options.device)
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
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
