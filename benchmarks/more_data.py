"""What the required sample size does not tell: how much the test loss gains from more data.

Two networks of one size on 1000 examples, trained to the end with weight decay in the loss: one on labels that a linear
rule gives and noise flips, one on labels that a curved rule gives and nothing flips. Beside the criteria stands what
twice the data, with training anew, takes off the loss on 20 000 other examples.
Run: python benchmarks/more_data.py
"""

from argparse import Namespace
from typing import Any

import torch
from benchmark import Benchmark, markdown, page

import curvprobe as cp

OPTIONS = {
    "k": (1000, "examples in the sample; trained anew on twice as many"),
    "tolerance": (4e-4, "rms increment in loss units"),
    "decays": ([3e-3, 1e-3], "weight decay, a part of the loss, for noisy and for clean labels"),
    "seeds": (3, "data and initial weights"),
}
TEST, FEATURES = 20_000, 10
KINDS = ("linear rule, 20 % of the labels flipped", "curved rule, clean labels")


def data(kind: str, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=draw, dtype=torch.float64)
    if kind == KINDS[0]:
        y = x[:, :5].sum(1) > 0
        return x, (y ^ (torch.rand(count, generator=draw) < 0.2)).double()[:, None]
    return x, (x[:, 0] * x[:, 1] + x[:, 2] * x[:, 3] > 0).double()[:, None]


def trained(x: torch.Tensor, y: torch.Tensor, decay: float, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(FEATURES, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double()
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=3000, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x), y) + decay * penalty(model)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return model


def penalty(model: torch.nn.Module) -> torch.Tensor:
    return torch.stack([p.square().sum() for p in model.parameters()]).sum()


def test_loss(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float(torch.nn.functional.binary_cross_entropy_with_logits(model(x), y))


def measure(options: Namespace) -> dict[str, Any]:
    kinds = zip(KINDS, options.decays, strict=True)
    rows = [one(kind, decay, seed, options) for kind, decay in kinds for seed in range(options.seeds)]
    return {"rows": rows, "tolerance": options.tolerance, "k": options.k}


class Decayed(torch.nn.Module):
    """A model whose outputs carry its penalty, so that a loss may add it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits, and the penalty of every example."""
        logits = self.model(x)
        return {"logits": logits, "penalty": penalty(self.model).expand(len(x))}


def one(kind: str, decay: float, seed: int, options: Namespace) -> dict[str, Any]:
    k = options.k
    x, y = data(kind, 2 * k + TEST + 1000, seed)
    first, twice = (trained(x[:n], y[:n], decay, seed) for n in (k, 2 * k))
    before, after = (test_loss(model, x[2 * k + 1000 :], y[2 * k + 1000 :]) for model in (first, twice))

    def loss(outputs: Any, batch: Any) -> torch.Tensor:
        each = torch.nn.functional.binary_cross_entropy_with_logits(outputs["logits"], batch[1], reduction="none")
        return each[:, 0] + decay * outputs["penalty"]

    risk = cp.EmpiricalRisk(Decayed(first), loss, (x[:k], y[:k]))
    new = (x[2 * k : 2 * k + 1000], y[2 * k : 2 * k + 1000])
    found = cp.analyze(risk, new, dim=10, tolerance=options.tolerance)
    assert found.required is not None
    assert found.expected is not None
    row = {
        "kind": kind,
        "seed": seed,
        "test_loss": before,
        "gain": 1 - after / before,
        "rms": found.expected.rms,
        "shape": found.expected.shape,
        "required": found.required.to_json(),
    }
    print(row, flush=True)
    return row


HEAD = "| labels | seed | rms of one more | sample size for {tolerance:g} | test loss | twice the data takes off |"


def table(result: dict[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        required = row["required"]
        size = "no answer" if required["observed"] is None else f"{required['observed']} ({required['verdict']})"
        rows.append(
            f"| {row['kind']} | {row['seed']} | {row['rms']:.2e} | {size} | {row['test_loss']:.3f} | "
            f"{100 * row['gain']:.1f} % |"
        )
    return page(result, markdown(HEAD.format_map(result), rows), note=f"k = {result['k']}")


BENCHMARK = Benchmark("more_data", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
