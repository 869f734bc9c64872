"""Decay and ratio at the paper's size, cut to what one GPU does in minutes: one seed and the first sizes.

Everything but the number of seeds and of sizes is that of the paper preset. Run:
python benchmarks/decay_at_paper_size.py --text FILE [--device cuda] [--ks 16 32 ...]
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from curvprobe.experiments import growth
from curvprobe.experiments.options import Options
from curvprobe.experiments.run import run_experiment

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="in UTF-8, of a few million words for the full sizes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ks", type=int, nargs="+", default=[16, 32, 64, 128, 256], help="multiples of 16")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--with-ratio", action="store_true", help="also the ratio, which compares subspaces at k = 64")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("runs/paper-size"), help="for finished points and figures")
    options = parser.parse_args(argv)
    settings = replace(growth.PRESETS["paper"], ks=tuple(options.ks), seeds=options.seeds)
    for name in ("decay", *(["ratio"] if options.with_ratio else [])):
        folder = options.work / name
        done = run_experiment(
            name,
            settings=settings,
            options=Options(text=options.text, device=options.device),
            out=folder,
            stages=options.work / "stages",
        )
        print(*done.findings, sep="\n")
        shutil.copy(folder / "result.json", options.out / f"paper_size_{name}.json")


if __name__ == "__main__":
    main()
