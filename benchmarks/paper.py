"""curvprobe against the paper's procedure, stage by stage, on a small language model: seconds, products and errors.

Stage I finds the top eigenspace, stage II the quadratic model of the increment, stage III its second moment. Both
sides use the same threads, in turns within one run; a time is the median over the repeats, and a ratio the median of
theirs. Residuals and orthogonality are recomputed for both in the same way, and the curvature B is held against float64
in the same basis.
Run: python benchmarks/paper.py [--dims 10 45] [--k 8]
"""

from argparse import Namespace
from typing import Any

from benchmark import Benchmark, markdown, page, shared
from models import nanochat

from curvprobe.eigensolver.lanczos import CERTIFYING_PRODUCTS
from curvprobe.experiments.comparison import compare

OPTIONS = {
    "dims": ([10, 45], "dimensions D of the subspace"),
    "repeats_stage1": (3, "of stage I"),
    **shared(k=8, num_probes=64, repeats=3, seed=0),
}
STAGES = "| D | stage | paper's procedure | curvprobe | ratio |"


def measure(options: Namespace) -> dict[str, Any]:
    task, rows = nanochat(options.k), []
    sizes = {name: getattr(options, name) for name in ("num_probes", "repeats", "repeats_stage1", "seed")}
    for dim in options.dims:
        rows.append(compare(task, dim, **sizes))
        print(markdown(STAGES, stage_rows(rows[-1])), flush=True)
    return {"task": task.description, "rows": rows}


def stage_rows(comparison: dict[str, Any]) -> list[str]:
    """Table rows of one comparison."""
    stages = [eigenspace_rows(comparison["stage1"]), increment_rows(comparison["stage2"])]
    stages += [moment_rows(moment, comparison) for moment in comparison["stage3"]]
    return [f"| {comparison['dim']} | {row} |" for rows in stages for row in rows]


def eigenspace_rows(stage: dict[str, Any]) -> list[str]:
    ours, theirs, ratio = stage["ours"], stage["paper"], stage["seconds_ratio"]
    share = 1 - ours["search_products"] / ours["products"]
    return [
        f"I, eigenspace: seconds | {theirs['seconds']:.3g} | {ours['seconds']:.3g} | {ratio:.1f}",
        f"I: seconds, by the share of products without our search | {theirs['seconds']:.3g} "
        f"| {ours['seconds'] * share:.3g} | {ratio / share:.1f}",
        f"I: products (ours: {CERTIFYING_PRODUCTS} of them to certify, {ours['search_products']} to look for missed "
        f"copies) | {theirs['products']} | {ours['products']} | {stage['products_ratio']:.1f}",
        f"I: largest residual | {theirs['largest_residual']:.0e} | {ours['largest_residual']:.0e} |",
        f"I: error of orthogonality | {theirs['orthogonality_error']:.0e} | {ours['orthogonality_error']:.0e} |",
        *peak_row("I", stage),
    ]


def increment_rows(stage: dict[str, Any]) -> list[str]:
    full, four, ours = stage["paper"], stage["paper_four_rows"], stage["ours"]
    return [
        f"II, increment: seconds | {full['seconds']:.3g} | {ours['seconds']:.3g} | {stage['seconds_ratio']:.1f}",
        f"II: seconds, the paper's Hessians on four rows | {four['seconds']:.3g} | {ours['seconds']:.3g} "
        f"| {stage['four_rows_seconds_ratio']:.1f}",
        f"II: error of B | {full['curvature_error']:.1e}; four rows {100 * four['curvature_error']:.0f} % "
        f"| {ours['curvature_error']:.1e} |",
        *peak_row("II", stage),
    ]


def peak_row(name: str, stage: dict[str, Any]) -> list[str]:
    """Of an accelerator; what else lies there, the model and the other side's basis, counts with both."""
    theirs, ours = (stage["peak_bytes"][side] for side in ("paper", "ours"))
    if ours is None:
        return []
    return [f"{name}: peak memory, GiB | {theirs / 2**30:.1f} | {ours / 2**30:.1f} | {theirs / ours:.1f}"]


def moment_rows(moment: dict[str, Any], comparison: dict[str, Any]) -> list[str]:
    theirs, ours, k, sigma = moment["paper"], moment["ours"], comparison["k"], f"sigma {moment['sigma']:g}"
    return [
        f"III, {comparison['num_probes']} draws at {sigma}: relative standard error "
        f"| {theirs['stderr'] / theirs['direct']:.1e} | {ours['stderr'] / ours['controlled']:.1e} |",
        f"III: forward passes for an equal standard error, {sigma} (in the same subspace) | {2 * k + 1} a draw "
        f"| {k + 1} a draw | {moment['forwards_ratio']:.1e} ({moment['same_subspace_forwards_ratio']:.1e})",
        f"III: seconds of Monte Carlo; of the closed form, {sigma} "
        f"| {theirs['monte_carlo_seconds']:.3g}; {theirs['closed_form_seconds']:.1e} "
        f"| {ours['monte_carlo_seconds']:.3g}; {ours['closed_form_seconds']:.1e} | {moment['seconds_ratio']:.1f}",
    ]


def table(result: dict[str, Any]) -> str:
    rows = result["rows"]
    first, second = (rows[0][stage]["repeats"] for stage in ("stage1", "stage2"))
    note = f"{rows[0]['num_params']} parameters, k = {rows[0]['k']}, stage I run {first} times, stage II {second}"
    return page(result, markdown(STAGES, (line for row in rows for line in stage_rows(row))), note=note)


BENCHMARK = Benchmark("paper", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
