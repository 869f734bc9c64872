"""What the benchmarks share: the command line, the result file and the tables."""

import json
import os
from pathlib import Path

import pytest
import torch


def benchmark(measure=lambda _: {}, table=lambda _: "", **options):
    from benchmark import Benchmark

    return Benchmark("small", "About it.\n\nRun: python small.py", options, measure, table)


def place(threads=2, gpu=None):
    return {"machine": {"cpu": "a processor", "threads": threads, "gpu": gpu, "torch": "2.13.0"}}


def test_a_run_writes_what_was_measured_and_where_and_prints_its_table(tmp_path, capsys):
    out = tmp_path / "new" / "small.json"
    one = benchmark(
        lambda options: {"sizes": options.sizes, "mean": torch.tensor(0.5), "unknown": float("nan")},
        lambda result: f"| {result['sizes']} | {result['mean']} | {result['unknown']} |",
        sizes=([1], "sizes"),
    )
    one.main(["--sizes", "3", "4", "--out", str(out)])
    result = json.loads(out.read_text())
    assert (result["sizes"], result["mean"], result["unknown"]) == ([3, 4], 0.5, None)
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["machine"]["torch"] == torch.__version__
    assert capsys.readouterr().out == f"written to {out}\n\n| [3, 4] | 0.5 | None |\n"


def test_the_load_is_the_one_before_the_work(tmp_path, monkeypatch):
    load = [0.1, 0.2, 0.3]
    monkeypatch.setattr(os, "getloadavg", lambda: tuple(load))
    benchmark(lambda _: load.clear() or {}).main(["--out", str(tmp_path / "small.json")])
    assert json.loads((tmp_path / "small.json").read_text())["machine"]["load"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("measured", ["fails", "is no JSON"])
def test_without_a_new_result_the_earlier_one_stays(measured, tmp_path):
    def measure(_):
        if measured == "fails":
            raise RuntimeError(measured)
        return {"what": object()}

    out = tmp_path / "small.json"
    out.write_text("earlier")
    with pytest.raises((RuntimeError, TypeError)):
        benchmark(measure).main(["--out", str(out)])
    assert out.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [out]


OPTIONS = {
    "num_probes": (64, "draws"),
    "sigma": (1e-3, "deviation"),
    "figures": (Path("figures"), "folder"),
    "device": ("cpu", "where"),
    "sizes": ([1, 2], "sizes"),
    "models": (["mlp", "text"], "models"),
    "peers": (("this", "that"), "others"),
}


def parsed(*argv):
    return vars(benchmark(**OPTIONS).parser().parse_args(argv))


def test_options_are_of_the_kind_of_their_defaults():
    from benchmark import RESULTS

    default = parsed()
    assert default.pop("out") == RESULTS / "small.json"
    assert default == {name: value for name, (value, _) in OPTIONS.items()}
    argv = "--num-probes 8 --sigma 2 --figures a/b --device cuda --sizes 3 4 --models text --peers"
    given = parsed(*argv.split())
    assert given["num_probes"] == 8
    assert given["sigma"] == 2.0
    assert given["figures"] == Path("a/b")
    assert (given["device"], given["sizes"], given["models"], given["peers"]) == ("cuda", [3, 4], ["text"], [])


@pytest.mark.parametrize("argv", ["--models", "--models digits", "--peers other", "--sizes", "--sizes a", "--sigma a"])
def test_values_that_make_no_sense_are_refused(argv, capsys):
    with pytest.raises(SystemExit):
        parsed(*argv.split())
    assert f"argument {argv.split()[0]}: " in capsys.readouterr().err


def test_help_is_the_docstring_and_what_every_option_means(capsys):
    with pytest.raises(SystemExit) as ended:
        parsed("--help")
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert "About it.\n\nRun: python small.py" in printed
    assert "models (default: mlp text)" in printed
    assert "draws (default: 64)" in printed


def test_tables_stand_above_where_they_were_measured():
    from benchmark import markdown, page

    one = markdown("| D | seconds |", (f"| {d} | {d / 2} |" for d in (1, 2)))
    assert one == "| D | seconds |\n|---|---|\n| 1 | 0.5 |\n| 2 | 1.0 |"
    foot = "(k = 8. a processor, 2 threads, torch 2.13.0.)"
    assert page(place(), one, "text", note="k = 8") == f"{one}\n\ntext\n\n{foot}"
    assert page(place(gpu="a GPU"), "text") == "text\n\n(a GPU, torch 2.13.0.)"
