"""Whether the leading eigenvectors bend more than other eigenvectors of a larger eigenspace, for many next examples.

The paper's proposition: with eigenvectors that stay and shifts that are positive and in order, no D of them have a
larger curvature functional 2 |B|_F^2 + (tr B)^2 than the first D. Counted is for how many next examples its premise
holds, and how the first D fare among sets of D of the larger eigenbasis, that of the largest shifts among them.
Run: python benchmarks/extremality.py
"""

import statistics
from argparse import Namespace
from typing import Any

from benchmark import Benchmark, markdown, page

import curvprobe as cp
from curvprobe.tasks.digits import digits

OPTIONS = {
    "k": (1000, "examples in the sample"),
    "dim": (10, "leading directions D"),
    "within": ([10, 20, 40], "dimension of the eigenbasis that sets are taken from, of which D is half at most"),
    "candidates": (200, "next examples"),
}


def measure(options: Namespace) -> dict[str, Any]:
    task = digits(options.k)
    risk = task.risk()
    space = cp.top_eigenspace(risk, dim=max(options.within))
    sample, fresh = cp.project(risk, space), cp.project(risk.on(task.candidates)[: options.candidates], space)
    rows = []
    for within in options.within:
        dim = min(options.dim, within // 2)
        found = [cp.extremality(sample.truncate(within), fresh[j].truncate(within), dim) for j in range(len(fresh))]
        rows.append(
            {
                "dim": dim,
                "within": within,
                "next_examples": len(found),
                "premise": sum(one.premise for one in found),
                "first_are_best": sum(one.leading >= one.best * (1 - 1e-12) for one in found),
                "share_below": statistics.median(one.share_below for one in found),
                "best_over_leading": statistics.median(one.best / one.leading for one in found),
            }
        )
        print(rows[-1], flush=True)
    return {"k": options.k, "rows": rows, "converged": int(space.converged.sum())}


HEAD = (
    "| D | out of | next examples | the premise holds | the first D are the best | sets that bend no more, median | "
    "best over first D, median |"
)
ROW = (
    "| {dim} | {within} | {next_examples} | {premise} | {first_are_best} | {percent:.0f} % | {best_over_leading:.2g} |"
)


def table(result: dict[str, Any]) -> str:
    rows = (ROW.format(**row, percent=100 * row["share_below"]) for row in result["rows"])
    return page(result, markdown(HEAD, rows), note=f"digits, k = {result['k']}, {result['converged']} pairs certified")


BENCHMARK = Benchmark("extremality", __doc__, OPTIONS, measure, table)

if __name__ == "__main__":
    BENCHMARK.main()
