"""What ``curvprobe plan --params N --examples k --gpus W`` reckons from sizes, and what it is held to.

The first table is reckoned. The second holds its parts to measurements: what autograd saves for one example of small
Llamas, made here; and the memory and products of the paper's size on an accelerator (results/gpu.json).
Run: python benchmarks/scale.py
"""

from argparse import Namespace
from typing import Any

import torch
from benchmark import RESULTS, Benchmark, markdown, page, read, shared

import curvprobe as cp
from curvprobe.analysis.plan import rough_time
from curvprobe.analysis.scale import Scale
from curvprobe.risk.budget import PEAK_OVER_SAVED
from curvprobe.tasks.text import nanochat

SHAPES = ((128, 2, 64, 512), (256, 4, 128, 512), (256, 4, 256, 4096), (384, 6, 256, 2048))
"""Width, layers, tokens and vocabulary of the Llamas."""
MARKS = (("divided", False, ", divided"), ("fits", True, ", too much"))

OPTIONS = {
    "params": ([1e8, 1e9, 7e9, 7e10], "of the models"),
    "examples": ([1e4, 1e6], "in the sample"),
    "gpus": ([1, 8, 64], "accelerators"),
    "probed": (2e7, "parameters of adapters, for the models that do not fit as a whole"),
    **shared(dim=10),
}


def measure(options: Namespace) -> dict[str, Any]:
    rows = [of_size(params, gpus, options) for params in options.params for gpus in options.gpus]
    return {
        "dim": options.dim,
        "probed": options.probed,
        "rows": rows,
        "held_to": [*map(graph, SHAPES), *accelerator()],
    }


def of_size(params: float, gpus: int, options: Namespace) -> dict[str, Any]:
    whole = Scale(params, options.examples[0], dim=options.dim, gpus=gpus)
    part = Scale(params, options.examples[0], dim=options.dim, gpus=gpus, probed=options.probed)
    taken = whole if whole.fits else part
    seconds = {
        f"{examples:g}": sum(
            Scale(params, examples, dim=options.dim, gpus=gpus, probed=taken.probed).seconds().values()
        )
        for examples in options.examples
    }
    return {
        "params": params,
        "gpus": gpus,
        "bytes": {"whole": whole.bytes, "part": part.bytes},
        "fits": {"whole": whole.fits, "part": part.fits},
        "divided": {"whole": whole.divided, "part": part.divided},
        "sent": taken.exchanged()["eigenspace"],
        "seconds": seconds,
    }


def graph(shape: tuple[int, int, int, int]) -> dict[str, Any]:
    """Bytes that autograd saves for the graph of an example of a Llama."""
    width, layers, tokens, vocabulary = shape
    heads = max(1, width // 64)
    model = nanochat(
        vocab_size=vocabulary,
        max_position_embeddings=tokens,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    ).eval()
    draws = torch.Generator().manual_seed(0)
    risk = cp.EmpiricalRisk(model, cp.losses.causal_lm, torch.randint(vocabulary, (2, tokens), generator=draws))
    reckoned = Scale(risk.num_params, 2, tokens=tokens).example_bytes(vocabulary, layers, width) / PEAK_OVER_SAVED
    name = f"graph of an example, width {width}, {layers} layers, {tokens} tokens, {vocabulary} words"
    return {"what": name, "unit": "MB", "measured": risk.footprint.graph / 1e6, "reckoned": reckoned / 1e6}


def accelerator() -> list[dict[str, Any]]:
    """Memory, products and time of the eigenspace at the paper's size."""
    found = read(RESULTS / "gpu.json")
    model, ours = found["model"], found["stage1"]["ours"]
    scale = Scale(found["num_params"], found["k"], tokens=model["context"], dim=found["dim"])
    example = scale.example_bytes(model["vocabulary"], model["layers"], model["hidden_size"])
    together = scale.bytes - scale.example_bytes() + found["k"] * example
    at = f"N = {found['num_params']:,}, k = {found['k']}, D = {found['dim']}, {found['machine']['gpu']}"
    return [
        {"what": f"memory of the eigenspace, {at}", "unit": "GB"}
        | {"measured": found["stage1"]["peak_bytes"]["ours"] / 1e9, "reckoned": together / 1e9},
        {"what": "its products", "unit": "", "measured": ours["products"], "reckoned": scale.products},
        {"what": "its time", "unit": "s", "measured": ours["seconds"], "reckoned": scale.seconds()["eigenspace"]},
    ]


def table(result: dict[str, Any]) -> str:
    numbers = list(result["rows"][0]["seconds"])
    head = (
        "| parameters | accelerators | memory of each, all probed | adapters probed | sent by each for the eigenspace "
        f"| {' | '.join(f'time with {float(k):,.0f} examples' for k in numbers)} |"
    )
    rows = (
        f"| {row['params']:.0e} | {row['gpus']} | {room(row, 'whole')} | {room(row, 'part')} "
        f"| {row['sent'] / 1e9:.2g} GB | {' | '.join(days(row['seconds'][k]) for k in numbers)} |"
        for row in result["rows"]
    )
    held = (
        f"| {row['what']} | {row['measured']:.3g} {row['unit']} | {row['reckoned']:.3g} {row['unit']} "
        f"| {row['reckoned'] / row['measured']:.2f} |"
        for row in result["held_to"]
    )
    note = f"D = {result['dim']}; {result['probed']:.0e} parameters of adapters; sent and time: of all where these fit"
    note += "; divided: the weights too"
    return page(
        result,
        markdown(head, rows),
        markdown("| what | measured | reckoned | reckoned over measured |", held),
        note=note,
    )


def room(row: dict[str, Any], which: str) -> str:
    divided, much = ("" if row[key][which] is meant else text for key, meant, text in MARKS)
    return f"{row['bytes'][which] / 1e9:.3g} GB{divided}{much}"


def days(seconds: float) -> str:
    return rough_time(seconds) if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"


BENCHMARK = Benchmark("scale", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
