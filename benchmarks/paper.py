"""curvprobe against the paper's procedure, stage by stage, on a small language model: seconds, products and errors.

Stage I finds the top eigenspace, stage II the quadratic model of the increment, stage III its second moment. Both
sides use the same threads, in turns within one run; a time is the median over the repeats, and a ratio the median of
theirs. Residuals and orthogonality are recomputed for both in the same way, and the curvature B is held against float64
in the same basis.
Run: python benchmarks/paper.py [--dims 10 45] [--k 8]
"""

import argparse
from pathlib import Path
from typing import Any

from machine import place, write
from models import nanochat

from curvprobe.eigensolver.lanczos import CERTIFYING_PRODUCTS
from curvprobe.experiments.comparison import compare
from curvprobe.experiments.machine import describe

RESULT = Path(__file__).parent / "results" / "paper.json"
STAGES = ["| D | stage | paper's procedure | curvprobe | ratio |", "|---|---|---|---|---|"]


def stage_rows(row: dict[str, Any]) -> list[str]:
    """Table rows of one comparison."""
    dim, one, two = row["dim"], row["stage1"], row["stage2"]
    ours, theirs = one["ours"], one["paper"]
    converging = 1 - ours["search_products"] / ours["products"]
    full, four, joined = two["paper"], two["paper_four_rows"], two["ours"]
    lines = [
        f"| {dim} | I, eigenspace: seconds | {theirs['seconds']:.3g} | {ours['seconds']:.3g} "
        f"| {one['seconds_ratio']:.1f} |",
        f"| {dim} | I: seconds, by the share of products without our search | {theirs['seconds']:.3g} "
        f"| {ours['seconds'] * converging:.3g} | {one['seconds_ratio'] / converging:.1f} |",
        f"| {dim} | I: products (ours: {CERTIFYING_PRODUCTS} of them to certify, {ours['search_products']} to look for "
        f"missed copies) | {theirs['products']} | {ours['products']} | {one['products_ratio']:.1f} |",
        f"| {dim} | I: largest residual | {theirs['largest_residual']:.0e} | {ours['largest_residual']:.0e} | |",
        f"| {dim} | I: error of orthogonality | {theirs['orthogonality_error']:.0e} "
        f"| {ours['orthogonality_error']:.0e} | |",
        f"| {dim} | II, increment: seconds | {full['seconds']:.3g} | {joined['seconds']:.3g} "
        f"| {two['seconds_ratio']:.1f} |",
        f"| {dim} | II: seconds, the paper's Hessians on four rows | {four['seconds']:.3g} | {joined['seconds']:.3g} "
        f"| {two['four_rows_seconds_ratio']:.1f} |",
        f"| {dim} | II: error of B | {full['curvature_error']:.1e}; four rows {100 * four['curvature_error']:.0f} % "
        f"| {joined['curvature_error']:.1e} | |",
    ]
    for moment in row["stage3"]:
        direct, controlled, k, sigma = moment["paper"], moment["ours"], row["k"], moment["sigma"]
        lines += [
            f"| {dim} | III, {row['num_probes']} draws at sigma {sigma:g}: relative standard error "
            f"| {direct['stderr'] / direct['direct']:.1e} | {controlled['stderr'] / controlled['controlled']:.1e} | |",
            f"| {dim} | III: forward passes for an equal standard error, sigma {sigma:g} (in the same subspace) "
            f"| {2 * k + 1} a draw | {k + 1} a draw | {moment['forwards_ratio']:.1e} "
            f"({moment['same_subspace_forwards_ratio']:.1e}) |",
            f"| {dim} | III: seconds of Monte Carlo; of the closed form, sigma {sigma:g} "
            f"| {direct['monte_carlo_seconds']:.3g}; {direct['closed_form_seconds']:.1e} "
            f"| {controlled['monte_carlo_seconds']:.3g}; {controlled['closed_form_seconds']:.1e} "
            f"| {moment['seconds_ratio']:.1f} |",
        ]
    return lines


def table(result: dict[str, Any]) -> str:
    rows = result["rows"]
    foot = f"({rows[0]['num_params']} parameters, k = {rows[0]['k']}. {place(result['machine'])}.)"
    return "\n".join([*STAGES, *(line for row in rows for line in stage_rows(row)), "", foot])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[10, 45])
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--num-probes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--repeats-stage1", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(argv)
    task, rows = nanochat(options.k), []
    for dim in options.dims:
        rows.append(
            compare(
                task,
                dim,
                num_probes=options.num_probes,
                repeats=options.repeats,
                repeats_stage1=options.repeats_stage1,
                seed=options.seed,
            )
        )
        print("\n".join(stage_rows(rows[-1])), flush=True)
    write(options.out, {"machine": describe(), "task": task.description, "rows": rows})


if __name__ == "__main__":
    main()
