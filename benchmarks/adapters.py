"""Adapters (LoRA) on a frozen GPT-2: what an analysis of them takes beyond the model, by how the frozen part is held.

Frozen in bfloat16 and frozen in float32, both at the same weights, and with the whole base trainable, as a model is
whose frozen part has to be copied. Each in a process of its own; an analysis of the stages on which the answer rests,
within a stated memory budget. Run: python benchmarks/adapters.py
"""

import warnings
from argparse import Namespace
from typing import Any

import torch
from benchmark import Benchmark, markdown, mebibytes, page, shared
from isolated import peak_memory, run_isolated

import curvprobe as cp

OPTIONS = {
    "vocabulary": (50257, "words"),
    "hidden_size": (768, "of the model"),
    "layers": (12, "of the model"),
    "context": (32, "tokens in a sequence"),
    "rank": (8, "of the adapters"),
    "budget": (2048, "MiB, the memory budget"),
    **shared(k=2, dim=2),
}
SIDES = {"frozen bfloat16": torch.bfloat16, "frozen float32": torch.float32, "trainable float32, left out": None}


def measure(options: Namespace) -> dict[str, Any]:
    sizes = {name: getattr(options, name) for name in OPTIONS}
    rows = {side: run_isolated(of_side, side, sizes) for side in SIDES}
    values = [row["first_eigenvalue"] for row in rows.values()]
    return {**sizes, "rows": rows, "apart": (max(values) - min(values)) / max(values)}


def adapted(side: str, sizes: dict[str, int]) -> torch.nn.Module:
    """A GPT-2 of bfloat16 numbers with adapters after some training, its base held as the side says."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=sizes["vocabulary"],
        n_positions=1024,
        n_embd=sizes["hidden_size"],
        n_layer=sizes["layers"],
        n_head=max(1, sizes["hidden_size"] // 64),
        bos_token_id=0,
        eos_token_id=0,
    )
    base = GPT2LMHeadModel(config).to(torch.bfloat16).to(SIDES[side] or torch.float32)
    lora = LoraConfig(r=sizes["rank"], target_modules=["c_attn"], fan_in_fan_out=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a name that peft asks transformers by
        model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # begins at zero
            torch.nn.init.normal_(parameter, std=0.02)
    return model.requires_grad_(True).eval() if SIDES[side] is None else model.eval()


def of_side(side: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Bytes of the model and those that an analysis takes beyond them, and the first eigenvalue."""
    model = adapted(side, sizes)
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(sizes["vocabulary"], (2 * sizes["k"], sizes["context"]), generator=draws)
    with peak_memory() as peak:
        risk = cp.EmpiricalRisk(
            model,
            cp.losses.causal_lm,
            tokens[: sizes["k"]],
            params="lora",
            forward=cp.before_head,
            memory_budget=sizes["budget"] * 2**20,
        )
        found = cp.analyze(risk, tokens[sizes["k"] :], dim=sizes["dim"], num_probes=8, stages="quick")
    return {
        "added_bytes": peak.added,
        "model_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "num_params": risk.num_params,
        "all_params": sum(p.numel() for p in model.parameters()),
        "first_eigenvalue": float(found.subspace.eigenvalues[0]),
    }


def table(result: dict[str, Any]) -> str:
    rows = [
        f"| {side} | {mebibytes(row['model_bytes'])} | {mebibytes(row['added_bytes'])} |"
        for side, row in result["rows"].items()
    ]
    row = result["rows"]["frozen bfloat16"]
    note = (
        f"{row['all_params']:,} parameters, of which {row['num_params']:,} of rank {result['rank']} are probed; k = "
        f"{result['k']} and as many candidates, context {result['context']}, D = {result['dim']}, memory budget "
        f"{result['budget']} MiB; first eigenvalues {result['apart']:.1e} apart"
    )
    head = "| the rest of the model | model | an analysis beyond it |"
    return page(result, markdown(head, rows), note=note)


BENCHMARK = Benchmark("adapters", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
