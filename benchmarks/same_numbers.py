"""Every number of an analysis of digits and of a small text model, to be held against those of another version.

    OMP_NUM_THREADS=1 python benchmarks/same_numbers.py record before.json
    ... change the code ...
    OMP_NUM_THREADS=1 python benchmarks/same_numbers.py record after.json
    python benchmarks/same_numbers.py compare before.json after.json

Uses public names only, so that it runs on either side of a change to the plan of the package.
"""

import argparse
import json
import math
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

import curvprobe as cp
from curvprobe.tasks.digits import digits
from curvprobe.tasks.text import text

NOT_NUMBERS = {"seconds", "versions", "risk_key", "candidates_key", "schema_version"}
"""What a result holds that another version may say differently."""


def numbers(value, place=""):
    """Every plain value of a nest, by its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in NOT_NUMBERS:
                yield from numbers(item, f"{place}/{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from numbers(item, f"{place}/{i}")
    elif isinstance(value, torch.Tensor):
        yield from numbers(value.detach().double().tolist() if value.dtype != torch.bool else value.tolist(), place)
    else:
        yield place, value


def estimate(found):
    names = ("value", "stderr", "p", "num_probes", "level", "slope", "curvature", "shape")
    return {name: getattr(found, name) for name in names}


def sample(found):
    return {name: getattr(found, name) for name in ("loss", "weight", "gradient", "hessian")}


def space(found):
    """The first rows of the basis, and what is known of an eigenspace."""
    names = ("eigenvalues", "residuals", "num_matvecs", "num_search_matvecs", "next_eigenvalue")
    known = names if getattr(found, "eigenvalues", None) is not None else ()
    return {"basis": found.basis[:50]} | {name: getattr(found, name) for name in known}


def analysed(task, k, out, **options):
    """All of ``result.json``, the projections and the metrics."""
    risk = task.risk(memory_budget=2**30)
    analysis = cp.analyze(risk[:k], risk.on(task.candidates), seed=3, out=out / "run", **options)
    written = json.loads((out / "run" / "result.json").read_text())
    return {
        "result": written,
        "metrics": analysis.metrics(),
        "sample": sample(analysis.sample),
        "fresh": sample(analysis.fresh),
        "text": str(analysis).split("\n"),
    }


def library(task, k):
    """What the functions tell that an analysis does not call, or calls with other arguments."""
    risk = task.risk(memory_budget=2**30)
    risk, new = risk[:k], risk.on(task.candidates)[:6]
    top = cp.top_eigenspace(risk, dim=4, seed=1)
    ggn = cp.top_eigenspace(risk, dim=3, curvature="ggn", tol=1e-2, seed=1)
    few = {"magnitude": cp.top_eigenspace(risk, dim=3, which="magnitude", tol=1e-2, start=top.truncate(3))}
    laws = {
        "subspace": cp.SubspaceProbe(top, torch.tensor([1e-3, 2e-3, 3e-3, 4e-3])),
        "laplace": cp.LaplaceProbe(ggn, k=k, damping=1e-2),
        "isotropic": cp.IsotropicProbe(1e-3),
        "tensor": cp.NormalizedProbe(1e-2),
        "filter": cp.NormalizedProbe(1e-2, by="filter"),
    }
    found = {
        "top": space(top),
        "ggn": space(ggn),
        "few": {name: space(one) for name, one in few.items()},
        "deformation": space(cp.deformation_subspace(risk, 3, tol=1e-2)),
        "gradients": space(cp.gradient_subspace(risk[:3])),
        "random": space(cp.random_subspace(risk, 3)),
        "delta1": estimate(cp.delta1(risk, new)),
        "delta2": estimate(cp.delta2(risk, new, sigma=1e-2, num_probes=9)),
        "delta2_subspace": estimate(cp.delta2_subspace(risk, new, ggn, sigma=1e-2)),
        "full_space": estimate(cp.full_space_moment(risk, new, sigma=1e-2, num_probes=13)),
        "validity": {
            "loss": cp.quadratic_validity(risk, [1e-4, 1e-2], new=new, num_probes=4).loss_error,
            "increment": cp.quadratic_validity(risk, [1e-3, 1e-1], subspace=top, new=new).increment_error,
        },
        "mean": sample(cp.mean_projection(risk, ggn)),
        "norms": cp.gradient_norms(new),
        "laws": {},
    }
    parts = cp.full_space_parts(risk, new, sigma=1e-2, num_probes=4)
    found["parts"] = [parts.level, parts.slope, parts.curvature, parts.value_terms]
    for name, law in laws.items():
        closed = cp.closed_form(risk, new, law, num_probes=5)
        controlled = cp.controlled_monte_carlo(risk, new, law, num_probes=6)
        direct = cp.direct_monte_carlo(risk, new, law, num_probes=6, p=3.0)
        found["laws"][name] = [estimate(one) for one in (closed, controlled, direct)]
    return found


def path(ks):
    followed = cp.trajectory(lambda k: digits(k, rounds=3).risk(), ks, candidates=digits(ks[-1], rounds=0).candidates)
    return followed.to_json()


def record():
    torch.set_num_threads(1)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        digit, language = digits(300, rounds=10), text(k=8, candidates=4, steps=20, **small)
        everything = {"laws": True, "concentration": True, "num_probes": 16}
        return {
            "digits": analysed(digit, 300, out / "digits", tolerance=1e-4, **everything),
            "text": analysed(language, 8, out / "text", dim=4, **everything),
            "digits library": library(digit, 40),
            "text library": library(language, 5),
            "trajectory": path([40, 80, 160]),
        }


def compare(before, after):
    """Print every number that differs; the number of those beyond the tolerance of rounding."""
    old, new = dict(numbers(before)), dict(numbers(after))
    for side, places in (("before", old.keys() - new.keys()), ("after", new.keys() - old.keys())):
        kinds = Counter(re.sub(r"/\d+", "/*", place) for place in places)
        for kind, count in sorted(kinds.items()):
            print(f"only {side}: {kind} ({count})")
    changed = [place for place in old.keys() & new.keys() if not same(old[place], new[place])]
    for place in sorted(changed):
        print(f"{place}: {old[place]!r} -> {new[place]!r}")
    print(f"{len(old.keys() & new.keys())} values in both, {len(changed)} of them changed")
    return len(changed) + len(old.keys() ^ new.keys())


def same(a, b):
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return a == b


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="analyse both tasks and write every number")
    recording.add_argument("file", type=Path)
    comparing = commands.add_parser("compare", help="list the numbers that differ between two files")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "record":
        chosen.file.write_text(json.dumps(dict(numbers(record())), indent=0) + "\n")
        return 0
    before, after = (json.loads(file.read_text()) for file in (chosen.before, chosen.after))
    return 1 if compare(before, after) else 0


if __name__ == "__main__":
    sys.exit(main())
