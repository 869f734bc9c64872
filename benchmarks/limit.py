"""How far a Hessian product is from what its arithmetic must cost on this machine.

The floor is the floating-point operations of the matrix multiplications in plain double backward, as PyTorch's counter
sees them, over the rate of one large float32 multiplication. A fresh product evaluates the loss, its gradient and the
derivative of the gradient: 9 times the forward pass where both operands depend on parameters. One that finds the graph
of the gradient kept evaluates the derivative only: 6 times. All that is not a multiplication of matrices counts as
nothing, so that a small model cannot come near its floor.

Measured are the first product of a matrix, and later products of the same matrix, which may use what the first one
kept; these also while freed memory is kept, as it is during an eigenvalue computation. The checks that come with the
very first product of a risk are timed by themselves.

Run: python benchmarks/limit.py [--models mlp] [--repeats 5]
"""

import statistics
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from benchmark import Benchmark, markdown, page, shared
from models import MODELS
from plain import Plain, plain
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import curvprobe as cp
from curvprobe.experiments.machine import timed
from curvprobe.runtime.memory import freed_memory_kept

OPTIONS = {
    **shared(models=list(MODELS), repeats=5),
    "size": (2048, "of the matrices that the rate is measured on"),
}


def seconds(action: Callable[[], Any]) -> float:
    return timed(torch.device("cpu"), action)[1]


def operations(function: Callable[[], Any]) -> tuple[int, Any]:
    """Floating-point operations of the matrix multiplications in a call, and what it returned."""
    with FlopCounterMode(display=False) as counter:
        result = function()
    return counter.get_total_flops(), result


def multiplication_rate(size: int, repeats: int) -> float:
    """Floating-point operations a second of float32 multiplications of square matrices, the best of the repeats."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator) for _ in range(2))
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(repeats))


def plain_operations(problem: Plain) -> dict[str, int]:
    """Operations of the loss, and of a product by plain double backward, fresh and with the gradient's graph kept."""
    params = list(problem.model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        forward, loss = operations(problem.loss)
        gradient, gradients = operations(partial(torch.autograd.grad, loss, params, create_graph=True))
        derivative, _ = operations(
            partial(torch.autograd.grad, gradients, params, [torch.ones_like(p) for p in params])
        )
    return {"forward": forward, "fresh": forward + gradient + derivative, "kept": derivative}


def measure(options: Namespace) -> dict[str, Any]:
    rate = multiplication_rate(options.size, options.repeats)
    print(f"{rate / 1e9:.1f} GFLOP/s", flush=True)
    models = {}
    for name in options.models:
        models[name] = of_model(name, options.repeats, rate)
        print(f"{name}: {models[name]['ratios']}", flush=True)
    return {"operations_per_second": rate, "models": models}


def of_model(name: str, repeats: int, rate: float) -> dict[str, Any]:
    task = MODELS[name]()
    risk = task.risk()
    vector = torch.randn(risk.num_params, generator=torch.Generator().manual_seed(0))
    very_first = seconds(lambda: cp.hessian(risk) @ vector)
    counts = plain_operations(plain(task))
    counted_first, _ = operations(lambda: cp.hessian(risk) @ vector)
    times, product = times_of(risk, vector, repeats)
    counted_later, _ = operations(product)
    floor = {kind: counts[kind] / rate for kind in ("fresh", "kept")}
    return {
        "k": len(risk),
        "num_params": risk.num_params,
        "microbatch_size": risk.microbatch_size,
        "operations": {**counts, "library_first": counted_first, "library_later": counted_later},
        "units": {kind: counts[kind] / counts["forward"] for kind in floor},
        "floor_seconds": floor,
        "seconds": {**times, "checks": very_first - times["first"]},
        "ratios": {
            "first_over_fresh_floor": times["first"] / floor["fresh"],
            "later_over_fresh_floor": times["later"] / floor["fresh"],
            "later_over_kept_floor": times["later"] / floor["kept"],
            "later_within_over_kept_floor": times["later_within"] / floor["kept"],
            "first_over_forward": times["first"] / times["forward"],
            "later_over_forward": times["later"] / times["forward"],
        },
    }


def times_of(
    risk: cp.EmpiricalRisk, vector: torch.Tensor, repeats: int
) -> tuple[dict[str, float], Callable[[], torch.Tensor]]:
    """Median seconds of a forward pass and of each kind of product, and the last product."""
    first, later, forward = [], [], []
    for _ in range(repeats):
        product = partial(cp.hessian(risk).__matmul__, vector)
        first.append(seconds(product))
        product()  # what is kept may be kept from the second product on
        later.append(statistics.median(seconds(product) for _ in range(3)))
        forward.append(seconds(partial(risk.losses, torch.zeros_like(vector))))
    with freed_memory_kept():
        product()
        within = [seconds(product) for _ in range(3 * repeats)]
    times = {"forward": forward, "first": first, "later": later, "later_within": within}
    return {name: statistics.median(values) for name, values in times.items()}, product


HEAD = "| model | product | operations, forward = 1 | floor, seconds | measured, seconds | over the floor |"
PRODUCTS = {
    "first": ("fresh", "first"),
    "later": ("kept", "later"),
    "later_within": ("kept", "later, freed memory kept"),
}
"""By name in the result: which floor is theirs, and what the table calls them."""


def table(result: dict[str, Any]) -> str:
    rows = (
        f"| {name} | {label} | {model['units'][kind]:.2g} | {model['floor_seconds'][kind]:.2g} "
        f"| {model['seconds'][product]:.2g} | {model['ratios'][f'{product}_over_{kind}_floor']:.2f} |"
        for name, model in result["models"].items()
        for product, (kind, label) in PRODUCTS.items()
    )
    note = f"Large multiplications: {result['operations_per_second'] / 1e9:.0f} GFLOP/s"
    return page(result, markdown(HEAD, rows), note=note)


BENCHMARK = Benchmark("limit", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
