import json
import math

import pytest
from typer.testing import CliRunner

from curvprobe.analysis.scale import Scale
from curvprobe.cli import app
from curvprobe.errors import ArgumentError


def test_the_work_is_that_of_the_examples_and_the_memory_that_of_the_vectors():
    one, eight = (Scale(1e8, 1e4, gpus=gpus) for gpus in (1, 8))
    assert one.forward == 2 * 1e8 * 512 * 1e4
    assert one.operations() == eight.operations()
    assert one.operations()["eigenspace"] == 50 * 6 * one.forward
    sent = eight.exchanged()["draws"] / eight.link
    assert sent == pytest.approx(150 * 7 / 8 * 4e8 / 1e11)
    assert one.seconds()["draws"] == pytest.approx(8 * (eight.seconds()["draws"] - sent))
    assert one.exchanged()["eigenspace"] == 0
    assert eight.exchanged()["eigenspace"] == pytest.approx(7 / 8 * 4e8 * 2 * 50)
    assert one.parts()["its share of the basis"] == 26 * 4e8 == 8 * eight.parts()["its share of the basis"]
    assert eight.parts()["the model"] == 4e8
    assert eight.bytes == sum(eight.parts().values())
    twice = Scale(1e8, 2e4, gpus=8)
    assert sum(twice.operations().values()) == 2 * sum(one.operations().values())


def test_frozen_parameters_are_held_in_two_bytes_and_have_no_vectors():
    part = Scale(7e9, 1e4, probed=2e7).parts()
    assert part["the model"] == 2 * (7e9 - 2e7) + 4 * 2e7
    assert part["vectors of a product"] == 6 * 4 * 2e7
    assert part["its share of the eigenspace"] == 10 * 4 * 2e7


def test_what_to_do():
    assert Scale(1e8, 100, gpus=8).advice() == ["fits: 7.43 GiB of 74.5 GiB on each accelerator"]
    assert "the host's memory" in Scale(1e9, 100).advice()[1]
    assert Scale(1e9, 100, gpus=8).fits
    assert Scale(7e9, 100).advice()[1].startswith("probe a part")
    assert Scale(7e10, 100, probed=2e7).advice()[1].startswith("probe fewer parameters")
    days = Scale(7e9, 1e4, probed=2e7).advice()[-1]
    number = int(days.split(": ")[1].split()[0].replace(",", ""))
    total = sum(Scale(7e9, number, probed=2e7).seconds().values())
    assert total == pytest.approx(86400, rel=0.01)


@pytest.mark.parametrize(
    "sizes",
    [{"gpus": 0}, {"num_params": 0}, {"examples": -1}, {"tokens": math.inf}, {"probed": 2e8}, {"probed": 5}],
)
def test_sizes_that_make_no_sense_are_refused(sizes):
    with pytest.raises(ArgumentError, match="expected"):
        Scale(**{"num_params": 1e8, "examples": 1e4, **sizes})


def said(*options):
    found = CliRunner().invoke(app, ["plan", *options])
    return found.exit_code, found.output


def test_the_command_reckons_from_sizes():
    code, text = said("--params", "7e9", "--examples", "1e4", "--gpus", "8", "--probed", "2e7", "--dim", "5")
    assert code == 0
    assert text == f"{Scale(7e9, 1e4, dim=5, gpus=8, probed=2e7)}\n"
    assert "fits: " in text
    code, text = said("--params", "1e8", "--examples", "1e4", "--json")
    assert json.loads(text)["bytes"] == Scale(1e8, 1e4).parts()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--examples", "1e4"], "--params is left out"),
        (["--params", "lora", "--examples", "1e4"], "--params is lora"),
        (["my_task.py:task", "--params", "1e9", "--examples", "1e4"], "go together, and without a task"),
        (["my_task.py:task", "--gpus", "8"], "go together, and without a task"),
        (["--params", "1e9", "--gpus", "8"], "go together, and without a task"),
    ],
)
def test_wrong_usage_is_told(options, expected):
    code, text = said(*options)
    assert code == 2
    assert expected in " ".join(text.replace("│", " ").split())


def test_weights_are_divided_where_the_whole_model_does_not_fit():
    whole, divided = Scale(1e8, 1e4, gpus=8), Scale(7e9, 1e4, tokens=128, gpus=64)
    assert not whole.divided
    assert not Scale(7e9, 1e4).divided  # there is none to share them with
    assert divided.divided
    assert divided.fits
    parts = divided.parts()
    assert parts["the model"] == 4 * 7e9 / 64
    assert parts["vectors of a product"] == 6 * 4 * 7e9 / 64 + 4 * 7e9  # one is whole
    assert "with its weights divided (fully_shard)" in divided.advice()[1]
    assert divided.operations()["projection"] == 6 * 10 * divided.forward
    projection = divided.exchanged()["projection"] / (1e4 / 64 * 63 / 64 * 4 * 7e9)
    assert projection == pytest.approx(2 * 10 + 1 + 4)  # there and back for each direction, slopes, and the weights
    passes = divided.exchanged()["eigenspace"] / (7 * 63 / 64 * 4 * 7e9 * 50)
    assert passes == pytest.approx(round(passes))
    assert 1 <= passes <= 1e4 / 64
