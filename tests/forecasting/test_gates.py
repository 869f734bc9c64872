"""What must hold before any rule is believed."""

import torch

from curvprobe.forecasting.gates import drift, gates
from tests.forecasting import refits


def losses(count, shift=0.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return shift + torch.rand(count, generator=draw, dtype=torch.float64)


def kinds(full, half):
    return [reason.kind for reason in gates([full, half])]


def test_nothing_speaks_against_what_is_as_it_should_be():
    half = refits(50, losses(200), 0.1, count=2, others=losses(100, seed=1).view(2, 50))
    assert kinds(refits(100, losses(200, -0.1), 0.1), half) == []
    assert abs(drift(half)) < 3


def test_each_reason():
    full, half = refits(100, losses(200, -0.1), 0.1), refits(50, losses(200), 0.1)
    assert kinds(refits(100, losses(39), 0.1), refits(50, losses(39, 0.1), 0.1)) == ["few held-out examples"]
    assert kinds(full, refits(50, losses(200, -0.1), 0.1)) == ["one model for all sizes"]
    assert kinds(refits(100, losses(200, -0.1), 0.1, moving=4.1), half) == ["not stationary"]
    assert kinds(refits(100, losses(200, -0.1), 0.1, moving=float("nan")), half) == []


def test_held_out_examples_of_another_kind_are_noticed_in_both_directions():
    full = refits(100, losses(200, -0.1), 0.1)
    for shift, word in ((0.5, "more on"), (-0.5, "less on")):
        half = refits(50, losses(200, shift), 0.1, count=2, others=losses(100, seed=1).view(2, 50))
        (reason,) = gates([full, half])
        assert reason.kind == "held-out examples of another kind"
        assert word in reason.said


def test_drift_is_told_with_its_errors():
    found = []
    for seed in range(300):
        others = losses(100, seed=2 * seed).view(2, 50)
        found.append(drift(refits(50, losses(80, seed=2 * seed + 1), 0.1, count=2, others=others)))
    scatter = torch.tensor(found)
    assert abs(float(scatter.mean())) < 0.2
    assert 0.85 < float(scatter.std()) < 1.15
